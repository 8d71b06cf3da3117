//! The operations of attention: a method of [`Operations`] and a public reference for each.
//!
//! | operation | DeepSpeed | computes |
//! | --- | --- | --- |
//! | [`qkv_gemm`](Operations::qkv_gemm) | `QKVGemmOp` | norm, QKV projection, bias |
//! | [`softmax_context`](Operations::softmax_context) | `SoftmaxContextOp` | normalise, rotate, append to the cache, attend |
//! | [`latent_context`](Operations::latent_context) | | rotate, append a latent to the cache, attend to what is projected from latents |
//! | [`masked_attention`](Operations::masked_attention) | the fused attention of `diffusers_attention.py` | attention without a cache |
//! | [`normalise_and_rotate`](Operations::normalise_and_rotate) | | heads before they are joined with those of other tokens |
//! | [`softmax`](Operations::softmax) | `SoftmaxOp` | masked softmax of given scores |
//! | [`context_gate`](Operations::context_gate) | | the context times the sigmoid of a gate |
//! | [`linear`](Operations::linear) | `LinearOp` | projection with bias |
//! | [`vector_matmul`](Operations::vector_matmul) | `VectorMatMulOp` | projection without bias |
//! | [`all_reduce`](Operations::all_reduce) | `dist.all_reduce` after the output projection | the sum over ranks |
//! | [`residual_norm`](Operations::residual_norm) | `layer_norm_residual` | norm of a sum |
//! | [`group_norm`](Operations::group_norm) | | norm of groups of channels |
//! | [`activation`](Operations::activation) | | GELU or SiLU, after a projection |
//! | [`gated_activation`](Operations::gated_activation) | `gated_activation` | the same, times another projection |
//! | [`gelu`](Operations::gelu) | `bias_gelu` | the exact GELU |
//! | [`pad_transform`](Operations::pad_transform) | `PadTransformOp` | heads padded for fused attention |

pub mod activation;
pub mod all_reduce;
pub mod attention;
pub mod context_gate;
#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "cubecl")]
pub mod cube;
pub mod gated_activation;
pub mod group_norm;
mod heads;
pub mod latent_context;
pub mod linear;
mod masked_softmax;
pub mod normalise_and_rotate;
mod operations;
pub mod pad_transform;
mod projection;
pub mod qkv_gemm;
pub mod residual_norm;
pub mod softmax;
pub mod softmax_context;
pub mod vector_matmul;

pub use attention::Attention;
pub use burn_deepspeed_core::activation::Activation;
pub use burn_deepspeed_core::path::BlockProblem;
pub use latent_context::{LatentContext, LatentProblem};
pub use normalise_and_rotate::NormaliseAndRotate;
pub use operations::{InferenceBackend, Operations, Reference};
pub use pad_transform::padded_head_size;
pub use qkv_gemm::QkvGemmOutput;
pub use softmax::{AdditiveMask, Softmax};
pub use softmax_context::{ContextProblem, Declined, Keys, Plan, SoftmaxContext, SoftmaxContextOutput};
