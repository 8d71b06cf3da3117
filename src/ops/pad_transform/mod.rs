//! Heads padded to the sizes that fused attention kernels are written for; DeepSpeed's `PadTransformOp`, whose fallback
//! is unimplemented.
//!
//! Zero features change neither QKᵀ nor the first H columns of the context, so attention on padded heads is attention on
//! the heads themselves, as long as the scale is that of the true head size. DeepSpeed pads the
//! sequence as well (a short context to 128 tokens); our attention takes any length.

#[cfg(feature = "cubecl")]
pub(crate) mod cube;
mod reference;

pub use reference::{padded_head_size, reference, unpad};
