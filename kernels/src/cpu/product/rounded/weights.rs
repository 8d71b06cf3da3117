//! Weights of 32 outputs, packed, and their sums.

use std::arch::x86_64::{_mm512_dpbusd_epi32, _mm512_set1_epi8, _mm512_storeu_si512};

use super::rows::Segment;
use crate::cpu::product::int8::Int8Matrix;
use crate::cpu::product::panel::{LANES, OUTPUTS, STEP, pack};

/// Packs the weights of a segment and the outputs `first..first + count`, and returns the sum of each output; zeros for the outputs after the
/// last. `place` is that of [`pack`].
///
/// # Panics
/// If `place` has another length than the segment, or the matrix has no such outputs.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn pack_segment(
    matrix: &Int8Matrix<'_>,
    segment: &Segment,
    (first, count): (usize, usize),
    place: &mut [i8],
) -> [i32; OUTPUTS] {
    assert_eq!(place.len(), segment.steps() * STEP * OUTPUTS);
    let runs = std::array::from_fn(|output| match output < count {
        true => bytemuck::cast_slice(&matrix.run(first + output).0[segment.inputs.clone()]),
        false => &[],
    });
    let ones = _mm512_set1_epi8(1);
    let totals = pack(&runs, bytemuck::cast_slice_mut(place), |total, column| _mm512_dpbusd_epi32(total, ones, column));
    let mut sums = [0; OUTPUTS];
    for (sums, total) in sums.as_chunks_mut::<LANES>().0.iter_mut().zip(totals) {
        // SAFETY: there is room for 16 sums.
        unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), total) };
    }
    sums
}
