//! The norm of queries and keys, on heads that are on their way to their places.

use burn_deepspeed_core::qk_norm::QkNormKind;

use crate::contract::{check_len, product};
use crate::cpu::sums::{squares, sum};

/// The norm of the heads of a [`Scatter`](super::Scatter), before their rotation or after it.
#[derive(Debug, Clone, Copy)]
pub struct HeadNorm<'a> {
    /// What is normalised over. All heads are those of the scatter, unless `mean_squares` are given.
    pub kind: QkNormKind,
    /// Added to the mean square, or to the variance.
    pub epsilon: f32,
    /// Factors of the features: `[head_dim]` for all heads, or `[heads, head_dim]`.
    pub weights: Option<&'a [f32]>,
    /// Whether the factors are `1 + weight`.
    pub plus_one: bool,
    /// Whether heads are rotated first; not with [`QkNormKind::RmsOfAllHeads`].
    pub after_rotation: bool,
    /// The mean square of each token, `[batch, tokens]`, for [`QkNormKind::RmsOfAllHeads`].
    pub mean_squares: Option<&'a [f32]>,
}

impl HeadNorm<'_> {
    /// Panics unless the slices fit this number of heads and tokens.
    #[track_caller]
    pub(super) fn check(&self, heads: usize, head_dim: usize, tokens: usize) {
        if let Some(weights) = self.weights.filter(|weights| weights.len() != head_dim) {
            check_len("scatter", "weights", weights.len(), product(&[heads, head_dim]));
        }
        let of_all = self.kind == QkNormKind::RmsOfAllHeads;
        assert!(
            !(of_all && self.after_rotation),
            "scatter: `after_rotation` is {} for a norm of all heads, expected false",
            self.after_rotation
        );
        if let Some(mean_squares) = self.mean_squares {
            let given = mean_squares.len();
            assert!(of_all, "scatter: `mean_squares` has {given} elements, expected None for a norm of each head");
            check_len("scatter", "mean_squares", mean_squares.len(), tokens);
        }
    }

    /// The mean square of all heads of a token, if the norm is over them; `index` counts tokens over all rows.
    #[inline(always)]
    pub(super) fn mean_square(&self, index: usize, features: &[f32]) -> Option<f32> {
        match (self.kind, self.mean_squares) {
            (QkNormKind::RmsOfAllHeads, Some(mean_squares)) => Some(mean_squares[index]),
            (QkNormKind::RmsOfAllHeads, None) => Some(squares(features, 0.0) / features.len() as f32),
            _ => None,
        }
    }

    /// Normalises a head in place.
    #[inline(always)]
    pub(super) fn apply(&self, head: usize, mean_square: Option<f32>, features: &mut [f32]) {
        let count = features.len() as f32;
        let mean = if self.kind == QkNormKind::LayerNorm { sum(features) / count } else { 0.0 };
        let variance = match mean_square {
            Some(mean_square) => mean_square,
            None => squares(features, mean) / count,
        };
        let inverse = 1.0 / (variance + self.epsilon).sqrt();
        match self.weights {
            Some(weights) => {
                let first = if weights.len() == features.len() { 0 } else { head * features.len() };
                let one = if self.plus_one { 1.0 } else { 0.0 };
                for (feature, weight) in features.iter_mut().zip(&weights[first..]) {
                    *feature = (*feature - mean) * inverse * (weight + one);
                }
            }
            None => {
                for feature in features {
                    *feature = (*feature - mean) * inverse;
                }
            }
        }
    }
}
