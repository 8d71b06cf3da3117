//! Weights of 32 outputs, packed, and their sums.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_mm512_dpbusd_epi32, _mm512_set1_epi8, _mm512_storeu_si512};

use super::rows::Segment;
use crate::cpu::product::int8::Int8Matrix;
#[cfg(target_arch = "x86_64")]
use crate::cpu::product::panel::{LANES, is_available, pack};
use crate::cpu::product::panel::{OUTPUTS, STEP, pack_anywhere};

/// Packs the weights of a segment and the outputs `first..first + count`, and returns the sum of each output; zeros for the outputs after the
/// last. `place` is that of [`pack_anywhere`].
///
/// # Panics
/// If `place` has another length than the segment, or the matrix has no such outputs.
pub(super) fn pack_segment(
    matrix: &Int8Matrix<'_>,
    segment: &Segment,
    (first, count): (usize, usize),
    place: &mut [i8],
) -> [i32; OUTPUTS] {
    assert_eq!(place.len(), segment.steps() * STEP * OUTPUTS);
    let mut runs = [&[][..]; OUTPUTS];
    for (output, run) in runs[..count].iter_mut().enumerate() {
        *run = &matrix.run(first + output).0[segment.inputs.clone()];
    }
    #[cfg(target_arch = "x86_64")]
    if is_available() {
        // SAFETY: the processor has the instructions.
        return unsafe { packed(&runs.map(bytemuck::cast_slice), bytemuck::cast_slice_mut(place)) };
    }
    pack_anywhere(&runs.map(bytemuck::cast_slice), bytemuck::cast_slice_mut(place));
    runs.map(|run| run.iter().map(|weight| i32::from(*weight)).sum())
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn packed(runs: &[&[u8]; OUTPUTS], place: &mut [u8]) -> [i32; OUTPUTS] {
    let ones = _mm512_set1_epi8(1);
    let totals = pack(runs, place, |total, column| _mm512_dpbusd_epi32(total, ones, column));
    let mut sums = [0; OUTPUTS];
    for (sums, total) in sums.as_chunks_mut::<LANES>().0.iter_mut().zip(totals) {
        // SAFETY: there is room for 16 sums.
        unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), total) };
    }
    sums
}
