//! Latent attention (MLA), <https://arxiv.org/abs/2405.04434>: rotate, append a latent to the cache, attend to the keys and values that
//! all heads project from the cached latents.
//!
//! The definition expands: it projects keys and values from every visible latent, and attends to them. A kernel for a few new tokens
//! absorbs the projection instead. The key of a head is `W·c`, so its product with a query is that of `Wᵀ·q` with the latent `c`; and a
//! weighted sum of values `W·c` is `W` times that of latents. Attention then has one key/value head, the cached row, and its values are
//! the first features of its keys.

mod absorbed;
mod arguments;
#[cfg(feature = "cpu")]
pub(crate) mod cpu;
#[cfg(feature = "cubecl")]
pub(crate) mod cube;
mod parts;
mod reference;

pub use arguments::LatentContext;
pub use burn_deepspeed_core::path::LatentProblem;
pub use reference::reference;
