//! The settings of DeepSpeed's `DeepSpeedInferenceConfig`: how they are given, read, saved and checked.

mod diffusion;
mod json;
mod latent;
mod resolve;
mod settings;
mod values;

pub use crate::data_type::{ActivationRounding, DataType, InputBits, KvCacheType, MatrixFormat};
pub use crate::kv_source::KvSource;
pub use crate::latent::LatentSizes;
pub use crate::position::{QueryFactor, RotarySections, SectionOrder};
pub use crate::qk_norm::{QkNorm, QkNormKind, QkNormWeights};
pub use diffusion::{JointStreams, VaeBlock};
pub use json::read_json;
pub use settings::DeepSpeedInferenceConfig;
pub use values::{MlpActivation, NormType, WindowKind};
