//! Queries that grow with their position.

use serde::{Deserialize, Serialize};

use super::positions::Positions;

/// A factor of each query by its position `p`, `1 + weight · ln(1 + ⌊(p + offset) / interval⌋)`: it keeps attention over long
/// contexts sharp, <https://arxiv.org/abs/2501.19399>.
///
/// ```
/// use burn_deepspeed_core::position::{Positions, QueryFactor};
///
/// let factor = QueryFactor::llama4(0.1, 8192);
/// let positions = Positions::sequential(&[8190], 2); // 8190 and 8191
/// let [first, second] = factor.of(&positions).try_into().unwrap();
/// assert_eq!(first, 1.0);
/// assert_eq!(second, 1.0 + 0.1 * 2f32.ln());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueryFactor {
    /// Factor of the logarithm, at least 0.
    pub weight: f64,
    /// Positions from a step of the factor to the next, at least 1.
    pub interval: usize,
    /// Added to the position.
    pub offset: usize,
}

impl QueryFactor {
    /// The factor of Llama 4, in its layers without rotary positions: its `attn_scale` and `floor_scale`.
    pub fn llama4(attn_scale: f64, floor_scale: usize) -> Self {
        Self { weight: attn_scale, interval: floor_scale, offset: 1 }
    }

    /// The factor of Ministral 3: `llama_4_scaling_beta` and `original_max_position_embeddings` of its rotary parameters.
    pub fn ministral3(beta: f64, original_max_position_embeddings: usize) -> Self {
        Self { weight: beta, interval: original_max_position_embeddings, offset: 0 }
    }

    /// The factors of the new tokens, row by row, computed in f64.
    pub fn of(&self, positions: &Positions) -> Vec<f32> {
        let at = |position: &usize| {
            let step = position.saturating_add(self.offset) / self.interval.max(1);
            (1.0 + self.weight * (step as f64).ln_1p()) as f32
        };
        positions.ids().iter().map(at).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_models_have_their_own_first_step() {
        let positions = Positions::sequential(&[2, 7], 2); // 2, 3, 7, 8
        let grown = |steps: f64| (1.0 + 0.5 * (1.0 + steps).ln()) as f32;
        assert_eq!(QueryFactor::llama4(0.5, 4).of(&positions), [1.0, grown(1.0), grown(2.0), grown(2.0)]);
        assert_eq!(QueryFactor::ministral3(0.5, 4).of(&positions), [1.0, 1.0, grown(1.0), grown(2.0)]);
    }
}
