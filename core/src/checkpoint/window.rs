//! Windows that a `config.json` gives to some layers.

use super::family::FamilyAttention;
use super::layer_kinds::LayerKinds;
use super::layer_types::LayerType;
use crate::config::DeepSpeedInferenceConfig;
use crate::error::{ConfigError, Origin};
use crate::fields::Fields;

/// `sliding_window`, where `null` is no window and `default` is what absence means.
pub(super) fn size(fields: &Fields<'_>, default: Option<usize>) -> Result<Option<usize>, ConfigError> {
    fields.positive_or_null("sliding_window", default)
}

/// Attention whose layers of kind 1 see `window` tokens: those that `layer_types` lists, or those of `default`.
///
/// # Errors
/// Those of [`LayerType::list`].
pub(super) fn listed(
    fields: &Fields<'_>,
    config: DeepSpeedInferenceConfig,
    window: Option<usize>,
    default: LayerKinds,
) -> Result<FamilyAttention, ConfigError> {
    let types = LayerType::list(fields, config.num_hidden_layers.unwrap_or(0))?;
    attention([config.clone(), config], window, types.map_or(default, |types| types.into_iter().collect()))
}

/// Attention of these two kinds, of which the second sees `window` tokens.
///
/// # Errors
/// [`ConfigError::Missing`] if there is no window and some layer needs one.
pub(super) fn attention(
    [full, sliding]: [DeepSpeedInferenceConfig; 2],
    window: Option<usize>,
    layers: LayerKinds,
) -> Result<FamilyAttention, ConfigError> {
    let count = full.num_hidden_layers.unwrap_or(0);
    match window {
        Some(window) => {
            let sliding = sliding.with_local_attention(true).with_window_size(window);
            Ok(FamilyAttention { kinds: vec![full, sliding], layers })
        }
        None if layers.has(1, count) => {
            Err(ConfigError::Missing { key: "sliding_window", origin: Origin::HuggingFace })
        }
        None => Ok(FamilyAttention { kinds: vec![full], layers: LayerKinds::default() }),
    }
}
