//! Scaled dot-product attention, equation 1 of <https://arxiv.org/abs/1706.03762>, under every mask of this crate.

mod arguments;
#[cfg(feature = "cpu")]
pub(crate) mod cpu;
#[cfg(feature = "cubecl")]
pub(crate) mod cube;
mod reference;
mod visibility;

pub use arguments::Attention;
pub use reference::reference;
pub use visibility::{Visibility, Window, hidden_pairs};
