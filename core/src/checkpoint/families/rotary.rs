//! Defaults of rotary settings, and the interleaved layout.

use crate::checkpoint::class::Setting;
use crate::config::DeepSpeedInferenceConfig;

/// Rotary pairs `2 i` and `2 i + 1`, as Cohere and GLM have them.
pub(super) fn interleaved(config: DeepSpeedInferenceConfig) -> DeepSpeedInferenceConfig {
    config.with_rotate_half(false).with_rotate_every_two(true)
}

/// `rope_theta`, with the default of a class.
pub(super) const fn theta(default: f64) -> Setting<f64> {
    Setting::new(&["rope_theta"], default)
}

/// `partial_rotary_factor`, with the default of a class.
pub(super) const fn share(default: f64) -> Setting<f64> {
    Setting::new(&["partial_rotary_factor"], default)
}
