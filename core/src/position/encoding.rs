//! Which position encoding a layer has.

use super::alibi;
use super::rotary::Rotary;
use crate::parallel::HeadShard;

/// The position encoding of a layer, after the configuration was checked.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum PositionEncoding {
    /// Attention sees no positions (GPT-2, OPT and BERT add them to the embedding).
    None,
    /// Queries and keys are rotated by an angle proportional to the position.
    Rotary(Rotary),
    /// Scores decrease with the distance, by a slope for each head.
    Alibi {
        /// Factor of the slopes.
        factor: f64,
    },
}

impl PositionEncoding {
    /// The ALiBi slopes of the heads of one rank; `None` for other encodings.
    pub fn slopes(&self, shard: &HeadShard) -> Option<Vec<f32>> {
        let Self::Alibi { factor } = self else { return None };
        Some(alibi::shard_slopes(shard).into_iter().map(|slope| (f64::from(slope) * factor) as f32).collect())
    }
}
