//! Products of blocks and a few rows of 8 bits, on AVX-512 VNNI: an instruction multiplies 32 bytes.
//!
//! It takes elements of runs without a sign, so 128 is added to them. A sum starts with -128 times the elements of the row, which undoes that.

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{
    __m256, __m256i, _mm_set1_ps, _mm256_cvtepi32_ps, _mm256_dpbusd_epi32, _mm256_fmadd_ps, _mm256_loadu_si256,
    _mm256_set_m128, _mm256_set1_epi8, _mm256_set1_ps, _mm256_setzero_ps, _mm256_xor_si256,
};
use std::hint::black_box;

use burn_deepspeed_core::block::BlockFormat;

use super::dot::{self, dot_loop, fetch, narrow_sums, of_format};
use super::formats::{Format, Iq4Nl, MXFP4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use super::k_formats::{Q2K, Q3K, Q4K, Q5K, Q6K};
use super::rows::{CHUNK, GROUP, Row, Rows};
use crate::cpu::scratch::with_scratch;
use crate::cpu::threads;

/// Chunks of a group.
const CHUNKS: usize = GROUP / CHUNK;

/// Sums of a chunk: each of four products.
const LANES: usize = 8;

/// Words of a chunk of a row: its bytes, and what its sums start with.
const WORDS: usize = CHUNK / size_of::<i32>() + LANES;

/// Whether the processor has the instructions.
pub(super) fn is_available() -> bool {
    dot::is_available()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

/// Rows of integers up to 127, as bytes.
pub(super) struct Bytes<'a> {
    rows: &'a Rows<'a>,
    /// `[rows, chunks, WORDS]`.
    words: &'a [[i32; WORDS]],
}

impl Bytes<'_> {
    /// The bytes of rows of 8 bits.
    pub(super) fn with<R>(rows: &Rows<'_>, work: impl FnOnce(&Bytes<'_>) -> R) -> R {
        let each = rows.row(0).whole.len() / CHUNK * WORDS;
        with_scratch(rows.count() * each, |scratch| {
            threads::each_part(scratch, each, |row, words| {
                let words: &mut [i32] = bytemuck::cast_slice_mut(words);
                let chunks = rows.row(row).whole.as_chunks::<CHUNK>().0;
                for (words, whole) in words.as_chunks_mut::<WORDS>().0.iter_mut().zip(chunks) {
                    let (bytes, starts) = words.split_at_mut(WORDS - LANES);
                    let bytes: &mut [i8] = bytemuck::cast_slice_mut(bytes);
                    bytes.iter_mut().zip(whole).for_each(|(byte, whole)| *byte = *whole as i8);
                    for (start, own) in starts.iter_mut().zip(whole.as_chunks::<4>().0) {
                        *start = -128 * own.iter().map(|&whole| i32::from(whole)).sum::<i32>();
                    }
                }
            });
            work(&Bytes { rows, words: bytemuck::cast_slice::<f32, i32>(scratch).as_chunks().0 })
        })
    }

    fn words(&self, row: usize) -> &[[i32; WORDS]] {
        let chunks = self.words.len() / self.rows.count();
        &self.words[row * chunks..][..chunks]
    }
}

/// Calls `write` with the products of the runs and each row.
pub(super) fn multiply<const N: usize>(
    format: BlockFormat,
    runs: [&[u8]; N],
    bytes: &Bytes<'_>,
    mut write: impl FnMut(usize, [f32; N]),
) {
    assert!(is_available(), "blocks: the processor has no AVX-512 VNNI");
    let mut row = 0;
    while row < bytes.rows.count() {
        row += match bytes.rows.count() - row {
            4.. => some::<N, 4>(format, runs, bytes, row, &mut write),
            2.. => some::<N, 2>(format, runs, bytes, row, &mut write),
            _ => some::<N, 1>(format, runs, bytes, row, &mut write),
        };
    }
}

/// The same for `M` rows from `first` on; returns `M`.
fn some<const N: usize, const M: usize>(
    format: BlockFormat,
    runs: [&[u8]; N],
    bytes: &Bytes<'_>,
    first: usize,
    write: &mut impl FnMut(usize, [f32; N]),
) -> usize {
    let rows = std::array::from_fn(|m| bytes.rows.row(first + m));
    let words = std::array::from_fn(|m| bytes.words(first + m));
    // SAFETY: the processor has the instructions: `multiply` has checked it.
    let products = unsafe { of_format!(format, products::<N, M>(runs, rows, words, first == 0)) };
    for (m, products) in products.unwrap_or([[0.0; N]; M]).into_iter().enumerate() {
        write(first + m, products);
    }
    M
}

dot_loop!(
    products,
    "avx512f,avx512vl,avx512vnni,avx2,fma,f16c",
    [i32; WORDS],
    _mm256_setzero_ps,
    product_of_chunk,
    narrow_sums
);

#[target_feature(enable = "avx512f,avx512vl,avx512vnni,avx2,fma")]
#[inline]
fn product_of_chunk<F: Format>(elements: __m256i, words: &[i32; WORDS], scales: &[f32], sum: __m256) -> __m256 {
    let elements = _mm256_xor_si256(elements, _mm256_set1_epi8(-128));
    // SAFETY: the words are 32 bytes and eight sums.
    let (row, start) = unsafe {
        let words = words.as_ptr();
        (_mm256_loadu_si256(words.cast()), _mm256_loadu_si256(words.add(WORDS - LANES).cast()))
    };
    let product = _mm256_cvtepi32_ps(_mm256_dpbusd_epi32(start, elements, row));
    let scale = match F::PARTS {
        1 => _mm256_set1_ps(scales[0]),
        // The first 16 elements are in the first four lanes.
        _ => _mm256_set_m128(_mm_set1_ps(scales[1]), _mm_set1_ps(scales[0])),
    };
    _mm256_fmadd_ps(product, scale, sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::product::blocks::dot::tests::{blocks, quantised};
    use crate::cpu::product::blocks::rows::Bits;

    #[test]
    fn bytes_have_the_products_of_the_integers_of_16_bits() {
        if !is_available() {
            return;
        }
        for format in quantised() {
            let inputs = if format.elements() == 256 { 512 } else { 608 };
            let bytes = blocks(format, [2, inputs]);
            let runs = [&bytes[..bytes.len() / 2], &bytes[bytes.len() / 2..]];
            let input: Vec<f32> = (0..7 * inputs).map(|at| ((at * 37 % 101) as f32 - 50.0) / 16.0).collect();
            Rows::with(&input, inputs, Bits::Eight, |rows| {
                let mut expected = [[0.0; 2]; 7];
                dot::dot(format, runs, rows, |row, products| expected[row] = products);
                let mut found = [[0.0; 2]; 7];
                Bytes::with(rows, |bytes| multiply(format, runs, bytes, |row, products| found[row] = products));
                let most = expected.as_flattened().iter().fold(1.0f32, |most, product| most.max(product.abs()));
                for (found, expected) in found.as_flattened().iter().zip(expected.as_flattened()) {
                    assert!((found - expected).abs() <= 2e-5 * most, "{format}: {found}, expected {expected}");
                }
            });
        }
    }
}
