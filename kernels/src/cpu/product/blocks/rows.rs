//! Rows that are rounded to 16 bits.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::cpu::scratch::with_scratch;
use crate::cpu::simd::round;

/// Elements that share a scale.
pub(super) const CHUNK: usize = 32;

/// Elements whose scales are read together, and the largest block.
pub(super) const GROUP: usize = 256;

/// Fewest rows that a thread rounds.
const ROWS: usize = 8;

/// Largest element. Two products with 8 bits fit into 24 bits, so that f32 has them exactly.
const LARGEST: f32 = 32767.0;

/// Rounded rows of a whole number of chunks.
pub(super) struct Rows<'a> {
    inputs: usize,
    /// `[rows, inputs]`.
    whole: &'a [i16],
    /// `[rows, groups, 8]`: what an element is multiplied by.
    scales: &'a [f32],
    /// `[rows, groups, 16]`: sums of 16 elements each.
    sums: &'a [f32],
}

/// A rounded row.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) whole: &'a [i16],
    pub(super) scales: &'a [[f32; 8]],
    pub(super) sums: &'a [[f32; 16]],
}

impl Rows<'_> {
    /// Rounds rows of `inputs` elements. A chunk with an infinity or NaN has NaN for its scale.
    pub(super) fn with<R>(input: &[f32], inputs: usize, work: impl FnOnce(&Rows<'_>) -> R) -> R {
        let (rows, groups) = (input.len() / inputs, inputs.div_ceil(GROUP));
        // Two integers in the place of each float.
        let words = inputs / 2;
        with_scratch(rows * (words + groups * 24), |scratch| {
            let (whole, rest) = scratch.split_at_mut(rows * words);
            let (scales, sums) = rest.split_at_mut(rows * groups * 8);
            let whole: &mut [i16] = bytemuck::cast_slice_mut(whole);
            let parts = whole.par_chunks_exact_mut(inputs).zip(input.par_chunks_exact(inputs));
            let factors = scales.par_chunks_exact_mut(groups * 8).zip(sums.par_chunks_exact_mut(groups * 16));
            // A few rows take less time than to wake another thread.
            parts.zip(factors).with_min_len(ROWS).for_each(|((whole, row), (scales, sums))| {
                Arch::new().dispatch(Round { row, whole, scales, sums });
            });
            work(&Rows { inputs, whole, scales, sums })
        })
    }

    pub(super) fn count(&self) -> usize {
        self.whole.len() / self.inputs
    }

    pub(super) fn row(&self, row: usize) -> Row<'_> {
        let groups = self.inputs.div_ceil(GROUP);
        Row {
            whole: &self.whole[row * self.inputs..][..self.inputs],
            scales: self.scales[row * groups * 8..][..groups * 8].as_chunks().0,
            sums: self.sums[row * groups * 16..][..groups * 16].as_chunks().0,
        }
    }
}

struct Round<'a> {
    row: &'a [f32],
    whole: &'a mut [i16],
    scales: &'a mut [f32],
    sums: &'a mut [f32],
}

impl WithSimd for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self { row, whole, scales, sums } = self;
        // Chunks of the last group that the row does not have.
        scales[row.len() / CHUNK..].fill(0.0);
        sums[row.len() / 16..].fill(0.0);
        let chunks = row.as_chunks::<CHUNK>().0.iter().zip(whole.as_chunks_mut::<CHUNK>().0);
        for (((row, whole), scale), sums) in chunks.zip(scales).zip(sums.as_chunks_mut::<2>().0) {
            *scale = round(row, LARGEST, whole, |whole| whole as i16);
            for (sum, whole) in sums.iter_mut().zip(whole.as_chunks::<16>().0) {
                *sum = whole.iter().map(|&whole| i32::from(whole)).sum::<i32>() as f32 * *scale;
            }
        }
    }
}
