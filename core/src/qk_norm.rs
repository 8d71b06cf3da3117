//! The norm of queries and keys.

use serde::{Deserialize, Serialize};

/// The norm of queries and keys, <https://arxiv.org/abs/2010.04245>, and of values under [`values`](Self::values).
///
/// It is computed in f32. `w` is the weight of a feature, or `1 + w` under [`plus_one`](Self::plus_one):
///
/// | kind | of a query or key `x` |
/// | --- | --- |
/// | [`Rms`](QkNormKind::Rms) | `x / sqrt(mean(x²) + epsilon) · w` |
/// | [`LayerNorm`](QkNormKind::LayerNorm) | `(x - mean(x)) / sqrt(variance(x) + epsilon) · w` |
/// | [`RmsOfAllHeads`](QkNormKind::RmsOfAllHeads) | as `Rms`, with the mean over all heads of the token |
///
/// | model | kind | weights | plus one | after rotation |
/// | --- | --- | --- | --- | --- |
/// | Qwen 3 | `Rms` | `Shared` | no | no |
/// | Gemma 3 | `Rms` | `Shared` | yes | no |
/// | Gemma 3n, Gemma 4 (with `values`) | `Rms` | `Shared` | no | no |
/// | Cohere, StableLM | `LayerNorm` | `PerHead` | no | no |
/// | OLMo 2 and 3 | `RmsOfAllHeads` | `PerHead` | no | no |
/// | Llama 4 | `Rms` | `None` | no | yes |
///
/// In JSON the keys are the names of the fields, and `plus_one`, `after_rotation` and `values` may be absent:
///
/// ```
/// use burn_deepspeed_core::config::DeepSpeedInferenceConfig;
/// use burn_deepspeed_core::qk_norm::{QkNorm, QkNormKind, QkNormWeights};
/// # fn main() -> Result<(), burn_deepspeed_core::error::ConfigError> {
/// let config = DeepSpeedInferenceConfig::from_json_str(
///     r#"{ "hidden_size": 64, "heads": 4, "qk_norm": { "kind": "rms", "weights": "shared", "epsilon": 1e-6 } }"#,
/// )?;
/// assert_eq!(config.qk_norm, Some(QkNorm::new(QkNormKind::Rms, QkNormWeights::Shared, 1e-6)));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QkNorm {
    /// What is normalised over.
    pub kind: QkNormKind,
    /// Which features have weights of their own.
    pub weights: QkNormWeights,
    /// Added to the mean square, or to the variance, before the root. It may differ from that of the norm before the projection.
    pub epsilon: f64,
    /// Whether a feature is multiplied by `1 + weight`. Default: false.
    #[serde(default)]
    pub plus_one: bool,
    /// Whether queries and keys are rotated first; not with [`RmsOfAllHeads`](QkNormKind::RmsOfAllHeads). Default: false.
    #[serde(default)]
    pub after_rotation: bool,
    /// Whether values are normalised as well, by the root mean square of each head and without weights; only with
    /// [`Rms`](QkNormKind::Rms). Default: false.
    #[serde(default)]
    pub values: bool,
}

impl QkNorm {
    /// A norm before the rotation, whose weights are factors.
    pub fn new(kind: QkNormKind, weights: QkNormWeights, epsilon: f64) -> Self {
        Self { kind, weights, epsilon, plus_one: false, after_rotation: false, values: false }
    }

    /// Sets whether a feature is multiplied by `1 + weight`.
    pub fn with_plus_one(self, plus_one: bool) -> Self {
        Self { plus_one, ..self }
    }

    /// Sets whether queries and keys are rotated first.
    pub fn with_after_rotation(self, after_rotation: bool) -> Self {
        Self { after_rotation, ..self }
    }

    /// Sets whether values are normalised as well.
    pub fn with_values(self, values: bool) -> Self {
        Self { values, ..self }
    }
}

/// What a norm of queries and keys is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNormKind {
    /// The root mean square of each head, <https://arxiv.org/abs/1910.07467>.
    Rms,
    /// Mean and variance of each head, <https://arxiv.org/abs/1607.06450>, without a bias.
    LayerNorm,
    /// The root mean square of all query heads of a token together, and of all its key heads. On several ranks those are the heads
    /// of all ranks.
    RmsOfAllHeads,
}

/// The weights of a norm of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNormWeights {
    /// There are none.
    None,
    /// One for each feature of a head, `[H]`, the same for every head; queries and keys have their own.
    Shared,
    /// One for each feature of each head: `[N, H]` for queries, `[K, H]` for keys.
    PerHead,
}

impl QkNormWeights {
    /// Rows of the weights for this number of heads; `None` without weights.
    pub fn rows(self, heads: usize) -> Option<usize> {
        match self {
            Self::None => None,
            Self::Shared => Some(1),
            Self::PerHead => Some(heads),
        }
    }
}
