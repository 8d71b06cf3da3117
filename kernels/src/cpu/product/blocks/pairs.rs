//! Products of blocks and a few rounded rows, on AVX-512 VNNI: an instruction multiplies 64 bytes, the elements of two chunks.
//!
//! ```text
//!            two chunks of a run: 64 integers, made positive by an offset
//!          ┌──────────────────────────────┐
//!  row 0 → │ sums of four, less the offset│ → f32 · scale of the run · scale of the row, added in 16 lanes
//!  row 1 → │                              │
//!          └──────────────────────────────┘
//! ```
//!
//! The instruction takes one operand without a sign. A sum starts with minus the offset times the elements of the row, which undoes the offset.
//! Elements of 16 bits are two bytes, of which the high one has the sign: the integers of the run multiply it with their offset, and the low one
//! without.

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{
    __m512i, _mm256_loadu_ps, _mm256_setzero_ps, _mm512_add_epi32, _mm512_castps256_ps512, _mm512_cvtepi32_ps,
    _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_permutexvar_ps, _mm512_set1_epi8,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_slli_epi32, _mm512_sub_epi8,
};

use burn_deepspeed_core::block::BlockFormat;

use super::dot::{self, fetch, of_format, wide_sums};
use super::formats::{Format, Iq4Nl, MXFP4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use super::k_formats::{Q2K, Q3K, Q4K, Q5K, Q6K};
use super::rows::{Bits, CHUNK, GROUP, Row, Rows};
use crate::cpu::scratch::with_scratch;
use crate::cpu::threads;

/// Chunks of a group.
const CHUNKS: usize = GROUP / CHUNK;

/// Elements that an instruction multiplies.
const PAIR: usize = 2 * CHUNK;

/// 64 bytes, or sums of four products each.
type Vector = [i32; 16];

/// Whether the processor has the instructions.
pub(super) fn is_available() -> bool {
    dot::is_available() && dot::is_wide() && is_x86_feature_detected!("avx512vnni")
}

/// Rounded rows as bytes.
pub(super) struct Bytes<'a> {
    rows: &'a Rows<'a>,
    /// Bytes of an element.
    planes: usize,
    /// `[rows, pairs, planes + 1]`: the planes of a pair of chunks, the high one first, and what its sums start with.
    vectors: &'a [Vector],
}

impl Bytes<'_> {
    /// The bytes of rows, for runs of this format.
    pub(super) fn with<R>(rows: &Rows<'_>, bits: Bits, format: BlockFormat, work: impl FnOnce(&Bytes<'_>) -> R) -> R {
        let planes = match bits {
            Bits::Eight => 1,
            Bits::Sixteen => 2,
        };
        let offset = offset_of(format);
        let each = rows.row(0).whole.len().div_ceil(PAIR) * (planes + 1) * size_of::<Vector>() / size_of::<f32>();
        with_scratch(rows.count() * each, |scratch| {
            threads::each_part(scratch, each, |row, vectors| {
                let vectors: &mut [Vector] = bytemuck::cast_slice_mut(vectors);
                let pairs = rows.row(row).whole.chunks(PAIR);
                for (vectors, whole) in vectors.chunks_exact_mut(planes + 1).zip(pairs) {
                    // The chunk that the last pair may lack is 0.
                    let mut own = [0; PAIR];
                    own[..whole.len()].copy_from_slice(whole);
                    match vectors {
                        [bytes, starts] => split(&own, 0, bytes, None, (starts, offset)),
                        [high, low, starts] => split(&own, 8, high, Some(low), (starts, offset)),
                        _ => unreachable!("one or two planes"),
                    }
                }
            });
            work(&Bytes { rows, planes, vectors: bytemuck::cast_slice::<f32, i32>(scratch).as_chunks().0 })
        })
    }

    fn row(&self, row: usize) -> &[Vector] {
        let each = self.vectors.len() / self.rows.count();
        &self.vectors[row * each..][..each]
    }
}

/// Writes what is left of the elements without their last `bits`, what the sums of these start with, and those bits.
fn split(whole: &[i16; PAIR], bits: u32, high: &mut Vector, low: Option<&mut Vector>, starts: (&mut Vector, i32)) {
    let high: &mut [i8] = bytemuck::cast_slice_mut(high);
    high.iter_mut().zip(whole).for_each(|(high, whole)| *high = (*whole >> bits) as i8);
    for (start, own) in starts.0.iter_mut().zip(high.as_chunks::<4>().0) {
        *start = -starts.1 * own.iter().map(|&byte| i32::from(byte)).sum::<i32>();
    }
    if let Some(low) = low {
        let low: &mut [u8] = bytemuck::cast_slice_mut(low);
        low.iter_mut().zip(whole).for_each(|(low, whole)| *low = *whole as u8);
    }
}

fn offset_of(format: BlockFormat) -> i32 {
    fn offset<F: Format>() -> i32 {
        i32::from(F::OFFSET)
    }
    of_format!(format, offset()).unwrap_or(0)
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
        row += match (bytes.rows.count() - row, bytes.planes) {
            (4.., 1) => some::<N, 4, 1>(format, runs, bytes, row, &mut write),
            (2.., 1) => some::<N, 2, 1>(format, runs, bytes, row, &mut write),
            (_, 1) => some::<N, 1, 1>(format, runs, bytes, row, &mut write),
            (4.., _) => some::<N, 4, 2>(format, runs, bytes, row, &mut write),
            (2.., _) => some::<N, 2, 2>(format, runs, bytes, row, &mut write),
            _ => some::<N, 1, 2>(format, runs, bytes, row, &mut write),
        };
    }
}

/// The same for `M` rows of `P` planes from `first` on; returns `M`.
fn some<const N: usize, const M: usize, const P: usize>(
    format: BlockFormat,
    runs: [&[u8]; N],
    bytes: &Bytes<'_>,
    first: usize,
    write: &mut impl FnMut(usize, [f32; N]),
) -> usize {
    let rows = std::array::from_fn(|m| bytes.rows.row(first + m));
    let vectors = std::array::from_fn(|m| bytes.row(first + m));
    // SAFETY: the processor has the instructions: `multiply` has checked it.
    let products = unsafe { of_format!(format, products::<N, M, P>(runs, rows, vectors, first == 0)) };
    for (m, products) in products.unwrap_or([[0.0; N]; M]).into_iter().enumerate() {
        write(first + m, products);
    }
    M
}

/// For each pair of a group, which of the scales of the group each lane has: two for a pair, or four.
const LANES: [[Vector; CHUNKS / 2]; 2] = {
    let mut lanes = [[[0; 16]; CHUNKS / 2]; 2];
    let mut pair = 0;
    while pair < CHUNKS / 2 {
        let mut lane = 0;
        while lane < 16 {
            lanes[0][pair][lane] = (2 * pair + lane / 8) as i32;
            lanes[1][pair][lane] = (4 * pair + lane / 4) as i32;
            lane += 1;
        }
        pair += 1;
    }
    lanes
};

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vnni,avx2,fma,f16c")]
#[allow(clippy::needless_range_loop, reason = "several arrays at one index")]
fn products<F: Format, const N: usize, const M: usize, const P: usize>(
    runs: [&[u8]; N],
    rows: [Row<'_>; M],
    vectors: [&[Vector]; M],
    next: bool,
) -> [[f32; N]; M] {
    let (len, chunks) = (runs[0].len(), rows[0].whole.len() / CHUNK);
    assert!(runs.iter().all(|run| run.len() == len) && len == chunks * F::GROUP / CHUNKS);
    assert!(vectors.iter().all(|own| own.len() == chunks.div_ceil(2) * (P + 1)));
    let mut sums = [[_mm512_setzero_ps(); N]; M];
    let mut minima = [[_mm256_setzero_ps(); M]; N];
    for group in 0..chunks.div_ceil(CHUNKS) {
        let start = group * F::GROUP;
        let count = CHUNKS.min(chunks - group * CHUNKS);
        let mut factors = [rows[0].group(group); M];
        for m in 1..M {
            factors[m] = rows[m].group(group);
        }
        let mut scales = [[_mm512_setzero_ps(); M]; N];
        for n in 0..N {
            if next {
                fetch::<F>(runs[n], group, N * len);
            }
            let mut own = [[0.0; 16]; M];
            // SAFETY: the processor has the instructions, and the runs have the chunks.
            unsafe {
                F::weigh(runs[n].as_ptr().add(start), count, &factors, &mut own, &mut minima[n]);
            }
            for m in 0..M {
                // As wide as they were stored: a wider load would wait until they are in the cache.
                // SAFETY: there are 16 scales.
                scales[n][m] = unsafe {
                    match F::PARTS {
                        1 => _mm512_castps256_ps512(_mm256_loadu_ps(own[m].as_ptr())),
                        _ => _mm512_loadu_ps(own[m].as_ptr()),
                    }
                };
            }
        }
        for pair in 0..CHUNKS / 2 {
            if 2 * pair >= count {
                break;
            }
            // A chunk that is not there has a scale of 0.
            let other = (2 * pair + 1).min(count - 1);
            let lanes = vector(&LANES[F::PARTS - 1][pair]);
            for n in 0..N {
                // SAFETY: the processor has the instructions, and the runs have both chunks.
                let elements = unsafe { F::pair(runs[n].as_ptr().add(start), 2 * pair, other) };
                for m in 0..M {
                    // SAFETY: rows have as many pairs as the runs.
                    let own = unsafe { vectors[m].get_unchecked((group * CHUNKS / 2 + pair) * (P + 1)..) };
                    // SAFETY: a pair has `P + 1` vectors.
                    let [high, low, starts] =
                        unsafe { [own.get_unchecked(0), own.get_unchecked(P - 1), own.get_unchecked(P)] };
                    let mut sum = _mm512_dpbusd_epi32(vector(starts), elements, vector(high));
                    if P == 2 {
                        let elements = _mm512_sub_epi8(elements, _mm512_set1_epi8(F::OFFSET as i8));
                        let low = _mm512_dpbusd_epi32(_mm512_setzero_si512(), vector(low), elements);
                        sum = _mm512_add_epi32(_mm512_slli_epi32::<8>(sum), low);
                    }
                    let scale = _mm512_permutexvar_ps(lanes, scales[n][m]);
                    sums[m][n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, sums[m][n]);
                }
            }
        }
    }
    let mut totals = [[0.0; N]; M];
    for m in 0..M {
        totals[m] = wide_sums(&sums[m]);
        if F::MINIMA {
            for n in 0..N {
                // SAFETY: the processor has the instructions.
                totals[m][n] += unsafe { F::minimum(minima[n][m]) };
            }
        }
    }
    totals
}

#[target_feature(enable = "avx512f")]
#[inline]
fn vector(words: &Vector) -> __m512i {
    // SAFETY: it is 64 bytes.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::product::blocks::dot::tests::{blocks, quantised};

    #[test]
    fn bytes_have_the_products_of_the_integers_of_16_bits() {
        if !is_available() {
            return;
        }
        for (format, bits) in quantised().flat_map(|format| [Bits::Eight, Bits::Sixteen].map(|bits| (format, bits))) {
            for inputs in if format.elements() == 256 { [256, 512] } else { [608, 256] } {
                let bytes = blocks(format, [2, inputs]);
                let runs = [&bytes[..bytes.len() / 2], &bytes[bytes.len() / 2..]];
                let input: Vec<f32> = (0..7 * inputs).map(|at| ((at * 37 % 101) as f32 - 50.0) / 16.0).collect();
                Rows::with(&input, inputs, bits, |rows| {
                    let mut expected = [[0.0; 2]; 7];
                    dot::dot(format, runs, rows, |row, products| expected[row] = products);
                    let mut found = [[0.0; 2]; 7];
                    Bytes::with(rows, bits, format, |bytes| {
                        multiply(format, runs, bytes, |row, products| found[row] = products);
                    });
                    let most = expected.as_flattened().iter().fold(1.0f32, |most, product| most.max(product.abs()));
                    for (found, expected) in found.as_flattened().iter().zip(expected.as_flattened()) {
                        assert!((found - expected).abs() <= 2e-5 * most, "{format}: {found}, expected {expected}");
                    }
                });
            }
        }
    }
}
