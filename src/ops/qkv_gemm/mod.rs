//! Norm and QKV projection; DeepSpeed's `QKVGemmOp`, whose fallbacks lack the bias of RMSNorm and int8.

#[cfg(any(feature = "ndarray", feature = "flex"))]
pub(crate) mod cpu;
#[cfg(feature = "cubecl")]
pub(crate) mod cube;
mod reference;

pub(super) use reference::normalise_for;
pub use reference::{QkvGemmOutput, normalise, reference};
