//! Rotary position embedding (RoPE), <https://arxiv.org/abs/2104.09864>, with the scaling families of Hugging Face.
//!
//! Frequencies and angles are computed in f64 on the host. Cosine and sine are stored in f32, whatever the element type of the
//! model: bf16 cannot distinguish positions above 256.

use serde::{Deserialize, Serialize};

use super::positions::Positions;
use super::sections::RotarySections;
pub use crate::layout::RotaryLayout;

/// The rotary encoding of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Features of each head that are rotated, an even number; the others are copied.
    pub dim: usize,
    /// Which features form a pair.
    pub layout: RotaryLayout,
    /// Base of the frequencies, 10000 in the paper.
    pub theta: f64,
    /// How the frequencies are stretched beyond the trained length.
    pub scaling: RopeScaling,
    /// By which of a token's three positions each pair rotates; `None` for one position.
    pub sections: Option<RotarySections>,
}

/// The scaling families of the `rope_scaling` (or `rope_parameters`) record of a Hugging Face configuration.
///
/// ```
/// use burn_deepspeed_core::position::rotary::RopeScaling;
/// let record = serde_json::json!({ "rope_type": "linear", "factor": 2.0 });
/// assert_eq!(RopeScaling::from_json(&record, None).unwrap(), RopeScaling::Linear { factor: 2.0 });
/// assert!(RopeScaling::from_json(&serde_json::json!({ "rope_type": "wavy" }), None).is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
#[non_exhaustive]
pub enum RopeScaling {
    /// The paper's frequencies.
    #[default]
    Default,
    /// Positions are divided by `factor` (position interpolation).
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// The base grows once the sequence outgrows the trained length ("dynamic NTK"). The length is that of the longest
    /// row of the step; keys already in the cache keep the base that they were rotated with, as in `transformers`.
    Dynamic {
        /// At least 1.
        factor: f64,
        /// Length the model was trained for, in tokens.
        max_position_embeddings: usize,
    },
    /// Long waves are stretched, short ones kept, those between interpolated (LLaMA 3.1).
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Waves longer than `original / low_freq_factor` are stretched.
        low_freq_factor: f64,
        /// Waves shorter than `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Length the model was first trained for, in tokens.
        original_max_position_embeddings: usize,
    },
    /// YaRN, <https://arxiv.org/abs/2309.00071>.
    Yarn {
        /// At least 1.
        factor: f64,
        /// Length the model was first trained for, in tokens.
        original_max_position_embeddings: usize,
        /// Full rotations over the original length above which a frequency is kept. Default: 32.
        beta_fast: f64,
        /// Full rotations over the original length below which a frequency is stretched. Default: 1.
        beta_slow: f64,
        /// Factor on cosine and sine. Default: `0.1 ln(factor) + 1`.
        attention_factor: f64,
        /// Whether the ends of the ramp are rounded outwards to whole frequencies. Default: true.
        truncate: bool,
    },
    /// LongRoPE, <https://arxiv.org/abs/2402.13753>: each frequency is divided by a factor of its own, from one list for sequences of
    /// up to the original length and from another for longer ones. The length is that of the longest row of the step; see
    /// [`changes`](Self::changes).
    LongRope {
        /// One factor for each pair, for sequences of up to the original length.
        short_factor: Vec<f64>,
        /// One factor for each pair, for longer sequences.
        long_factor: Vec<f64>,
        /// Length the model was first trained for, in tokens.
        original_max_position_embeddings: usize,
        /// Factor on cosine and sine, for short sequences too. Default: `sqrt(1 + ln(factor) / ln(original))`, where `factor` is the
        /// growth of the length.
        attention_factor: f64,
    },
    /// Only some pairs rotate, with the frequencies that they have among all pairs of a head (Gemma 4). `rotary_dim` is the whole
    /// head, so pairs lie half a head apart.
    Proportional {
        /// Frequencies are divided by it. Default: 1.
        factor: f64,
        /// Part of the pairs that rotates, rounded down to whole pairs; the others are copied. Default: 1.
        partial_rotary_factor: f64,
    },
}

impl RopeScaling {
    /// Whether sequences of `before` and of `after` tokens have different frequencies. If so, keys that are cached were rotated with
    /// others than those that follow. `transformers` computes the cache anew there for Phi 3, and keeps it for other models.
    ///
    /// ```
    /// use burn_deepspeed_core::position::rotary::RopeScaling;
    /// let dynamic = RopeScaling::Dynamic { factor: 2.0, max_position_embeddings: 16 };
    /// assert!(!dynamic.changes(8, 16));
    /// assert!(dynamic.changes(16, 17));
    /// ```
    pub fn changes(&self, before: usize, after: usize) -> bool {
        match self {
            Self::LongRope { original_max_position_embeddings: original, .. } => {
                (before > *original) != (after > *original)
            }
            Self::Dynamic { max_position_embeddings: trained, .. } => before.max(*trained) != after.max(*trained),
            Self::Default
            | Self::Linear { .. }
            | Self::Llama3 { .. }
            | Self::Yarn { .. }
            | Self::Proportional { .. } => false,
        }
    }
}

impl Rotary {
    /// The angle between the rotations of neighbouring positions, in radians, for each pair; and the factor on cosine and sine.
    /// `length` is the longest sequence of the step in tokens; only dynamic scaling and LongRoPE read it.
    ///
    /// # Panics
    /// If LongRoPE does not have one factor for each pair, which [`resolve`](crate::config::DeepSpeedInferenceConfig::resolve) checks.
    pub fn frequencies(&self, length: usize) -> (Vec<f64>, f64) {
        let dim = self.dim as f64;
        let power = |pair: usize| match self.sections {
            Some(sections) => sections.power(pair, self.dim / 2),
            None => -2.0 * pair as f64 / dim,
        };
        let with_base = |base: f64| (0..self.dim / 2).map(move |pair| base.powf(power(pair)));
        match self.scaling {
            RopeScaling::Default => (with_base(self.theta).collect(), 1.0),
            RopeScaling::Linear { factor } => (with_base(self.theta).map(|f| f / factor).collect(), 1.0),
            RopeScaling::Dynamic { factor, max_position_embeddings } => {
                let trained = max_position_embeddings as f64;
                let stretch = factor * (length as f64).max(trained) / trained - (factor - 1.0);
                let base = if self.dim > 2 { self.theta * stretch.powf(dim / (dim - 2.0)) } else { self.theta };
                (with_base(base).collect(), 1.0)
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings,
            } => {
                let turns = |f: f64| original_max_position_embeddings as f64 * f / std::f64::consts::TAU;
                let scale = |f: f64| {
                    let smooth = ((turns(f) - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - smooth) * f / factor + smooth * f
                };
                (with_base(self.theta).map(scale).collect(), 1.0)
            }
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate,
            } => {
                let original = original_max_position_embeddings as f64;
                let at = |turns: f64| dim * (original / (turns * std::f64::consts::TAU)).ln() / (2.0 * self.theta.ln());
                let (mut low, mut high) = (at(beta_fast), at(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, high) = (low.max(0.0), high.min(dim - 1.0));
                let width = if low == high { 0.001 } else { high - low };
                let scaled = with_base(self.theta).enumerate().map(|(i, f)| {
                    let ramp = ((i as f64 - low) / width).clamp(0.0, 1.0);
                    f / factor * ramp + f * (1.0 - ramp)
                });
                (scaled.collect(), attention_factor)
            }
            RopeScaling::LongRope {
                ref short_factor,
                ref long_factor,
                original_max_position_embeddings: original,
                attention_factor,
            } => {
                let factors = if length > original { long_factor } else { short_factor };
                let (given, pairs) = (factors.len(), self.dim / 2);
                assert!(given == pairs, "Rotary::frequencies: {given} factors of LongRoPE, expected {pairs}");
                (with_base(self.theta).zip(factors).map(|(f, factor)| f / factor).collect(), attention_factor)
            }
            RopeScaling::Proportional { factor, partial_rotary_factor } => {
                let rotating = (partial_rotary_factor * dim / 2.0) as usize;
                let scaled =
                    with_base(self.theta).enumerate().map(|(i, f)| if i < rotating { f / factor } else { 0.0 });
                (scaled.collect(), 1.0)
            }
        }
    }

    /// Cosine and sine for every new token of a step.
    ///
    /// # Panics
    /// If tokens have three positions and the encoding no sections; those of [`frequencies`](Self::frequencies).
    pub fn cosines_and_sines(&self, positions: &Positions) -> CosinesAndSines {
        assert!(
            self.sections.is_some() || !positions.has_axes(),
            "rotary positions: three positions for each token, expected one: the layer has no `rope_sections`"
        );
        let (frequencies, amplitude) = self.frequencies(positions.length());
        let axis = |pair: usize| positions.axis(self.sections.map_or(0, |sections| sections.axis(pair)));
        let pairs: Vec<(&[usize], f64)> = frequencies.iter().enumerate().map(|(pair, f)| (axis(pair), *f)).collect();
        let pairs = &pairs;
        let tokens = 0..positions.ids().len();
        let angles = || tokens.clone().flat_map(move |token| pairs.iter().map(move |(ids, f)| ids[token] as f64 * f));
        CosinesAndSines {
            shape: [positions.batch(), positions.tokens(), self.dim / 2],
            cosines: angles().map(|a| (a.cos() * amplitude) as f32).collect(),
            sines: angles().map(|a| (a.sin() * amplitude) as f32).collect(),
        }
    }
}

/// Cosine and sine of every angle of a step, times the amplitude of the scaling family.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct CosinesAndSines {
    /// Rows of the batch, new tokens of each row, pairs of a head.
    pub shape: [usize; 3],
    /// Row-major, of this shape.
    pub cosines: Vec<f32>,
    /// Row-major, of this shape.
    pub sines: Vec<f32>,
}
