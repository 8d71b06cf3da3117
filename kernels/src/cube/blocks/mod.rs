//! Matrices of quantised blocks: where their rows are, and what a block holds.
//!
//! [`BlockFormat`](burn_deepspeed_core::block::BlockFormat) is the definition. Every value here has its bits in f32: products of a scale
//! and an element are exact, so it does not matter whether a compiler contracts a sum.

mod bytes;
pub(super) mod factors;
mod layout;
mod problem;
mod values;

pub(crate) use bytes::{Held, load};
pub(crate) use factors::half_of;
pub(crate) use layout::{has_minimum, lower, offset, parts};
pub use problem::Blocks;
pub(crate) use problem::CheckedBlocks;
pub(crate) use values::{elements, float, word};
