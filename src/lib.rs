//! DeepSpeed's inference attention for [Burn](https://burn.dev): modules that are generic over Burn's `Backend`, a KV cache
//! that is written in place, and one definition of what is right on every backend.
//!
//! Compose the modules into a Burn model, load a checkpoint, pick a backend with a Cargo feature:
//!
//! ```
//! use burn::tensor::Tensor;
//! use burn_deepspeed::{AttentionInit, AttentionMask, DataType, DeepSpeedInferenceConfig};
//! use burn_ndarray::NdArray;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Default::default();
//! let config = DeepSpeedInferenceConfig::new(64, 4) // hidden size, heads
//!     .with_dtype(DataType::Fp32)
//!     .with_rotary_dim(Some(16))
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
//!     step.commit(); // dropped instead, the tokens were never there
//! }
//! assert_eq!(cache.len(), 9);
//! # Ok(()) }
//! ```
//!
//! # Where to start
//!
//! | you have | take |
//! | --- | --- |
//! | a decoder or encoder | [`DeepSpeedSelfAttention`] |
//! | a BLOOM | [`BloomSelfAttention`] |
//! | a diffusion model | [`DeepSpeedDiffusersAttention`] |
//! | a Hugging Face checkpoint | [`load::HuggingFaceConfig`] and [`load::Checkpoint`] |
//! | a DeepSpeed configuration | [`DeepSpeedInferenceConfig::from_json_file`] |
//! | attention of your own | [`InferenceBackend`] and the references in [`ops`] |
//!
//! # Letters of the shapes
//!
//! B batch · T new tokens · S visible tokens (cached and new) · E hidden size · N query heads and K key/value heads of this
//! rank · H head size.
//!
//! # What holds everywhere
//!
//! - Scores are `softmax(hide(softcap(scale · QKᵀ) + bias))`, in this order and in f32, whatever the element type.
//! - Causality and windows go by the place of a token in its row, never by shapes: a prompt in pieces is the prompt at once.
//! - What is hidden has no part in the result, not even a NaN; a query that sees nothing returns zeros. A NaN that is seen
//!   shows.
//! - A bad configuration, a full cache or weights that do not fit are a `Result`, with fact, limit and remedy; a tensor of
//!   the wrong shape is a panic that names operation, tensor and both shapes.
//! - There is no process-wide state: cache, layer index and rank are values. (MPI itself is one per process, and a CUDA device is in
//!   one NCCL group at a time.)
//!
//! # Threads
//!
//! The CPU kernels run on the threads of the current `rayon` pool; [`Parallelism`] chooses others. Neither their number nor the
//! rest of the batch changes a bit of a row's result.
//!
//! # Features
//!
//! `ndarray` (default) and `flex` bring Burn's CPU backends; `cuda`, `vulkan` and `wgpu` its GPU backends, with kernels of our own;
//! `autodiff` makes the modules train; `autotune` lets Burn tune the products that stay with it.

pub mod attention;
mod backend;
pub mod cache;
pub mod element;
pub mod load;
pub mod mask;
pub mod ops;
pub mod parallel;
pub mod position;
pub mod weight;

pub use attention::{
    AttentionInit, AttentionOutput, BloomSelfAttention, ContextKeys, DeepSpeedDiffusersAttention,
    DeepSpeedSelfAttention, Outputs,
};
#[cfg(any(feature = "ndarray", feature = "flex"))]
pub use backend::CpuOps;
#[cfg(feature = "cubecl")]
pub use backend::CubeOps;
#[cfg(feature = "autodiff")]
pub use backend::Differentiable;
pub use burn_deepspeed_core::{config, error, spec};
pub use burn_deepspeed_kernels::cpu::threads::{Parallelism, ThreadsError};
pub use cache::{KvCache, LayerCache, Step};
pub use config::{DataType, DeepSpeedInferenceConfig, KvCacheType, MlpActivation, NormType};
pub use element::{ElementType, OfBackend};
pub use error::{AttentionError, CommunicationError, ConfigError, WeightError};
pub use mask::AttentionMask;
pub use ops::{InferenceBackend, Operations, Reference};
pub use parallel::{Communicator, HeadShard, RankGroup, TpPlan};
pub use position::rotary::RotaryLayout;
pub use position::{FromTensor, PositionEncoding, Positions};
pub use spec::AttentionSpec;

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
