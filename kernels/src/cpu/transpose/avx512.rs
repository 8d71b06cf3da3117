//! Squares of 16 rows and columns with AVX-512. Masks leave out what a square has beyond the rows and features.

use std::arch::x86_64::{
    __m512i, __mmask16, _mm512_mask_storeu_epi32, _mm512_maskz_loadu_epi32, _mm512_setzero_si512, _mm512_shuffle_i32x4,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

/// Rows and columns of a square.
const SIDE: usize = 16;

/// [`into_lanes`](super::into_lanes).
#[target_feature(enable = "avx512f")]
pub(super) fn into_lanes<'a>(row: impl Fn(usize) -> &'a [f32], lanes: usize, into: &mut [f32]) {
    if into.is_empty() {
        return;
    }
    let features = into.len() / lanes;
    for lane in (0..lanes).step_by(SIDE) {
        let own = SIDE.min(lanes - lane);
        // A square has the last row again instead of those after it.
        let rows: [*const f32; SIDE] = std::array::from_fn(|n| {
            let row = row(lane + n.min(own - 1));
            assert!(row.len() >= features, "`into_lanes`: row {} has fewer than {features} features", lane + n);
            row.as_ptr()
        });
        let places = into[lane..].as_mut_ptr();
        for first in (0..features).step_by(SIDE) {
            let count = SIDE.min(features - first);
            let mut square = [_mm512_setzero_si512(); SIDE];
            for (register, row) in square.iter_mut().zip(rows) {
                // SAFETY: the row has the features of the mask.
                *register = unsafe { _mm512_maskz_loadu_epi32(mask(count), row.add(first).cast()) };
            }
            for (n, register) in transposed(square).into_iter().enumerate() {
                if n < count {
                    // SAFETY: the feature has the lanes of the mask.
                    unsafe { _mm512_mask_storeu_epi32(places.add((first + n) * lanes).cast(), mask(own), register) };
                }
            }
        }
    }
}

/// [`out_of_lanes`](super::out_of_lanes).
#[target_feature(enable = "avx512f")]
pub(super) fn out_of_lanes<'a>(from: &[f32], lanes: usize, count: usize, row: impl Fn(usize) -> &'a mut [f32]) {
    assert!(count <= lanes, "`out_of_lanes`: {count} rows of {lanes} lanes");
    if from.is_empty() {
        return;
    }
    let features = from.len() / lanes;
    for lane in (0..count).step_by(SIDE) {
        let own = SIDE.min(count - lane);
        let mut rows = [std::ptr::null_mut::<f32>(); SIDE];
        for (n, place) in rows[..own].iter_mut().enumerate() {
            let row = row(lane + n);
            assert!(row.len() >= features, "`out_of_lanes`: row {} has fewer than {features} features", lane + n);
            *place = row.as_mut_ptr();
        }
        let elements = from[lane..].as_ptr();
        for first in (0..features).step_by(SIDE) {
            let count = SIDE.min(features - first);
            let mut square = [_mm512_setzero_si512(); SIDE];
            for (n, register) in square.iter_mut().enumerate() {
                // A square has the last feature again instead of those after it.
                let at = (first + n.min(count - 1)) * lanes;
                // SAFETY: the feature has the lanes of the mask.
                *register = unsafe { _mm512_maskz_loadu_epi32(mask(own), elements.add(at).cast()) };
            }
            for (n, register) in transposed(square).into_iter().enumerate() {
                if n < own {
                    // SAFETY: the row has the features of the mask.
                    unsafe { _mm512_mask_storeu_epi32(rows[n].add(first).cast(), mask(count), register) };
                }
            }
        }
    }
}

/// The first `count` elements of a register, of which there are 1 to [`SIDE`].
#[inline]
fn mask(count: usize) -> __mmask16 {
    __mmask16::MAX >> (SIDE - count)
}

/// A matrix of 16 times 16 words, transposed.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::cpu) fn transposed(rows: [__m512i; SIDE]) -> [__m512i; SIDE] {
    let zero = _mm512_setzero_si512();
    // Pairs of rows, then groups of four: in each quarter of register 4·g + j column j of that quarter, for four rows.
    let (mut pairs, mut fours) = ([zero; SIDE], [zero; SIDE]);
    for at in (0..SIDE).step_by(2) {
        pairs[at] = _mm512_unpacklo_epi32(rows[at], rows[at + 1]);
        pairs[at + 1] = _mm512_unpackhi_epi32(rows[at], rows[at + 1]);
    }
    for at in (0..SIDE).step_by(4) {
        fours[at] = _mm512_unpacklo_epi64(pairs[at], pairs[at + 2]);
        fours[at + 1] = _mm512_unpackhi_epi64(pairs[at], pairs[at + 2]);
        fours[at + 2] = _mm512_unpacklo_epi64(pairs[at + 1], pairs[at + 3]);
        fours[at + 3] = _mm512_unpackhi_epi64(pairs[at + 1], pairs[at + 3]);
    }
    let mut columns = [zero; SIDE];
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
