//! Norm and QKV projection; DeepSpeed's `QKVGemmOp`, whose fallbacks lack the bias of RMSNorm and int8.

#[cfg(feature = "cpu")]
pub(crate) mod cpu;
#[cfg(feature = "cubecl")]
pub(crate) mod cube;
mod reference;

pub(super) use reference::normalise_for;
pub use reference::{QkvGemmOutput, normalise, reference};
