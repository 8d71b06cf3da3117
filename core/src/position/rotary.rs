//! Rotary position embedding (RoPE), <https://arxiv.org/abs/2104.09864>, with the scaling families of Hugging Face.
//!
//! Frequencies and angles are computed in f64 on the host. Cosine and sine are stored in f32, whatever the element type of the
//! model: bf16 cannot distinguish positions above 256.

use serde::{Deserialize, Serialize};

use super::positions::Positions;
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
}

impl Rotary {
    /// The angle between the rotations of neighbouring positions, in radians, for each pair; and the factor on cosine and sine.
    /// `length` is the longest sequence of the step in tokens; only dynamic scaling reads it.
    pub fn frequencies(&self, length: usize) -> (Vec<f64>, f64) {
        let dim = self.dim as f64;
        let with_base = |base: f64| (0..self.dim / 2).map(move |i| base.powf(-2.0 * i as f64 / dim));
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
                let width = (high - low).max(0.001);
                let scaled = with_base(self.theta).enumerate().map(|(i, f)| {
                    let ramp = ((i as f64 - low) / width).clamp(0.0, 1.0);
                    f / factor * ramp + f * (1.0 - ramp)
                });
                (scaled.collect(), attention_factor)
            }
        }
    }

    /// Cosine and sine for every new token of a step.
    pub fn cosines_and_sines(&self, positions: &Positions) -> CosinesAndSines {
        let (frequencies, amplitude) = self.frequencies(positions.max().map_or(0, |last| last + 1));
        let angles = || positions.ids().iter().flat_map(|&p| frequencies.iter().map(move |f| p as f64 * f));
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
