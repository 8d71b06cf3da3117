//! Weights as pairs of bf16.

use std::arch::x86_64::{
    __m512bh, __m512i, _mm512_and_si512, _mm512_castsi512_ps, _mm512_cvtne2ps_pbh, _mm512_loadu_ps,
    _mm512_permutexvar_epi16, _mm512_set_epi16, _mm512_set1_epi32, _mm512_slli_epi32, _mm512_storeu_si512,
    _mm512_sub_ps,
};

use super::{HALF, LANES, SIDE, Tile};

/// Parts of a weight.
pub(super) const PARTS: usize = 2;

/// Whether the processor has the instructions that round.
pub(super) fn is_available() -> bool {
    std::arch::is_x86_feature_detected!("avx512bf16") && std::arch::is_x86_feature_detected!("avx512bw")
}

/// Rounds the weights of whole steps of keys, `[keys, LANES]`, to the sum of two bf16. `tiles` is `[LANES / 16, PARTS, steps]`, the smaller part first.
///
/// # Panics
/// If `tiles` has another length.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn pack_weights(weights: &[f32], tiles: &mut [Tile]) {
    let steps = weights.len() / (SIDE * LANES);
    assert!(steps > 0 && tiles.len() == LANES / HALF * PARTS * steps);
    let upper_half = _mm512_set1_epi32(0xffff_0000u32 as i32);
    for (at, rows) in weights.as_chunks::<{ 2 * LANES }>().0.iter().enumerate() {
        let (step, pair) = (at / HALF, at % HALF);
        for column in 0..LANES / HALF {
            // SAFETY: both rows have these lanes.
            let [even, odd] = unsafe {
                [rows.as_ptr().add(HALF * column), rows.as_ptr().add(LANES + HALF * column)]
                    .map(|row| _mm512_loadu_ps(row))
            };
            let first = interleaved(_mm512_cvtne2ps_pbh(odd, even));
            // Exact.
            let even = _mm512_sub_ps(even, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(first)));
            let odd = _mm512_sub_ps(odd, _mm512_castsi512_ps(_mm512_and_si512(first, upper_half)));
            let second = interleaved(_mm512_cvtne2ps_pbh(odd, even));
            for (part, words) in [second, first].into_iter().enumerate() {
                let place = &mut tiles[(column * PARTS + part) * steps + step].0[pair];
                // SAFETY: the place has 64 bytes.
                unsafe { _mm512_storeu_si512(place.as_mut_ptr().cast(), words) };
            }
        }
    }
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

    #[test]
    fn a_weight_is_off_by_at_most_a_unit_of_its_last_bit() {
        if !is_available() {
            return;
        }
        let keys = 2 * SIDE;
        let weights: Vec<f32> = (0..keys * LANES)
            .map(|at| (at.wrapping_mul(2_654_435_761) & 0xffff_ffff) as f32 / 4_294_967_296.0)
            .collect();
        let mut tiles = vec![Tile::default(); LANES / HALF * PARTS * 2];
        // SAFETY: the processor has the instructions.
        unsafe { pack_weights(&weights, &mut tiles) };
        for (at, weight) in weights.iter().enumerate() {
            let (key, lane) = (at / LANES, at % LANES);
            let number = |part: usize| {
                let tile = tiles[(lane / HALF * PARTS + part) * 2 + key / SIDE];
                f32::from_bits(u32::from(tile.numbers()[key % SIDE / 2][2 * (lane % HALF) + key % 2]) << 16)
            };
            let error = f64::from(number(0)) + f64::from(number(1)) - f64::from(*weight);
            assert!(error.abs() <= f64::from(*weight) * 2f64.powi(-17), "{weight}: {error}");
        }
    }
}
