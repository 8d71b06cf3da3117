//! The model families whose configurations and checkpoints are known, one record each.
//!
//! To add a family, write its record in a new file and add it to [`ALL`].

mod bert;
mod bloom;
mod gpt2;
mod gpt_neo;
mod gpt_neox;
mod gptj;
mod llama;
mod mistral;
mod opt;

pub use super::class::{Class, MlpSize, Setting};
pub use super::family::{DecoderPaths, Family, FamilyAttention, Flag, LayerPaths, PositionTable, QkvPaths};
pub use super::layer_types::LayerType;
pub use super::local::LocalLayers;
pub use super::only::Only;
pub use super::rope::{Rope, RopeKeys};
use crate::error::ConfigError;
pub use crate::fields::Fields;

/// Every family.
pub const ALL: &[&Family] = &[
    &bloom::FAMILY,
    &gpt2::FAMILY,
    &gpt_neo::FAMILY,
    &gpt_neox::FAMILY,
    &gptj::FAMILY,
    &llama::FAMILY,
    &mistral::FAMILY,
    &opt::FAMILY,
    &bert::FAMILY,
];

/// The family of a `model_type`.
///
/// # Errors
/// [`ConfigError::UnknownModelType`] with the names of [`ALL`].
pub fn of_model_type(model_type: &str) -> Result<&'static Family, ConfigError> {
    ALL.iter().copied().find(|family| family.model_types.contains(&model_type)).ok_or_else(|| {
        let supported = ALL.iter().map(|family| family.name()).collect();
        ConfigError::UnknownModelType { model_type: model_type.into(), supported }
    })
}
