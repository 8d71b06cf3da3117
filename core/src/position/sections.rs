//! Rotary positions in sections (M-RoPE, Flux): by which of a token's three ids each pair of features rotates.

use serde::{Deserialize, Serialize};

/// The sections of rotary pairs of models that read images and video, <https://arxiv.org/abs/2409.12191>: some pairs rotate by a
/// token's time, some by its height, some by its width. The three are equal for text, which is then rotated as without sections.
///
/// Pairs keep the frequencies that they have without sections, except in the order [`Separate`](SectionOrder::Separate).
///
/// In JSON: `{ "pairs": [16, 24, 24], "order": "chunked" }`.
///
/// ```
/// use burn_deepspeed_core::position::{RotarySections, SectionOrder};
/// let axes = |order| {
///     let sections = RotarySections { pairs: [2, 1, 1], order };
///     [0, 1, 2, 3].map(|pair| sections.axis(pair))
/// };
/// assert_eq!(axes(SectionOrder::Chunked), [0, 0, 1, 2]);
/// assert_eq!(axes(SectionOrder::Interleaved), [0, 1, 2, 0]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotarySections {
    /// Pairs that rotate by time, height and width; `mrope_section` of a Hugging Face configuration, half of Flux's `axes_dims_rope`.
    /// Their sum is half of `rotary_dim`.
    pub pairs: [usize; 3],
    /// Where the pairs of a section are.
    pub order: SectionOrder,
}

/// Where the pairs of a section are among all pairs of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SectionOrder {
    /// One section after the other: time, height, width (Qwen2-VL, GLM-4V).
    Chunked,
    /// Pairs alternate between time, height and width until the height, or the width, has its number; the rest rotate by time
    /// (Qwen3-VL).
    Interleaved,
    /// One section after the other, each with the frequencies of a rotation of its own: the first pair of every section is the
    /// fastest (Flux).
    Separate,
}

impl RotarySections {
    /// The axis of a pair: 0 for time, 1 for height, 2 for width.
    pub fn axis(&self, pair: usize) -> usize {
        let [time, height, width] = self.pairs;
        match self.order {
            SectionOrder::Chunked | SectionOrder::Separate => {
                usize::from(pair >= time) + usize::from(pair >= time.saturating_add(height))
            }
            SectionOrder::Interleaved => match pair % 3 {
                1 if pair / 3 < height => 1,
                2 if pair / 3 < width => 2,
                _ => 0,
            },
        }
    }

    /// Which power of the base is the frequency of a pair, among `all` pairs of a head.
    ///
    /// ```
    /// use burn_deepspeed_core::position::{RotarySections, SectionOrder};
    /// let powers = |order| {
    ///     let sections = RotarySections { pairs: [1, 2, 1], order };
    ///     [0, 1, 2, 3].map(|pair| sections.power(pair, 4))
    /// };
    /// assert_eq!(powers(SectionOrder::Chunked), [0.0, -0.25, -0.5, -0.75]);
    /// assert_eq!(powers(SectionOrder::Separate), [0.0, 0.0, -0.5, 0.0]);
    /// ```
    pub fn power(&self, pair: usize, all: usize) -> f64 {
        let (pair, pairs) = match self.order {
            SectionOrder::Chunked | SectionOrder::Interleaved => (pair, all),
            SectionOrder::Separate => {
                let axis = self.axis(pair);
                (pair - self.pairs[..axis].iter().sum::<usize>(), self.pairs[axis])
            }
        };
        -(pair as f64) / pairs as f64
    }

    /// Pairs of all sections together.
    pub fn total(&self) -> usize {
        self.pairs.iter().fold(0, |sum, pairs| sum.saturating_add(*pairs))
    }
}
