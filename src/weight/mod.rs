//! The parameters of attention: projections whose matrix is dense, int8 or in blocks, norms, and biases of scores.

mod blocks;
mod dense;
mod elements;
mod group_norm;
mod int8;
mod norm;
mod param;
mod projection;
mod qkv;
mod query_key_norm;
mod relative_bias;
mod rows;
mod sinks;

pub use blocks::BlockMatrix;
pub use burn_deepspeed_core::block::{BlockFormat, RowFormats, RowPart};
pub use burn_deepspeed_core::layout::Orientation;
pub use dense::{DenseMatrix, transposed};
pub use group_norm::GroupNorm;
pub use int8::{Int8Blocks, Int8Matrix};
pub use norm::FusedNorm;
pub use projection::{Matrix, Weight};
pub use qkv::{QkvWeight, SeparateQkv};
pub use query_key_norm::QueryKeyNorm;
pub use relative_bias::RelativeBias;
pub use sinks::Sinks;
