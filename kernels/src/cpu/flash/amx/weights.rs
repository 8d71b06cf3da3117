//! The softmax, and weights as pairs of bf16.

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _CMP_NEQ_UQ, _CMP_NLT_UQ, _MM_FROUND_TO_NEAREST_INT, _mm512_add_ps, _mm512_and_si512,
    _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_cvtne2ps_pbh, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_maskz_mov_ps, _mm512_maskz_scalef_ps, _mm512_max_ps, _mm512_mul_ps, _mm512_permutexvar_epi16,
    _mm512_reduce_ps, _mm512_set_epi16, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32,
    _mm512_storeu_ps, _mm512_storeu_si512, _mm512_sub_ps,
};

use super::{HALF, LANES, SIDE, Tile};
use crate::cpu::simd::{POWERS, SMALLEST};

/// Parts of a weight.
pub(super) const PARTS: usize = 2;

/// Vectors of the lanes.
const COLUMNS: usize = LANES / HALF;

/// Whether the processor has the instructions that round.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
}

/// How scores become weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct Softmax {
    /// What scores are multiplied by: log2 e, and more than 0.
    pub factor: f32,
    /// Whether scores are replaced by weights.
    pub keeps_weights: bool,
}

/// Makes weights of scores relative to the new maxima, and rounds them to the sum of two bf16. Returns the factors for the sums of earlier keys.
///
/// The scores are those of whole steps of keys, `[keys, LANES]`; hidden ones are minus infinity. `tiles` is `[LANES / 16, PARTS, steps]`, the smaller part
/// first.
///
/// # Panics
/// If `tiles` has another length.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
pub(super) fn soften(
    Softmax { factor, keeps_weights }: Softmax,
    scores: &mut [f32],
    [maxima, sums]: [&mut [f32; LANES]; 2],
    tiles: &mut [Tile],
) -> [f32; LANES] {
    let steps = scores.len() / (SIDE * LANES);
    assert!(steps > 0 && tiles.len() == COLUMNS * PARTS * steps);
    let rows = scores.as_chunks_mut::<LANES>().0;
    let hidden = _mm512_set1_ps(f32::NEG_INFINITY);
    let mut largest = [hidden; COLUMNS];
    for row in &*rows {
        for (column, largest) in largest.iter_mut().enumerate() {
            *largest = _mm512_max_ps(*largest, load(row, column));
        }
    }
    let factor = _mm512_set1_ps(factor);
    let mut factors = [0.0; LANES];
    let (mut minus_max, mut totals) = ([hidden; COLUMNS], [hidden; COLUMNS]);
    for column in 0..COLUMNS {
        let before = load(maxima, column);
        let max = _mm512_max_ps(before, _mm512_mul_ps(largest[column], factor));
        // If all scores are hidden, the weights are 2^(-inf - 0).
        let base = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(max, hidden), max);
        minus_max[column] = _mm512_sub_ps(_mm512_setzero_ps(), base);
        let own = exp2(_mm512_sub_ps(before, base));
        totals[column] = _mm512_mul_ps(load(sums, column), own);
        store(maxima, column, max);
        store(&mut factors, column, own);
    }
    let upper_half = _mm512_set1_epi32(0xffff_0000u32 as i32);
    for (at, [even, odd]) in rows.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let (step, pair) = (at / HALF, at % HALF);
        for column in 0..COLUMNS {
            let [one, other] =
                [&*even, &*odd].map(|row| exp2(_mm512_fmadd_ps(load(row, column), factor, minus_max[column])));
            totals[column] = _mm512_add_ps(_mm512_add_ps(totals[column], one), other);
            if keeps_weights {
                store(even, column, one);
                store(odd, column, other);
            }
            let first = interleaved(_mm512_cvtne2ps_pbh(other, one));
            // Exact.
            let one = _mm512_sub_ps(one, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(first)));
            let other = _mm512_sub_ps(other, _mm512_castsi512_ps(_mm512_and_si512(first, upper_half)));
            let second = interleaved(_mm512_cvtne2ps_pbh(other, one));
            for (part, words) in [second, first].into_iter().enumerate() {
                let place = &mut tiles[(column * PARTS + part) * steps + step].0[pair];
                // SAFETY: the place has 64 bytes.
                unsafe { _mm512_storeu_si512(place.as_mut_ptr().cast(), words) };
            }
        }
    }
    for (column, total) in totals.into_iter().enumerate() {
        store(sums, column, total);
    }
    factors
}

/// The lanes of a column.
#[target_feature(enable = "avx512f")]
#[inline]
fn load(row: &[f32; LANES], column: usize) -> __m512 {
    let own: &[f32; HALF] = &row.as_chunks().0[column];
    // SAFETY: they are 16.
    unsafe { _mm512_loadu_ps(own.as_ptr()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(row: &mut [f32; LANES], column: usize, vector: __m512) {
    let own: &mut [f32; HALF] = &mut row.as_chunks_mut().0[column];
    // SAFETY: they are 16.
    unsafe { _mm512_storeu_ps(own.as_mut_ptr(), vector) };
}

/// The function of the same name in `simd`, with instructions that split a number and that set its exponent.
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn exp2(x: __m512) -> __m512 {
    // By comparison: a NaN passes.
    let some = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(SMALLEST));
    // 0 for an infinity.
    let rest = _mm512_reduce_ps::<_MM_FROUND_TO_NEAREST_INT>(x);
    let mut power = _mm512_set1_ps(POWERS[0]);
    for coefficient in &POWERS[1..] {
        power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(*coefficient));
    }
    let power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(1.0));
    _mm512_maskz_scalef_ps(some, power, _mm512_sub_ps(x, rest))
}

/// Numbers of the lower half next to those of the upper half.
#[target_feature(enable = "avx512f,avx512bw")]
fn interleaved(numbers: __m512bh) -> __m512i {
    let order = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1,
        16, 0,
    );
    // SAFETY: both types are 64 bytes of any contents.
    let words: __m512i = unsafe { std::mem::transmute(numbers) };
    _mm512_permutexvar_epi16(order, words)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores of two steps, of which some are hidden; the last lane sees nothing.
    fn scores() -> Vec<f32> {
        let number = |at: usize| (at.wrapping_mul(2_654_435_761) & 0xffff_ffff) as f32 / 4_294_967_296.0;
        let is_hidden = |at: usize| at % LANES == LANES - 1 || at.is_multiple_of(7);
        let score = |at| if is_hidden(at) { f32::NEG_INFINITY } else { 40.0 * number(at) - 30.0 };
        (0..2 * SIDE * LANES).map(score).collect()
    }

    #[test]
    fn weights_are_those_of_the_softmax_within_a_unit_of_their_last_bit() {
        if !is_available() {
            return;
        }
        let (scores, softmax) = (scores(), Softmax { factor: 1.25, keeps_weights: true });
        let (mut maxima, mut sums) = ([f32::NEG_INFINITY; LANES], [0.0; LANES]);
        // Earlier keys.
        (maxima[1], sums[1], maxima[2], sums[2]) = (3.0, 2.0, 30.0, 2.0);
        let mut weights = scores.clone();
        let mut tiles = vec![Tile::default(); COLUMNS * PARTS * 2];
        // SAFETY: the processor has the instructions.
        let factors = unsafe { soften(softmax, &mut weights, [&mut maxima, &mut sums], &mut tiles) };
        for lane in 0..LANES {
            let own = || scores[lane..].iter().step_by(LANES).map(|score| f64::from(*score) * 1.25);
            let (before, sum) = [(f64::NEG_INFINITY, 0.0), (3.0, 2.0), (30.0, 2.0)][if lane < 3 { lane } else { 0 }];
            let max = own().fold(before, f64::max);
            let base = if max == f64::NEG_INFINITY { 0.0 } else { max };
            let mut total = sum * (before - base).exp2();
            assert!((f64::from(factors[lane]) - (before - base).exp2()).abs() < 1e-6);
            assert_eq!(f64::from(maxima[lane]), max);
            for (key, score) in own().enumerate() {
                let (weight, expected) = (f64::from(weights[key * LANES + lane]), (score - base).exp2());
                // The difference of scores near 40 is off by 4e-6.
                assert!((weight - expected).abs() <= 4e-6 * expected, "{weight}, expected {expected}");
                total += expected;
                let number = |part: usize| {
                    let tile = tiles[(lane / HALF * PARTS + part) * 2 + key / SIDE];
                    f32::from_bits(u32::from(tile.numbers()[key % SIDE / 2][2 * (lane % HALF) + key % 2]) << 16)
                };
                let error = f64::from(number(0)) + f64::from(number(1)) - weight;
                assert!(error.abs() <= weight * 2f64.powi(-17), "{weight}: {error}");
            }
            assert!((f64::from(sums[lane]) - total).abs() <= 4e-6 * total, "{}, expected {total}", sums[lane]);
        }
        assert_eq!((maxima[LANES - 1], sums[LANES - 1]), (f32::NEG_INFINITY, 0.0));
    }

    #[test]
    fn scores_stay_if_weights_are_not_kept_and_nan_reaches_the_sum() {
        if !is_available() {
            return;
        }
        let mut scores = scores();
        scores[5 * LANES + 3] = f32::NAN;
        let (mut maxima, mut sums) = ([f32::NEG_INFINITY; LANES], [0.0; LANES]);
        let (mut kept, mut tiles) = (scores.clone(), vec![Tile::default(); COLUMNS * PARTS * 2]);
        let softmax = Softmax { factor: 1.0, keeps_weights: false };
        // SAFETY: the processor has the instructions.
        unsafe { soften(softmax, &mut kept, [&mut maxima, &mut sums], &mut tiles) };
        assert!(kept.iter().zip(&scores).all(|(kept, score)| kept.to_bits() == score.to_bits()));
        assert!(sums.iter().enumerate().all(|(lane, sum)| sum.is_nan() == (lane == 3)));
    }
}
