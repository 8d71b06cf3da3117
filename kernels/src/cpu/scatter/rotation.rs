//! Rotary positions (arXiv:2104.09864), on heads that are on their way to their places.

use burn_deepspeed_core::layout::RotaryLayout;

/// Cosine and sine of each token, `[batch, tokens, half]` each: rotary positions (arXiv:2104.09864).
#[derive(Debug, Clone, Copy)]
pub struct Rotation<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
    /// Pairs that are rotated; features after the last are copied.
    pub half: usize,
    /// Which features form a pair.
    pub layout: RotaryLayout,
}

impl Rotation<'_> {
    #[inline(always)]
    pub(super) fn rotate(&self, index: usize, features: &[f32], place: &mut [f32]) {
        let half = self.half;
        let angles = || self.cos[index * half..][..half].iter().zip(&self.sin[index * half..][..half]);
        let (paired, rest) = features.split_at(2 * half);
        let (rotated, copied) = place.split_at_mut(2 * half);
        copied.copy_from_slice(rest);
        match self.layout {
            RotaryLayout::Half => {
                let (a, b) = paired.split_at(half);
                let (c, d) = rotated.split_at_mut(half);
                for ((((c, d), a), b), (cos, sin)) in c.iter_mut().zip(d).zip(a).zip(b).zip(angles()) {
                    *c = a * cos - b * sin;
                    *d = b * cos + a * sin;
                }
            }
            RotaryLayout::Interleaved => {
                let pairs = rotated.as_chunks_mut().0.iter_mut().zip(paired.as_chunks().0);
                for ((pair, [a, b]), (cos, sin)) in pairs.zip(angles()) {
                    *pair = [a * cos - b * sin, b * cos + a * sin];
                }
            }
        }
    }
}
