//! Rows that are rounded to 16 or 8 bits.

use std::arch::x86_64::{
    __m256, _mm256_castpd_ps, _mm256_castps_pd, _mm256_loadu_ps, _mm256_permute4x64_pd, _mm256_shuffle_ps,
};

use pulp::{Arch, Simd, WithSimd};

use crate::cpu::scratch::{Disjoint, with_scratch};
use crate::cpu::simd::round;
use crate::cpu::threads;

/// Elements that share a scale.
pub(super) const CHUNK: usize = 32;

/// Elements whose scales are read together, and the largest block.
pub(super) const GROUP: usize = 256;

/// Rows that a task rounds: a few take less time than to start it.
const ROWS: usize = 8;

/// What elements are rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bits {
    /// Integers up to 127.
    Eight,
    /// Integers up to 32767.
    Sixteen,
}

impl Bits {
    /// The largest integer. Two products of 16 bits with 8 fit into 24 bits, so that f32 has them exactly.
    pub(super) fn largest(self) -> f32 {
        match self {
            Self::Eight => 127.0,
            Self::Sixteen => 32767.0,
        }
    }
}

/// Rounded rows of a whole number of chunks.
pub(super) struct Rows<'a> {
    inputs: usize,
    /// `[rows, inputs]`.
    whole: &'a [i16],
    /// `[rows, groups, 8, 2]`: what the elements of a chunk are multiplied by, and their sum.
    factors: &'a [f32],
    /// `[rows, groups, 16]`: sums of 16 elements each.
    sums: &'a [f32],
}

/// A rounded row.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) whole: &'a [i16],
    factors: &'a [[f32; 2]],
    sums: &'a [f32],
}

/// Factors of a group of a row.
#[derive(Clone, Copy)]
pub(super) struct RowGroup<'a> {
    /// What the elements of a chunk are multiplied by, and their sum.
    pub(super) factors: &'a [[f32; 2]; 8],
    /// Sums of 16 elements each.
    pub(super) sums: &'a [f32; 16],
}

impl RowGroup<'_> {
    /// What the elements of each chunk are multiplied by, and their sums.
    ///
    /// # Safety
    /// The processor has AVX2.
    #[inline(always)]
    pub(super) unsafe fn vectors(&self) -> [__m256; 2] {
        let factors = self.factors.as_flattened();
        // SAFETY: the caller has AVX2, and there are 16 factors.
        unsafe {
            let (one, other) = (_mm256_loadu_ps(factors.as_ptr()), _mm256_loadu_ps(factors[8..].as_ptr()));
            let [factors, sums] = [_mm256_shuffle_ps::<0x88>(one, other), _mm256_shuffle_ps::<0xdd>(one, other)];
            let in_order = |pairs| _mm256_castpd_ps(_mm256_permute4x64_pd::<0xd8>(_mm256_castps_pd(pairs)));
            [in_order(factors), in_order(sums)]
        }
    }
}

impl<'a> Row<'a> {
    #[inline(always)]
    pub(super) fn group(&self, group: usize) -> RowGroup<'a> {
        RowGroup { factors: &self.factors.as_chunks().0[group], sums: &self.sums.as_chunks().0[group] }
    }
}

impl Rows<'_> {
    /// Rounds rows of `inputs` elements. A chunk with an infinity or NaN has NaN for its scale.
    pub(super) fn with<R>(input: &[f32], inputs: usize, bits: Bits, work: impl FnOnce(&Rows<'_>) -> R) -> R {
        let (rows, groups) = (input.len() / inputs, inputs.div_ceil(GROUP));
        // Two integers in the place of each float.
        let words = inputs / 2;
        with_scratch(rows * (words + groups * 32), |scratch| {
            let (whole, rest) = scratch.split_at_mut(rows * words);
            let (factors, sums) = rest.split_at_mut(rows * groups * 16);
            let whole: &mut [i16] = bytemuck::cast_slice_mut(whole);
            let (wholes, all_factors) = (Disjoint::new(whole), Disjoint::new(factors));
            threads::each_part(sums, ROWS * groups * 16, |part, sums| {
                for (row, sums) in (part * ROWS..).zip(sums.chunks_exact_mut(groups * 16)) {
                    // SAFETY: every row has its own places.
                    let (whole, factors) = unsafe {
                        (wholes.part(row * inputs, inputs), all_factors.part(row * groups * 16, groups * 16))
                    };
                    let factors = factors.as_chunks_mut().0;
                    let row = &input[row * inputs..][..inputs];
                    Arch::new().dispatch(Round { row, bits, whole, factors, sums });
                }
            });
            work(&Rows { inputs, whole, factors, sums })
        })
    }

    pub(super) fn count(&self) -> usize {
        self.whole.len() / self.inputs
    }

    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> Row<'_> {
        let groups = self.inputs.div_ceil(GROUP);
        Row {
            whole: &self.whole[row * self.inputs..][..self.inputs],
            factors: self.factors[row * groups * 16..][..groups * 16].as_chunks().0,
            sums: &self.sums[row * groups * 16..][..groups * 16],
        }
    }
}

struct Round<'a> {
    row: &'a [f32],
    bits: Bits,
    whole: &'a mut [i16],
    factors: &'a mut [[f32; 2]],
    sums: &'a mut [f32],
}

impl WithSimd for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self { row, bits, whole, factors, sums } = self;
        // Chunks of the last group that the row does not have.
        factors[row.len() / CHUNK..].fill([0.0; 2]);
        sums[row.len() / 16..].fill(0.0);
        let chunks = row.as_chunks::<CHUNK>().0.iter().zip(whole.as_chunks_mut::<CHUNK>().0);
        for (((row, whole), factors), sums) in chunks.zip(factors).zip(sums.as_chunks_mut::<2>().0) {
            let scale = round(row, bits.largest(), whole, |whole| whole as i16);
            for (sum, whole) in sums.iter_mut().zip(whole.as_chunks::<16>().0) {
                *sum = whole.iter().map(|&whole| i32::from(whole)).sum::<i32>() as f32 * scale;
            }
            *factors = [scale, sums[0] + sums[1]];
        }
    }
}

/// Writes the floats that a row is rounded to.
pub(super) struct ToFloats<'a> {
    pub(super) row: &'a [f32],
    pub(super) bits: Bits,
    pub(super) floats: &'a mut [f32],
}

impl WithSimd for ToFloats<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let chunks = self.row.as_chunks::<CHUNK>().0.iter().zip(self.floats.as_chunks_mut::<CHUNK>().0);
        for (row, floats) in chunks {
            let scale = round(row, self.bits.largest(), floats, |whole| whole as f32);
            floats.iter_mut().for_each(|float| *float *= scale);
        }
    }
}
