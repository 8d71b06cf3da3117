//! A rounded row.

use crate::cpu::simd::round;

/// Elements whose products are added in 32 bits: those of 16384 rounded elements with int8 fit, in each of eight lanes.
pub(super) const MOST_INPUTS: usize = 16384;

/// Rounds a row; returns its scale.
pub(super) struct Round<'a> {
    pub row: &'a [f32],
    /// The largest integer.
    pub most: f32,
    pub whole: &'a mut [i16],
}

impl pulp::WithSimd for Round<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _simd: S) -> f32 {
        round(self.row, self.most, self.whole, |whole| whole as i16)
    }
}
