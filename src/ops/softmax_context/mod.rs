//! Normalise, rotate, append to the cache, attend; DeepSpeed's `SoftmaxContextOp`, whose fallback covers only part of it.

mod arguments;
#[cfg(feature = "cpu")]
pub(crate) mod cpu;
#[cfg(feature = "cubecl")]
pub(crate) mod cube;
mod queries_and_keys;
mod reference;

pub use super::heads::split_heads;
pub(crate) use super::heads::{merge_heads, split, split_all};
pub(super) use arguments::check_norm_weights;
pub use arguments::{Keys, SoftmaxContext, SoftmaxContextOutput};
pub use burn_deepspeed_core::path::{ContextProblem, CpuKernel, CubeKernel, Declined, Plan};
pub(super) use queries_and_keys::Transform;
pub use queries_and_keys::sums_of_squares;
pub use reference::reference;
