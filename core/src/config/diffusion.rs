//! What diffusion models add to the settings of a layer: the streams of a joint attention, and the block of a VAE.

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// Which streams a joint attention has, and which of them end in an output projection.
///
/// In JSON the keys are the names of the fields, and all may be absent: image tokens alone, with an output projection.
///
/// ```
/// use burn_deepspeed_core::config::JointStreams;
/// let last_layer = JointStreams::image_first(1536).with_text_output(false); // `context_pre_only` of `diffusers`
/// assert_eq!((last_layer.text, last_layer.text_output), (Some(1536), false));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct JointStreams {
    /// Features of a text token; `None` for a single stream.
    pub text: Option<usize>,
    /// Whether the text comes first in the joint sequence. Masks and rotary positions count in that order; nothing else depends on it.
    pub text_first: bool,
    /// Whether image tokens, or those of a single stream, have an output projection.
    pub image_output: bool,
    /// Whether text tokens have one.
    pub text_output: bool,
}

impl Default for JointStreams {
    fn default() -> Self {
        Self { text: None, text_first: false, image_output: true, text_output: true }
    }
}

impl JointStreams {
    /// Image and text, in this order (Stable Diffusion 3). Text tokens have this number of features.
    pub fn image_first(text: usize) -> Self {
        Self { text: Some(text), ..Self::default() }
    }

    /// Text and image, in this order (the double blocks of Flux).
    pub fn text_first(text: usize) -> Self {
        Self { text_first: true, ..Self::image_first(text) }
    }

    /// One stream (`attn2` of Stable Diffusion 3.5; without an output projection, the single blocks of Flux).
    pub fn single() -> Self {
        Self::default()
    }

    /// Sets whether image tokens, or those of a single stream, have an output projection.
    pub fn with_image_output(self, image_output: bool) -> Self {
        Self { image_output, ..self }
    }

    /// Sets whether text tokens have an output projection: false for `context_pre_only` of `diffusers`.
    pub fn with_text_output(self, text_output: bool) -> Self {
        Self { text_output, ..self }
    }
}

/// What a VAE's attention does around the attention itself.
///
/// In JSON the keys are the names of the fields, and all may be absent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct VaeBlock {
    /// Groups of channels that are normalised together; `norm_num_groups`. Default: 32.
    pub groups: usize,
    /// Added to the variance of a group. Default: 1e-6.
    pub epsilon: f64,
    /// What the sum of output and input is divided by. Default: 1.
    pub rescale_output_factor: f64,
}

impl Default for VaeBlock {
    fn default() -> Self {
        Self { groups: 32, epsilon: 1e-6, rescale_output_factor: 1.0 }
    }
}

impl VaeBlock {
    /// Sets the number of groups.
    pub fn with_groups(self, groups: usize) -> Self {
        Self { groups, ..self }
    }

    /// Sets what is added to the variance of a group.
    pub fn with_epsilon(self, epsilon: f64) -> Self {
        Self { epsilon, ..self }
    }

    /// Sets what the sum of output and input is divided by.
    pub fn with_rescale_output_factor(self, rescale_output_factor: f64) -> Self {
        Self { rescale_output_factor, ..self }
    }

    /// Checks the settings for this number of channels.
    ///
    /// # Errors
    /// [`ConfigError::OutOfRange`] for a number that is not one; [`ConfigError::ChannelGroups`] if the groups do not divide the channels.
    pub fn check(&self, channels: usize) -> Result<(), ConfigError> {
        let Self { groups, epsilon, rescale_output_factor: factor } = *self;
        let out_of_range = |key, value: f64, limit| ConfigError::OutOfRange { key, value: value.to_string(), limit };
        if !(epsilon.is_finite() && epsilon >= 0.0) {
            return Err(out_of_range("epsilon", epsilon, "a number of at least 0"));
        }
        if !(factor.is_finite() && factor > 0.0) {
            return Err(out_of_range("rescale_output_factor", factor, "a number above 0"));
        }
        match groups > 0 && channels.is_multiple_of(groups) {
            true => Ok(()),
            false => Err(ConfigError::ChannelGroups { groups, channels }),
        }
    }
}
