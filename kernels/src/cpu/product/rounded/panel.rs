//! Weights of 32 outputs in the order of the instructions: of each 4 inputs, those of 16 outputs next to each other.

use std::arch::x86_64::{
    __m512i, _mm512_dpbusd_epi32, _mm512_maskz_loadu_epi8, _mm512_set1_epi8, _mm512_setzero_si512,
    _mm512_shuffle_i32x4, _mm512_storeu_si512, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32,
    _mm512_unpacklo_epi64,
};

use super::rows::{STEP, Segment};
use crate::cpu::product::int8::Int8Matrix;

/// Outputs of a vector.
pub(super) const LANES: usize = 16;
/// Vectors of a panel.
pub(super) const VECTORS: usize = 2;
/// Outputs of a panel.
pub(super) const OUTPUTS: usize = LANES * VECTORS;

/// Packs the weights of a segment and the outputs `first..first + count`, and returns the sum of each output; zeros for the outputs after the
/// last. `place` is `[VECTORS, steps · STEP / 4, LANES, 4]`.
///
/// # Panics
/// If `place` has another length, or the matrix has no such outputs.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn pack(
    matrix: &Int8Matrix<'_>,
    segment: &Segment,
    (first, count): (usize, usize),
    place: &mut [i8],
) -> [i32; OUTPUTS] {
    let vector = segment.steps() * STEP * LANES;
    assert_eq!(place.len(), VECTORS * vector);
    let mut sums = [0; OUTPUTS];
    let ones = _mm512_set1_epi8(1);
    for (at, place) in place.chunks_exact_mut(vector).enumerate() {
        let mut own = _mm512_setzero_si512();
        for (step, place) in place.chunks_exact_mut(STEP * LANES).enumerate() {
            let start = segment.inputs.start + step * STEP;
            let len = STEP.min(segment.inputs.end - start);
            let mask = u64::MAX >> (STEP - len);
            let rows: [__m512i; LANES] = std::array::from_fn(|lane| {
                let output = at * LANES + lane;
                if output >= count {
                    return _mm512_setzero_si512();
                }
                let run = &matrix.elements[(first + output) * matrix.inputs + start..][..len];
                // SAFETY: the mask has the bytes of `run` and no others.
                unsafe { _mm512_maskz_loadu_epi8(mask, run.as_ptr()) }
            });
            for (column, place) in transposed(rows).into_iter().zip(place.as_chunks_mut::<STEP>().0) {
                own = _mm512_dpbusd_epi32(own, ones, column);
                // SAFETY: the place has 64 bytes.
                unsafe { _mm512_storeu_si512(place.as_mut_ptr().cast(), column) };
            }
        }
        let sums = &mut sums[at * LANES..][..LANES];
        // SAFETY: there is room for 16 sums.
        unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), own) };
    }
    sums
}

/// A matrix of 16 times 16 words, transposed.
#[target_feature(enable = "avx512f")]
fn transposed(rows: [__m512i; LANES]) -> [__m512i; LANES] {
    let zero = _mm512_setzero_si512();
    // Pairs of rows, then groups of four: in each quarter of register 4·g + j column j of that quarter, for four rows.
    let (mut pairs, mut fours) = ([zero; LANES], [zero; LANES]);
    for at in (0..LANES).step_by(2) {
        pairs[at] = _mm512_unpacklo_epi32(rows[at], rows[at + 1]);
        pairs[at + 1] = _mm512_unpackhi_epi32(rows[at], rows[at + 1]);
    }
    for at in (0..LANES).step_by(4) {
        fours[at] = _mm512_unpacklo_epi64(pairs[at], pairs[at + 2]);
        fours[at + 1] = _mm512_unpackhi_epi64(pairs[at], pairs[at + 2]);
        fours[at + 2] = _mm512_unpacklo_epi64(pairs[at + 1], pairs[at + 3]);
        fours[at + 3] = _mm512_unpackhi_epi64(pairs[at + 1], pairs[at + 3]);
    }
    let mut columns = [zero; LANES];
    for j in 0..4 {
        // Quarters 0 and 2, and 1 and 3, of eight rows each.
        let even = _mm512_shuffle_i32x4::<0x88>(fours[j], fours[4 + j]);
        let odd = _mm512_shuffle_i32x4::<0xdd>(fours[j], fours[4 + j]);
        let (even_last, odd_last) = (
            _mm512_shuffle_i32x4::<0x88>(fours[8 + j], fours[12 + j]),
            _mm512_shuffle_i32x4::<0xdd>(fours[8 + j], fours[12 + j]),
        );
        columns[j] = _mm512_shuffle_i32x4::<0x88>(even, even_last);
        columns[4 + j] = _mm512_shuffle_i32x4::<0x88>(odd, odd_last);
        columns[8 + j] = _mm512_shuffle_i32x4::<0xdd>(even, even_last);
        columns[12 + j] = _mm512_shuffle_i32x4::<0xdd>(odd, odd_last);
    }
    columns
}
