//! The products on AVX-512 VNNI, and on AVX-VNNI, which has half of its width.

use std::arch::x86_64::{
    __m256, __m256i, __m512, _mm256_add_ps, _mm256_cvtepi32_ps, _mm256_dpbusd_avx_epi32, _mm256_fmadd_ps,
    _mm256_hadd_ps, _mm256_loadu_si256, _mm256_mul_ps, _mm256_permute2f128_ps, _mm256_set1_epi8, _mm256_set1_ps,
    _mm256_setzero_ps, _mm256_setzero_si256, _mm256_storeu_ps, _mm256_storeu_si256, _mm256_sub_epi32, _mm256_xor_si256,
    _mm512_add_ps, _mm512_castpd_ps, _mm512_castps_pd, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_dpbusd_epi32,
    _mm512_fmadd_ps, _mm512_loadu_si512, _mm512_maskz_loadu_epi8, _mm512_mul_ps, _mm512_set1_epi8, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_f32x4, _mm512_storeu_ps, _mm512_storeu_si512,
    _mm512_sub_epi32, _mm512_sub_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
    _mm512_xor_si512,
};

use super::queries::{BYTES, FACTORS, Queries, WIDTH};
use crate::cpu::scratch::with_scratch;
use crate::cpu::slots::InSlots;
use crate::cpu::x86::{has_avx_vnni, has_avx512_vnni};

/// Keys whose sums are in registers.
const FOUR: usize = 4;

/// Lanes of the wider registers.
const LANES: usize = WIDTH / size_of::<i32>();

/// Adds 128 to a key, as a byte: the instructions multiply bytes that are not negative with int8. Sums therefore start from minus 128 times
/// the bytes of the query.
const SIGN: i8 = i8::MIN;

/// Lanes of the narrower registers, and keys whose scores fill one.
const KEYS: usize = LANES / 2;

/// Integers up to 2^22 are the last bits of numbers near this one, so a subtraction makes them floats.
const ZERO: f32 = ((1 << 23) + (1 << 22)) as f32;

/// Where the sums of a row start, for each of its bytes.
type Starts<const N: usize> = [[i32; N]; BYTES];

/// Bytes of the registers that are multiplied, if the processor has the instructions.
pub fn width() -> Option<usize> {
    match () {
        () if has_avx512_vnni() => Some(WIDTH),
        () if has_avx_vnni() => Some(WIDTH / 2),
        () => None,
    }
}

pub fn products<const INTERVAL: bool>(
    queries: &Queries<'_>,
    keys: InSlots<'_, i8, INTERVAL>,
    scores: &mut [f32],
    stride: usize,
) {
    if has_avx512_vnni() { wide(queries, keys, scores, stride) } else { narrow(queries, keys, scores, stride) }
}

/// Multiplies queries with keys.
#[cfg(test)]
type Engine<const INTERVAL: bool> = fn(&Queries<'_>, InSlots<'_, i8, INTERVAL>, &mut [f32], usize);

/// What multiplies, by each way that this processor has.
#[cfg(test)]
pub fn every<const INTERVAL: bool>() -> Vec<(&'static str, Engine<INTERVAL>)> {
    let mut found: Vec<(_, Engine<INTERVAL>)> = Vec::new();
    if has_avx_vnni() {
        found.push(("AVX-VNNI", narrow));
    }
    if has_avx512_vnni() {
        found.push(("AVX-512 VNNI", wide));
    }
    found
}

fn wide<const INTERVAL: bool>(
    queries: &Queries<'_>,
    keys: InSlots<'_, i8, INTERVAL>,
    scores: &mut [f32],
    stride: usize,
) {
    assert!(has_avx512_vnni(), "the processor has no AVX-512 VNNI");
    with_starts::<LANES>(queries, |starts| {
        // SAFETY: the processor has the instructions.
        unsafe { avx512(queries, starts, keys, scores, stride) }
    });
}

fn narrow<const INTERVAL: bool>(
    queries: &Queries<'_>,
    keys: InSlots<'_, i8, INTERVAL>,
    scores: &mut [f32],
    stride: usize,
) {
    assert!(has_avx_vnni(), "the processor has no AVX-VNNI");
    with_starts::<KEYS>(queries, |starts| {
        // SAFETY: the processor has the instructions.
        unsafe { avx_vnni(queries, starts, keys, scores, stride) }
    });
}

/// Lends memory for where the sums of each row start, in registers of `N` lanes.
fn with_starts<const N: usize>(queries: &Queries<'_>, work: impl FnOnce(&mut [Starts<N>])) {
    let rows = queries.scales.len();
    with_scratch(rows * BYTES * N, |scratch| {
        let starts: &mut [Starts<N>] = bytemuck::cast_slice_mut::<_, i32>(scratch).as_chunks_mut().0.as_chunks_mut().0;
        work(starts);
    });
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn avx512<const INTERVAL: bool>(
    queries: &Queries<'_>,
    starts: &mut [Starts<LANES>],
    keys: InSlots<'_, i8, INTERVAL>,
    scores: &mut [f32],
    stride: usize,
) {
    let (count, rows, steps) = (keys.count(), queries.scales.len(), queries.stride / WIDTH);
    let last = u64::MAX >> (queries.stride - queries.features);
    let (sign, zero) = (_mm512_set1_epi8(SIGN), _mm512_set1_ps(ZERO));
    for (row, starts) in starts.iter_mut().enumerate() {
        for (start, bytes) in starts.iter_mut().zip(queries.of_row(row)) {
            let mut sum = _mm512_setzero_si512();
            for bytes in bytes.as_chunks::<WIDTH>().0 {
                // SAFETY: there are 64 bytes.
                sum = _mm512_dpbusd_epi32(sum, sign, unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) });
            }
            let minus = _mm512_sub_epi32(_mm512_castps_si512(zero), sum);
            // SAFETY: there are 16 places.
            unsafe { _mm512_storeu_si512(start.as_mut_ptr().cast(), minus) };
        }
    }
    for at in (0..count).step_by(LANES) {
        let mut turns = keys.turns(at..count.min(at + LANES), rows * LANES / FOUR);
        // The last key is repeated up to a whole vector.
        let mut runs = [&[][..]; LANES];
        for (n, run) in runs.iter_mut().enumerate() {
            *run = &keys.get((at + n).min(count - 1))[..queries.features];
        }
        for (row, scores) in scores.chunks_exact_mut(stride).enumerate() {
            let bytes = queries.of_row(row);
            let mut start = [_mm512_setzero_si512(); BYTES];
            for b in 0..BYTES {
                // SAFETY: there are as many lanes.
                start[b] = unsafe { _mm512_loadu_si512(starts[row][b].as_ptr().cast()) };
            }
            let mut sums = [_mm512_setzero_ps(); LANES];
            for first in (0..LANES).step_by(FOUR) {
                turns.prefetch(&keys);
                let mut totals = [start; FOUR];
                for step in 0..steps {
                    let mask = if step + 1 == steps { last } else { u64::MAX };
                    let mut own = start;
                    for b in 0..BYTES {
                        // SAFETY: rows of bytes have this many steps.
                        own[b] = unsafe { _mm512_loadu_si512(bytes[b].as_ptr().add(step * WIDTH).cast()) };
                    }
                    for n in 0..FOUR {
                        // SAFETY: the mask has no bytes but those of the key.
                        let key = unsafe { _mm512_maskz_loadu_epi8(mask, runs[first + n].as_ptr().add(step * WIDTH)) };
                        let key = _mm512_xor_si512(key, sign);
                        for b in 0..BYTES {
                            totals[n][b] = _mm512_dpbusd_epi32(totals[n][b], key, own[b]);
                        }
                    }
                }
                for n in 0..FOUR {
                    let mut sum = _mm512_sub_ps(_mm512_castsi512_ps(totals[n][0]), zero);
                    for b in 1..BYTES {
                        let part = _mm512_sub_ps(_mm512_castsi512_ps(totals[n][b]), zero);
                        sum = _mm512_fmadd_ps(part, _mm512_set1_ps(FACTORS[b]), sum);
                    }
                    sums[first + n] = sum;
                }
            }
            let products = _mm512_mul_ps(sums_of(sums), _mm512_set1_ps(queries.scales[row]));
            let places = &mut scores[at..at + LANES];
            // SAFETY: there are as many places.
            unsafe { _mm512_storeu_ps(places.as_mut_ptr(), products) };
        }
    }
}

/// The sum of the lanes of each vector.
#[target_feature(enable = "avx512f")]
#[inline]
fn sums_of(vectors: [__m512; LANES]) -> __m512 {
    let zero = _mm512_setzero_ps();
    let (mut pairs, mut fours, mut eights) = ([zero; LANES / 2], [zero; LANES / 4], [zero; 2]);
    for (n, pair) in pairs.iter_mut().enumerate() {
        let (a, b) = (vectors[2 * n], vectors[2 * n + 1]);
        *pair = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    }
    for (n, four) in fours.iter_mut().enumerate() {
        let (a, b) = (_mm512_castps_pd(pairs[2 * n]), _mm512_castps_pd(pairs[2 * n + 1]));
        let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
        *four = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
    }
    // The quarters of a vector have sums of the same four.
    for (n, eight) in eights.iter_mut().enumerate() {
        *eight = quarters(fours[2 * n], fours[2 * n + 1]);
    }
    quarters(eights[0], eights[1])
}

/// The sums of neighbouring quarters of one vector, then of the other.
#[target_feature(enable = "avx512f")]
#[inline]
fn quarters(one: __m512, other: __m512) -> __m512 {
    _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(one, other), _mm512_shuffle_f32x4::<0xdd>(one, other))
}

#[target_feature(enable = "avx2,fma,avxvnni")]
fn avx_vnni<const INTERVAL: bool>(
    queries: &Queries<'_>,
    starts: &mut [Starts<KEYS>],
    keys: InSlots<'_, i8, INTERVAL>,
    scores: &mut [f32],
    stride: usize,
) {
    const HALF: usize = WIDTH / 2;
    let (count, rows) = (keys.count(), queries.scales.len());
    let (whole, rest) = (queries.features / HALF, queries.features % HALF);
    let sign = _mm256_set1_epi8(SIGN);
    for (row, starts) in starts.iter_mut().enumerate() {
        for (start, bytes) in starts.iter_mut().zip(queries.of_row(row)) {
            let mut sum = _mm256_setzero_si256();
            for bytes in bytes.as_chunks::<HALF>().0 {
                // SAFETY: there are 32 bytes.
                sum = _mm256_dpbusd_avx_epi32(sum, sign, unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) });
            }
            let minus = _mm256_sub_epi32(_mm256_setzero_si256(), sum);
            // SAFETY: there are eight places.
            unsafe { _mm256_storeu_si256(start.as_mut_ptr().cast(), minus) };
        }
    }
    for at in (0..count).step_by(KEYS) {
        let mut turns = keys.turns(at..count.min(at + KEYS), rows * KEYS / FOUR);
        // The last key is repeated up to a whole vector.
        let mut runs = [&[][..]; KEYS];
        let mut ends = [[0; HALF]; KEYS];
        for (n, run) in runs.iter_mut().enumerate() {
            *run = &keys.get((at + n).min(count - 1))[..queries.features];
            ends[n][..rest].copy_from_slice(&run[whole * HALF..]);
        }
        for (row, scores) in scores.chunks_exact_mut(stride).enumerate() {
            let bytes = queries.of_row(row);
            let mut start = [_mm256_setzero_si256(); BYTES];
            for b in 0..BYTES {
                // SAFETY: there are as many lanes.
                start[b] = unsafe { _mm256_loadu_si256(starts[row][b].as_ptr().cast()) };
            }
            let mut sums = [_mm256_setzero_ps(); KEYS];
            for first in (0..KEYS).step_by(FOUR) {
                turns.prefetch(&keys);
                let mut totals = [start; FOUR];
                for step in 0..whole + usize::from(rest > 0) {
                    for n in 0..FOUR {
                        let run = if step < whole { &runs[first + n][step * HALF..] } else { &ends[first + n] };
                        let run = &run[..HALF];
                        // SAFETY: the run has 32 bytes.
                        let key = unsafe { _mm256_loadu_si256(run.as_ptr().cast()) };
                        let key = _mm256_xor_si256(key, sign);
                        for b in 0..BYTES {
                            let own = &bytes[b][step * HALF..][..HALF];
                            // SAFETY: there are 32 bytes.
                            let own: __m256i = unsafe { _mm256_loadu_si256(own.as_ptr().cast()) };
                            totals[n][b] = _mm256_dpbusd_avx_epi32(totals[n][b], key, own);
                        }
                    }
                }
                for n in 0..FOUR {
                    let mut sum = _mm256_cvtepi32_ps(totals[n][0]);
                    for b in 1..BYTES {
                        sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(totals[n][b]), _mm256_set1_ps(FACTORS[b]), sum);
                    }
                    sums[first + n] = sum;
                }
            }
            let products = _mm256_mul_ps(half_sums_of(sums), _mm256_set1_ps(queries.scales[row]));
            let places = &mut scores[at..at + KEYS];
            // SAFETY: there are as many places.
            unsafe { _mm256_storeu_ps(places.as_mut_ptr(), products) };
        }
    }
}

/// The sum of the lanes of each vector.
#[target_feature(enable = "avx2")]
#[inline]
fn half_sums_of([a, b, c, d, e, f, g, h]: [__m256; KEYS]) -> __m256 {
    let first = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    let last = _mm256_hadd_ps(_mm256_hadd_ps(e, f), _mm256_hadd_ps(g, h));
    _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(first, last), _mm256_permute2f128_ps::<0x31>(first, last))
}
