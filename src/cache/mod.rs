//! The keys and values of the tokens seen so far, preallocated and written in place.
//!
//! You own the [`KvCache`]. Each forward pass of a model opens one [`Step`], passes every layer its [`LayerCache`], and
//! commits; a step that is dropped without commit leaves no trace. Each row has its own length, so sequences can join and
//! leave a batch (continuous batching).
//!
//! ```
//! use burn::tensor::Tensor;
//! use burn_deepspeed::{AttentionInit, AttentionMask, DataType, DeepSpeedInferenceConfig};
//! use burn_ndarray::NdArray;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Default::default();
//! let config = DeepSpeedInferenceConfig::new(64, 4)
//!     .with_dtype(DataType::Fp32)
//!     .with_num_hidden_layers(Some(2))
//!     .with_max_out_tokens(16);
//! let layers = [config.init_self_attention::<NdArray>(0, &device)?, config.init_self_attention(1, &device)?];
//! let mut cache = config.init_cache::<NdArray>(1, &device)?;
//!
//! for tokens in [5, 1, 3] {
//!     let mut x = Tensor::zeros([1, tokens, 64], &device);
//!     let mut step = cache.step(tokens)?; // an error here if the tokens do not fit, before any work
//!     for (index, layer) in layers.iter().enumerate() {
//!         x = layer.forward(x, AttentionMask::none(), step.layer(index))?;
//!     }
//!     step.commit();
//! }
//! assert_eq!(cache.lengths(), [9]);
//! # Ok(()) }
//! ```

mod halves;
mod kv_cache;
mod layer;
mod rows;
mod size;
mod step;
mod store;
mod stored;
mod tables;

pub use crate::element::CacheTypes;
pub use kv_cache::KvCache;
pub use layer::LayerCache;
pub use rows::StepRows;
pub use step::Step;
pub use stored::Stored;
pub(crate) use stored::{Assign, slice_assign};
#[cfg(feature = "cubecl")]
pub(crate) use tables::bounds_on_device;
