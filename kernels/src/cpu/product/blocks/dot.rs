//! Products of blocks and rounded rows, and blocks as f32.
//!
//! ```text
//!                 32 elements of 4 runs: integers of 8 bits, widened to 16
//!               ┌──────────────┐
//!  row 0 (i16) →│ sums of pairs│ → f32 · scale of the run · scale of the row, added in 16 lanes
//!  row 1       →│              │
//!               └──────────────┘
//! ```

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{
    __m256, __m256i, __m512, _mm_add_ps, _mm_srli_si128, _mm_storeu_ps, _mm256_add_epi32, _mm256_add_ps,
    _mm256_castps256_ps128, _mm256_castsi256_si128, _mm256_cvtepi8_epi16, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps,
    _mm256_extractf128_ps, _mm256_extracti128_si256, _mm256_fmadd_ps, _mm256_hadd_ps, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_mul_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps, _mm512_castps512_ps256,
    _mm512_cvtepi8_epi16, _mm512_cvtepi32_ps, _mm512_extractf32x8_ps, _mm512_fmadd_ps, _mm512_loadu_si512,
    _mm512_madd_epi16, _mm512_mask_mov_ps, _mm512_set1_ps, _mm512_setzero_ps,
};
use std::hint::black_box;
use std::ops::Range;

use burn_deepspeed_core::block::BlockFormat;

use super::formats::{Factors, Format, Iq4Nl, MXFP4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use super::k_formats::{Q2K, Q3K, Q4K, Q5K, Q6K};
use super::rows::{CHUNK, GROUP, Row, Rows};
use crate::cpu::stream::{LINE, prefetch_at};

/// Chunks of a group.
const CHUNKS: usize = GROUP / CHUNK;

/// Bytes between what is read of a run and what is prefetched.
const AHEAD: usize = 1024;

/// Whether the processor has the instructions.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// Whether it has those of twice the width.
pub(super) fn is_wide() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512dq")
}

/// Calls a function that is generic over the format; `None` for one of floats.
macro_rules! of_format {
    ($format:expr, $function:ident $(::<$($constant:tt),*>)?($($argument:expr),*)) => {
        match $format {
            BlockFormat::F32 | BlockFormat::F16 | BlockFormat::BF16 => None,
            BlockFormat::Q4_0 => Some($function::<Q4_0 $($(, $constant)*)?>($($argument),*)),
            BlockFormat::Q4_1 => Some($function::<Q4_1 $($(, $constant)*)?>($($argument),*)),
            BlockFormat::Q5_0 => Some($function::<Q5_0 $($(, $constant)*)?>($($argument),*)),
            BlockFormat::Q5_1 => Some($function::<Q5_1 $($(, $constant)*)?>($($argument),*)),
            BlockFormat::Q8_0 => Some($function::<Q8_0 $($(, $constant)*)?>($($argument),*)),
            BlockFormat::Q2_K => Some($function::<Q2K $($(, $constant)*)?>($($argument),*)),
            BlockFormat::Q3_K => Some($function::<Q3K $($(, $constant)*)?>($($argument),*)),
            BlockFormat::Q4_K => Some($function::<Q4K $($(, $constant)*)?>($($argument),*)),
            BlockFormat::Q5_K => Some($function::<Q5K $($(, $constant)*)?>($($argument),*)),
            BlockFormat::Q6_K => Some($function::<Q6K $($(, $constant)*)?>($($argument),*)),
            BlockFormat::IQ4_NL => Some($function::<Iq4Nl $($(, $constant)*)?>($($argument),*)),
            BlockFormat::MXFP4 => Some($function::<MXFP4 $($(, $constant)*)?>($($argument),*)),
        }
    };
}

pub(super) use of_format;

/// Writes the elements `features` of a run, whole chunks, as f32, with the bits of [`BlockFormat::dequantise`]. Returns false, and writes
/// nothing, for floats and on processors without the instructions.
#[inline]
pub(super) fn unpack(format: BlockFormat, run: &[u8], features: Range<usize>, into: &mut [f32]) -> bool {
    if !is_available() {
        return false;
    }
    // SAFETY: the processor has the instructions.
    unsafe { of_format!(format, unpacked(run, features, into)) }.is_some()
}

#[target_feature(enable = "avx2,fma,f16c")]
fn unpacked<F: Format>(run: &[u8], features: Range<usize>, into: &mut [f32]) {
    assert!(features.start.is_multiple_of(CHUNK) && features.len().is_multiple_of(CHUNK));
    let mut chunk = features.start / CHUNK;
    let end = features.end / CHUNK;
    let mut places = into[..features.len()].as_chunks_mut::<CHUNK>().0.iter_mut();
    while chunk < end {
        let first = chunk / CHUNKS;
        let group = &run[first * F::GROUP..run.len().min((first + 1) * F::GROUP)];
        let mut factors = Factors::ZERO;
        // SAFETY: the processor has the instructions, and a run has whole blocks.
        unsafe { F::factors(group, &mut factors) };
        let whole = end.min((first + 1) * CHUNKS);
        assert!((whole - first * CHUNKS) * (F::GROUP / CHUNKS) <= group.len());
        for (at, place) in (chunk % CHUNKS..).zip(places.by_ref().take(whole - chunk)) {
            // SAFETY: the group has the chunk, since it has as many bytes.
            let elements = unsafe { F::elements(group.as_ptr(), at) };
            let halves = [_mm256_castsi256_si128(elements), _mm256_extracti128_si256::<1>(elements)];
            for (half, own) in halves.into_iter().enumerate() {
                let scale = _mm256_set1_ps(factors.scales[(2 * at + half) * F::PARTS / 2]);
                for (part, own) in [own, _mm_srli_si128::<8>(own)].into_iter().enumerate() {
                    let mut values = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(own)), scale);
                    if F::MINIMA {
                        values = _mm256_add_ps(values, _mm256_set1_ps(factors.minima[2 * at + half]));
                    }
                    // SAFETY: the place has 32 elements.
                    unsafe { _mm256_storeu_ps(place[half * 16 + part * 8..].as_mut_ptr(), values) };
                }
            }
        }
        chunk = whole;
    }
}

/// Calls `write` with the products of the runs and each row.
pub(super) fn dot<const N: usize>(
    format: BlockFormat,
    runs: [&[u8]; N],
    rows: &Rows<'_>,
    mut write: impl FnMut(usize, [f32; N]),
) {
    let wide = is_wide();
    let mut row = 0;
    while row < rows.count() {
        let next = row == 0;
        row += match rows.count() - row {
            4.. if wide => some::<N, 4>(format, runs, (rows, row), next, &mut write),
            2.. => some::<N, 2>(format, runs, (rows, row), next, &mut write),
            _ => some::<N, 1>(format, runs, (rows, row), next, &mut write),
        };
    }
}

/// The same for `M` rows from `first` on; returns `M`. The runs after these are prefetched if they are read `next`.
fn some<const N: usize, const M: usize>(
    format: BlockFormat,
    runs: [&[u8]; N],
    (rows, first): (&Rows<'_>, usize),
    next: bool,
    write: &mut impl FnMut(usize, [f32; N]),
) -> usize {
    let rows: [Row<'_>; M] = std::array::from_fn(|m| rows.row(first + m));
    let words = rows.map(|row| row.whole.as_chunks().0);
    assert!(is_available(), "blocks: the processor has no AVX2");
    let products = match is_wide() {
        // SAFETY: the processor has the instructions.
        true => unsafe { of_format!(format, wide::<N, M>(runs, rows, words, next)) },
        // SAFETY: as above.
        false => unsafe { of_format!(format, narrow::<N, M>(runs, rows, words, next)) },
    };
    for (m, products) in products.unwrap_or([[0.0; N]; M]).into_iter().enumerate() {
        write(first + m, products);
    }
    M
}

/// Prefetches what a group after this one has.
#[inline(always)]
pub(super) fn fetch<F: Format>(run: &[u8], group: usize, next: usize) {
    let ahead = group * F::GROUP + AHEAD;
    let ahead = if ahead < run.len() { ahead } else { next + ahead - run.len() };
    for line in 0..F::GROUP.div_ceil(LINE) {
        prefetch_at(run, ahead + line * LINE);
    }
}

/// A function that multiplies runs and rows, of which `words` has a `$words` for each chunk: what `$chunk` multiplies with the elements of a run. The
/// runs after these are prefetched if they are read `next`.
macro_rules! dot_loop {
    ($name:ident, $features:literal, $words:ty, $zero:ident, $chunk:ident, $sums:ident) => {
        #[target_feature(enable = $features)]
        #[allow(clippy::needless_range_loop, reason = "several arrays at one index")]
        fn $name<F: Format, const N: usize, const M: usize>(
            runs: [&[u8]; N],
            rows: [Row<'_>; M],
            words: [&[$words]; M],
            next: bool,
        ) -> [[f32; N]; M] {
            let (len, chunks) = (runs[0].len(), words[0].len());
            assert!(runs.iter().all(|run| run.len() == len) && len == chunks * F::GROUP / CHUNKS);
            assert!(words.iter().all(|words| words.len() == chunks));
            let mut sums = [[$zero(); N]; M];
            let mut minima = [[_mm256_setzero_ps(); M]; N];
            for group in 0..chunks.div_ceil(CHUNKS) {
                let start = group * F::GROUP;
                let count = CHUNKS.min(chunks - group * CHUNKS);
                let mut scales = [[[0.0; 16]; M]; N];
                let mut factors = [rows[0].group(group); M];
                for m in 1..M {
                    factors[m] = rows[m].group(group);
                }
                for n in 0..N {
                    if next {
                        fetch::<F>(runs[n], group, N * len);
                    }
                    // SAFETY: the processor has the instructions, and the runs have the chunks.
                    unsafe {
                        F::weigh(runs[n].as_ptr().add(start), count, &factors, &mut scales[n], &mut minima[n]);
                    }
                }
                // In memory: a broadcast from there needs no shuffle.
                let scales = black_box(&scales);
                let mut chunk = |at: usize| {
                    for n in 0..N {
                        // SAFETY: the runs have this many chunks.
                        let elements = unsafe { F::elements(runs[n].as_ptr().add(start), at) };
                        for m in 0..M {
                            // SAFETY: rows have as many chunks as the runs.
                            let words = unsafe { words[m].get_unchecked(group * CHUNKS + at) };
                            let scales = &scales[n][m][at * F::PARTS..][..F::PARTS];
                            sums[m][n] = $chunk::<F>(elements, words, scales, sums[m][n]);
                        }
                    }
                };
                if F::SMALL {
                    for at in 0..count {
                        chunk(at);
                    }
                } else {
                    // With a constant count the shifts of each chunk are constants, too.
                    for at in 0..CHUNKS {
                        chunk(at);
                    }
                }
            }
            let mut totals = [[0.0; N]; M];
            for m in 0..M {
                totals[m] = $sums(&sums[m]);
                if F::MINIMA {
                    for n in 0..N {
                        // SAFETY: the processor has the instructions.
                        totals[m][n] += unsafe { F::minimum(minima[n][m]) };
                    }
                }
            }
            totals
        }
    };
}

type Words = [i16; CHUNK];

dot_loop!(narrow, "avx2,fma,f16c", Words, _mm256_setzero_ps, narrow_chunk, narrow_sums);
dot_loop!(wide, "avx512f,avx512bw,avx512dq,avx2,fma,f16c", Words, _mm512_setzero_ps, wide_chunk, wide_sums);

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn narrow_chunk<F: Format>(elements: __m256i, row: &Words, scales: &[f32], sum: __m256) -> __m256 {
    let halves = [_mm256_castsi256_si128(elements), _mm256_extracti128_si256::<1>(elements)];
    let products = [0, 1].map(|half| {
        // SAFETY: a chunk has 32 elements.
        let row = unsafe { _mm256_loadu_si256(row[half * 16..].as_ptr().cast()) };
        _mm256_madd_epi16(_mm256_cvtepi8_epi16(halves[half]), row)
    });
    if F::PARTS == 1 {
        let product = _mm256_cvtepi32_ps(_mm256_add_epi32(products[0], products[1]));
        return _mm256_fmadd_ps(product, _mm256_set1_ps(scales[0]), sum);
    }
    let first = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products[0]), _mm256_set1_ps(scales[0]), sum);
    _mm256_fmadd_ps(_mm256_cvtepi32_ps(products[1]), _mm256_set1_ps(scales[1]), first)
}

/// The sums of the lanes of each.
// Loops in these functions, since a closure that is not inlined has other instructions.
#[target_feature(enable = "avx2")]
#[inline]
fn narrow_sums<const N: usize>(vectors: &[__m256; N]) -> [f32; N] {
    let mut totals = [0.0; N];
    for first in (0..N).step_by(4) {
        let mut four = [_mm256_setzero_ps(); 4];
        for (n, own) in four.iter_mut().enumerate() {
            *own = vectors[(first + n).min(N - 1)];
        }
        let [a, b, c, d] = four;
        // The lanes of a half have the sums of a, b, c and d.
        let both = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        let sums = _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps::<1>(both));
        let mut lanes = [0.0f32; 4];
        // SAFETY: there is room for four lanes.
        unsafe { _mm_storeu_ps(lanes.as_mut_ptr(), sums) };
        let count = (N - first).min(4);
        totals[first..first + count].copy_from_slice(&lanes[..count]);
    }
    totals
}

#[target_feature(enable = "avx512f,avx512bw,avx2,fma,f16c")]
#[inline]
fn wide_chunk<F: Format>(elements: __m256i, row: &Words, scales: &[f32], sum: __m512) -> __m512 {
    // SAFETY: a chunk has 32 elements.
    let row = unsafe { _mm512_loadu_si512(row.as_ptr().cast()) };
    let product = _mm512_cvtepi32_ps(_mm512_madd_epi16(_mm512_cvtepi8_epi16(elements), row));
    let scale = match F::PARTS {
        1 => _mm512_set1_ps(scales[0]),
        // The first 16 elements are in the first eight lanes.
        _ => _mm512_mask_mov_ps(_mm512_set1_ps(scales[0]), 0xff00, _mm512_set1_ps(scales[1])),
    };
    _mm512_fmadd_ps(product, scale, sum)
}

#[target_feature(enable = "avx512f,avx512dq,avx2")]
#[inline]
pub(super) fn wide_sums<const N: usize>(vectors: &[__m512; N]) -> [f32; N] {
    let mut halves = [_mm256_setzero_ps(); N];
    for n in 0..N {
        halves[n] = _mm256_add_ps(_mm512_castps512_ps256(vectors[n]), _mm512_extractf32x8_ps::<1>(vectors[n]));
    }
    narrow_sums(&halves)
}

#[cfg(test)]
pub(super) mod tests {
    use burn_deepspeed_core::block::{BlockFormat, RowFormats};

    use super::*;
    use crate::cpu::product::blocks::rows::Bits;

    /// Bytes without a pattern, with an f16 below 2 in every place where a scale may be.
    pub fn blocks(format: BlockFormat, [outputs, inputs]: [usize; 2]) -> Vec<u8> {
        let formats = RowFormats::uniform(format, [outputs, inputs]).expect("whole blocks");
        let mut bytes: Vec<u8> = (0..formats.bytes()).map(|at| (at * 167 + at / 7 * 29 + 5) as u8).collect();
        for block in bytes.chunks_mut(format.bytes()) {
            let places: &[usize] = match format {
                BlockFormat::MXFP4 => {
                    block[0] = 120 + block[1] % 8;
                    &[]
                }
                BlockFormat::Q2_K => &[80, 82],
                BlockFormat::Q3_K => &[108],
                BlockFormat::Q6_K => &[208],
                BlockFormat::Q4_1 | BlockFormat::Q5_1 | BlockFormat::Q4_K | BlockFormat::Q5_K => &[0, 2],
                _ => &[0],
            };
            places.iter().for_each(|&at| block[at + 1] = block[at + 1] & 0x83 | 0x38);
        }
        bytes
    }

    pub fn quantised() -> impl Iterator<Item = BlockFormat> {
        BlockFormat::ALL.into_iter().filter(|format| format.elements() > 1)
    }

    #[test]
    fn chunks_have_the_bits_of_the_definition() {
        if !is_available() {
            return;
        }
        for format in quantised() {
            let inputs = if format.elements() == 256 { 768 } else { 736 };
            let run = blocks(format, [1, inputs]);
            let mut expected = vec![0.0; inputs];
            format.dequantise(&run, &mut expected);
            for features in [0..inputs, 32..96, 224..320, 512..inputs] {
                let mut values = vec![0.0; features.len()];
                assert!(unpack(format, &run, features.clone(), &mut values));
                let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&values), bits(&expected[features.clone()]), "{format}, {features:?}");
            }
        }
    }

    #[test]
    fn both_widths_have_the_products_of_the_definition() {
        if !is_available() {
            return;
        }
        for format in quantised() {
            let inputs = if format.elements() == 256 { 512 } else { 608 };
            let run = blocks(format, [1, inputs]);
            let mut weights = vec![0.0; inputs];
            format.dequantise(&run, &mut weights);
            let input: Vec<f32> = (0..2 * inputs).map(|at| ((at * 37 % 101) as f32 - 50.0) / 16.0).collect();
            let exact = |row: &[f32]| row.iter().zip(&weights).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let size = |row: &[f32]| row.iter().zip(&weights).map(|(a, b)| f64::from((a * b).abs())).sum::<f64>();
            Rows::with(&input, inputs, Bits::Sixteen, |rows| {
                let both = [rows.row(0), rows.row(1)];
                let words = both.map(|row| row.whole.as_chunks().0);
                // SAFETY: the processor has the instructions.
                let narrow = unsafe { of_format!(format, narrow::<1, 2>([&run], both, words, true)) };
                // SAFETY: as above.
                let wide = is_wide().then(|| unsafe { of_format!(format, wide::<1, 2>([&run], both, words, true)) });
                for products in [narrow, wide.unwrap_or(narrow)] {
                    for (row, [product]) in input.chunks(inputs).zip(products.expect("no floats")) {
                        let (error, size) = ((f64::from(product) - exact(row)).abs(), size(row));
                        assert!(error < 3e-5 * size, "{format}: {product}, expected {}, of {size}", exact(row));
                    }
                }
            });
        }
    }
}
