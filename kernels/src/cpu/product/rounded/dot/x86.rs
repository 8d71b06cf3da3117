//! Pairs of products on AVX2, and added to the sums as well by AVX-VNNI and AVX-512 VNNI.

use std::arch::x86_64::{
    __m256i, __m512i, _mm256_add_epi32, _mm256_dpwssd_avx_epi32, _mm256_madd_epi16, _mm256_setzero_si256,
    _mm256_storeu_si256, _mm512_add_epi64, _mm512_castsi512_si256, _mm512_cvtepi32_epi64, _mm512_dpwssd_epi32,
    _mm512_extracti64x4_epi64, _mm512_reduce_add_epi64, _mm512_setzero_si512,
};

use burn_deepspeed_core::data_type::InputBits;

use super::whole::{PAIR, QUAD, Whole, rest};
use crate::cpu::x86::{has_avx_vnni, has_avx512_vnni};

/// Leaves the integers as they are.
pub fn arrange(_row: &mut [i16], _bits: InputBits) {}

/// Whether weights stay bytes for any number of rows.
pub fn reads_bytes() -> bool {
    false
}

/// Rows that are multiplied together.
pub fn most_rows() -> usize {
    if has_avx512_vnni() { QUAD } else { PAIR }
}

/// The products of the runs and each of the rows, which have their length.
pub fn dot<E: Whole, const N: usize, const M: usize>(
    runs: [&[E]; N],
    rows: [&[i16]; M],
    _bits: InputBits,
) -> [[i64; N]; M] {
    if has_avx512_vnni() {
        // SAFETY: the processor has the instructions.
        return unsafe { avx512(runs, rows) };
    }
    if has_avx_vnni() {
        // SAFETY: as above.
        return unsafe { avx_vnni(runs, rows) };
    }
    // SAFETY: the processor has AVX2: `rounded_product` has checked it.
    unsafe { avx2(runs, rows) }
}

/// The products by each way that this processor has.
#[cfg(test)]
pub fn every<const N: usize, const M: usize>(
    runs: [&[i8]; N],
    rows: [&[i16]; M],
    _bits: InputBits,
) -> Vec<(&'static str, [[i64; N]; M])> {
    let mut found = Vec::new();
    // SAFETY: each is called if the processor has the instructions.
    unsafe {
        if std::arch::is_x86_feature_detected!("avx2") {
            found.push(("AVX2", avx2(runs, rows)));
        }
        if has_avx_vnni() {
            found.push(("AVX-VNNI", avx_vnni(runs, rows)));
        }
        if has_avx512_vnni() {
            found.push(("AVX-512 VNNI", avx512(runs, rows)));
        }
    }
    found
}

/// A function that multiplies `$lanes` elements at a time.
macro_rules! dot_loop {
    ($name:ident, $features:literal, $lanes:literal, $load:ident, $zero:ident, $add:expr, $sum:ident) => {
        #[target_feature(enable = $features)]
        #[allow(clippy::needless_range_loop, reason = "several slices at one index")]
        fn $name<E: Whole, const N: usize, const M: usize>(runs: [&[E]; N], rows: [&[i16]; M]) -> [[i64; N]; M] {
            let len = rows[0].len();
            assert!(runs.iter().all(|run| run.len() == len) && rows.iter().all(|row| row.len() == len));
            let whole = len / $lanes * $lanes;
            let mut sums = [[$zero(); N]; M];
            for at in (0..whole).step_by($lanes) {
                let mut own = [$zero(); M];
                for m in 0..M {
                    // SAFETY: every row, and every run, has the elements of whole vectors, and the processor the instructions.
                    own[m] = unsafe { i16::$load(rows[m], at) };
                }
                for n in 0..N {
                    // SAFETY: as above.
                    let weights = unsafe { E::$load(runs[n], at) };
                    for m in 0..M {
                        sums[m][n] = $add(sums[m][n], weights, own[m]);
                    }
                }
            }
            let mut totals = [[0; N]; M];
            for m in 0..M {
                for n in 0..N {
                    totals[m][n] = $sum(sums[m][n]) + rest(&runs[n][whole..], &rows[m][whole..]);
                }
            }
            totals
        }
    };
}

dot_loop!(avx2, "avx2", 16, load, _mm256_setzero_si256, add_pairs, sum);
dot_loop!(avx_vnni, "avx2,avxvnni", 16, load, _mm256_setzero_si256, _mm256_dpwssd_avx_epi32, sum);
dot_loop!(avx512, "avx512f,avx512bw,avx512vnni", 32, load_wide, _mm512_setzero_si512, _mm512_dpwssd_epi32, sum_wide);

#[target_feature(enable = "avx2")]
#[inline]
fn add_pairs(sum: __m256i, weights: __m256i, row: __m256i) -> __m256i {
    _mm256_add_epi32(sum, _mm256_madd_epi16(weights, row))
}

#[target_feature(enable = "avx2")]
#[inline]
fn sum(vector: __m256i) -> i64 {
    let mut lanes = [0i32; 8];
    // SAFETY: there is room for eight lanes.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), vector) };
    lanes.into_iter().map(i64::from).sum()
}

#[target_feature(enable = "avx512f")]
#[inline]
fn sum_wide(vector: __m512i) -> i64 {
    let low = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(vector));
    let high = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64::<1>(vector));
    _mm512_reduce_add_epi64(_mm512_add_epi64(low, high))
}
