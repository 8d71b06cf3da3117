//! Where the keys and values of a layer come from.

use serde::{Deserialize, Serialize};

/// Where a layer's keys and values come from.
///
/// | source | projection | model |
/// | --- | --- | --- |
/// | [`Own`](Self::Own) | `q \| k \| v` | nearly all |
/// | [`KeysAreValues`](Self::KeysAreValues) | `q \| k` | full layers of Gemma 4 (`attention_k_eq_v`) |
/// | [`Layer`](Self::Layer) | `q` | the last layers of Gemma 3n and Gemma 4 (`num_kv_shared_layers`) |
///
/// In JSON `"own"`, `"keys_are_values"` or `{ "layer": 13 }`:
///
/// ```
/// use burn_deepspeed_core::config::DeepSpeedInferenceConfig;
/// use burn_deepspeed_core::kv_source::KvSource;
/// # fn main() -> Result<(), burn_deepspeed_core::error::ConfigError> {
/// let config = DeepSpeedInferenceConfig::from_json_str(
///     r#"{ "hidden_size": 64, "heads": 4, "kv_source": { "layer": 2 } }"#,
/// )?;
/// assert_eq!(config.kv_source, KvSource::Layer(2));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvSource {
    /// It projects both.
    #[default]
    Own,
    /// It projects keys. A value is its key before norm and rotation, normalised if [`QkNorm::values`](crate::qk_norm::QkNorm::values) is set.
    KeysAreValues,
    /// It projects queries alone, and reads the keys and values of this earlier layer.
    Layer(usize),
}

impl KvSource {
    /// Whether the layer has keys and values of its own, and writes them into its cache.
    pub fn is_own(self) -> bool {
        !matches!(self, Self::Layer(_))
    }

    /// How many times the width of the keys follows the queries in the projection.
    pub fn projected(self) -> usize {
        match self {
            Self::Own => 2,
            Self::KeysAreValues => 1,
            Self::Layer(_) => 0,
        }
    }
}
