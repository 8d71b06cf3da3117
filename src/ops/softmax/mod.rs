//! The masked softmax of given scores; DeepSpeed's `SoftmaxOp`.

mod arguments;
#[cfg(feature = "cubecl")]
pub(crate) mod cube;
mod reference;

pub use super::masked_softmax::masked_softmax;
pub use arguments::{AdditiveMask, Softmax};
pub use reference::reference;
