//! DeepSpeed's inference attention for [Burn](https://burn.dev), for people who run transformer models in Rust.
//!
//! The crate provides attention modules with fused norm and projection, rotary or ALiBi positions, a KV cache that you own, int8
//! weights and cache, tensor parallelism, and a loader for checkpoints of Hugging Face and DeepSpeed. Norms and MLPs of the block
//! around attention, embeddings and sampling belong to your model.
//!
//! Build a layer and a cache, then run a prompt and two decoding steps:
//!
//! ```
//! use burn::tensor::Tensor;
//! use burn_deepspeed::{AttentionInit, AttentionMask, DeepSpeedInferenceConfig};
//! use burn_ndarray::NdArray;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Default::default();
//! let config = DeepSpeedInferenceConfig::new(64, 4) // hidden size, heads
//!     .with_num_hidden_layers(Some(1))
//!     .with_max_out_tokens(128);
//! let attention = config.init_self_attention::<NdArray>(0, &device)?;
//! let mut cache = config.init_cache::<NdArray>(1, &device)?;
//!
//! for tokens in [7, 1, 1] { // a prompt of seven tokens, then one at a time
//!     let mut step = cache.step(tokens)?; // `AttentionError::CacheFull` here, before any work
//!     let input = Tensor::ones([1, tokens, 64], &device);
//!     let output = attention.forward(input, AttentionMask::none(), step.layer(0))?;
//!     assert_eq!(output.dims(), [1, tokens, 64]);
//!     step.commit(); // drop the step without committing to discard its tokens
//! }
//! assert_eq!(cache.len(), 9);
//! # Ok(()) }
//! ```
//!
//! The element type is the backend's default float unless `with_dtype` sets another. Rotary positions take one line:
//! `.with_rotary(RotaryLayout::Half, 16)`.
//!
//! # Where to start
//!
//! | you have | start with |
//! | --- | --- |
//! | a decoder or encoder | [`DeepSpeedSelfAttention`], built by [`AttentionInit::init_self_attention`] |
//! | an encoder-decoder | the same, and [`DeepSpeedCrossAttention`], built by [`AttentionInit::init_cross_attention`] |
//! | a BLOOM model | [`BloomSelfAttention`], built by [`AttentionInit::init_bloom`] |
//! | a DeepSeek model | [`DeepSpeedLatentAttention`], built by [`AttentionInit::init_latent_attention`] |
//! | a U-Net of a diffusion model | [`DeepSpeedDiffusersAttention`], built by [`AttentionInit::init_diffusers`] |
//! | a diffusion transformer: Stable Diffusion 3, Flux | [`DeepSpeedJointAttention`], built by [`AttentionInit::init_joint`] |
//! | its VAE | [`DeepSpeedVaeAttention`], built by [`AttentionInit::init_vae`] |
//! | a Hugging Face checkpoint | [`load::HuggingFaceConfig`] and [`load::Checkpoint`] |
//! | a DeepSpeed configuration | [`DeepSpeedInferenceConfig::from_json_file`] |
//! | your own attention module | [`Operations`] and the reference implementations in [`ops`] |
//! | several processes or GPUs | [`parallel`] |
//!
//! # Letters of the shapes
//!
//! | letter | size |
//! | --- | --- |
//! | B | rows of the batch |
//! | T | new tokens of a step |
//! | S | visible tokens, cached and new |
//! | E | hidden size, the width of the residual stream |
//! | N | query heads of this rank |
//! | K | key/value heads of this rank |
//! | H | features of a head; Hv of a value, if it differs |
//! | L, R | features of a cached latent, and of the rotated key that heads share |
//!
//! # Guarantees
//!
//! - **Order.** Attention weights are `softmax(hide(softcap(scale · QKᵀ) + bias))`, computed in f32 for every element type.
//! - **Causality.** Causal masks and windows follow the slot of a token in its row, never the shapes: a prompt in pieces gives the
//!   same result as the whole prompt.
//! - **Masks.** Masked positions never affect the result, even if they hold NaN. Fully masked rows return zeros. A NaN that a
//!   query sees reaches its result, and on tensor cores may reach other queries of its tile of 64.
//! - **Errors.** An invalid configuration, a full cache and weights that do not fit are a `Result` that gives the fact, the limit
//!   and the remedy. A tensor of the wrong shape is a panic that names the operation, the tensor and both shapes.
//! - **No global state.** Cache, layer index and rank are values. The exceptions: MPI exists once per process, a CUDA device can
//!   be in one NCCL group at a time, and a module reads the environment variable `DS_KI_FALLBACK` when it is built.
//! - **Reproducible rows.** On the CPU kernels, the result of a row does not depend on the rest of the batch or on the number of
//!   threads, to the bit. Dynamic NTK scaling is the exception: it depends on the longest row. They use the current `rayon` pool; [`Parallelism`] selects another.
//!
//! # Cargo features
//!
//! | feature | adds |
//! | --- | --- |
//! | `ndarray` (default), `flex` | Burn's CPU backends, with the CPU kernels |
//! | `cuda`, `vulkan`, `wgpu` | Burn's GPU backends, with the CubeCL kernels |
//! | `autodiff` | gradients; training runs on the reference implementations |
//! | `local` (default), `mpi`, `nccl` | ranks as threads, processes, or threads with a CUDA device each |
//! | `autotune` | Burn's tuning of the large products that it computes |

pub mod attention;
mod backend;
pub mod cache;
pub mod element;
pub mod load;
pub mod mask;
#[cfg(feature = "nccl")]
pub mod nccl;
pub mod ops;
mod pages;
pub mod parallel;
pub mod position;
pub mod weight;
mod zeros;

pub use attention::{
    AttentionInit, AttentionOutput, BloomSelfAttention, ContextKeys, CrossCache, DeepSpeedCrossAttention,
    DeepSpeedDiffusersAttention, DeepSpeedJointAttention, DeepSpeedLatentAttention, DeepSpeedSelfAttention,
    DeepSpeedVaeAttention, JointOutput, JointStream, LayerContext, WantedOutputs,
};
#[cfg(feature = "cpu")]
pub use backend::CpuOps;
#[cfg(feature = "cubecl")]
pub use backend::CubeOps;
#[cfg(feature = "autodiff")]
pub use backend::Differentiable;
pub use burn_deepspeed_core::layout::RotaryLayout;
pub use burn_deepspeed_core::{config, error, fields, spec};
pub use burn_deepspeed_kernels::cpu::threads::{Parallelism, ThreadsError};
pub use cache::{KvCache, LayerCache, Step};
pub use config::{
    ActivationRounding, DataType, DeepSpeedInferenceConfig, InputBits, JointStreams, KvCacheType, KvSource,
    LatentSizes, MlpActivation, NormType, QkNorm, QkNormKind, QkNormWeights, VaeBlock, WindowKind,
};
pub use element::{ElementType, OfBackend};
pub use error::{AttentionError, CommunicationError, ConfigError, WeightError};
pub use mask::AttentionMask;
pub use ops::{Activation, InferenceBackend, Keys, Operations, Reference};
pub use pages::use_huge_pages;
pub use parallel::{Communicator, HeadShard, RankGroup, TpPlan};
pub use position::{FromTensor, PositionEncoding, Positions, QueryFactor, RotarySections, SectionOrder};
pub use spec::{AttentionSpec, Window};

/// Runs the examples of the README and of the documents as tests.
#[cfg(all(doctest, feature = "ndarray"))]
mod documents {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/masks-and-cache.md")]
    struct MasksAndCache;
    #[doc = include_str!("../docs/int8.md")]
    struct Int8;
}
