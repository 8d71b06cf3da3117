//! Weights of 32 outputs as parts of bf16, packed, and their largest magnitudes.
//!
//! Each part of a float is the nearest bf16 of what the parts before it leave, so the rest is as often above as below, and the third part has all of it:
//! 24 bits are at most 8 of each part.

use std::arch::x86_64::{
    __m512i, _MM_HINT_T1, _mm_prefetch, _mm256_loadu_si256, _mm512_add_epi32, _mm512_and_si512, _mm512_castps_si512,
    _mm512_castsi512_ps, _mm512_cvtph_ps, _mm512_loadu_si512, _mm512_max_epu16, _mm512_max_epu32, _mm512_or_si512,
    _mm512_set1_epi16, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_srli_epi32, _mm512_storeu_si512, _mm512_sub_ps,
    _mm512_test_epi32_mask,
};

use crate::cpu::element::Element;
use crate::cpu::product::panel::{LANES, OUTPUTS, STEP, TILE, VECTORS, pack};
use crate::cpu::transpose::transposed;

/// Most parts of a weight.
pub(super) const PARTS: usize = 3;

/// Bytes of a step of a part.
pub(super) const PART: usize = VECTORS * TILE;

/// Pairs of features that are packed at a time: half a step.
const PAIRS: usize = LANES / 2;

/// What all floats of a vector have in common.
#[derive(Clone, Copy)]
struct Found {
    /// The largest magnitude of each output, as an integer.
    largest: __m512i,
    /// The bits that are set in any second or third part.
    parts: [__m512i; PARTS - 1],
}

impl Found {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new() -> Self {
        Self { largest: _mm512_setzero_si512(), parts: [_mm512_setzero_si512(); PARTS - 1] }
    }

    /// Raises the largest magnitudes of outputs.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn raise(&self, largest: &mut [f32]) {
        let mut magnitudes = [0u32; LANES];
        // SAFETY: there is room for 16 words.
        unsafe { _mm512_storeu_si512(magnitudes.as_mut_ptr().cast(), self.largest) };
        // As integers: NaN is larger than all others.
        largest.iter_mut().zip(magnitudes).for_each(|(own, found)| *own = f32::from_bits(own.to_bits().max(found)));
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn add_parts(&mut self, other: &Self) {
        for (bits, other) in self.parts.iter_mut().zip(other.parts) {
            *bits = _mm512_or_si512(*bits, other);
        }
    }

    /// The number of parts that are not all zero.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn parts(&self) -> usize {
        let [second, third] = self.parts;
        if _mm512_test_epi32_mask(third, third) != 0 {
            3
        } else if _mm512_test_epi32_mask(second, second) != 0 {
            2
        } else {
            1
        }
    }
}

/// Packs runs of bf16, one part in whole steps, and raises `largest` to their largest magnitudes.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn pack_bf16(runs: &[&[u8]; OUTPUTS], place: &mut [u8], largest: &mut [f32]) {
    let magnitude = _mm512_set1_epi16(i16::MAX);
    let most = pack(runs, place, |most, column| _mm512_max_epu16(most, _mm512_and_si512(column, magnitude)));
    let mut numbers = [[[0u16; 2]; LANES]; VECTORS];
    for (numbers, most) in numbers.iter_mut().zip(most) {
        // SAFETY: there is room for 16 pairs.
        unsafe { _mm512_storeu_si512(numbers.as_mut_ptr().cast(), most) };
    }
    for (largest, [even, odd]) in largest.iter_mut().zip(numbers.as_flattened()) {
        // As integers: NaN is larger than all others.
        *largest = f32::from_bits(largest.to_bits().max(u32::from(*even.max(odd)) << 16));
    }
}

/// Packs a run of each output, with zeros after its end: `place` is `[steps, PARTS, VECTORS, TILE]`. Prefetches the elements that come `ahead` of these.
/// Returns the number of parts that are not all zero.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn pack_runs<E: Element>(
    runs: &[&[E]; OUTPUTS],
    ahead: usize,
    place: &mut [u8],
    largest: &mut [f32],
) -> usize {
    let mut all = Found::new();
    for (vector, runs) in runs.as_chunks::<LANES>().0.iter().enumerate() {
        let mut found = Found::new();
        let shortest = runs.iter().fold(usize::MAX, |shortest, run| shortest.min(run.len()));
        for (step, place) in place.chunks_exact_mut(PARTS * PART).enumerate() {
            for half in 0..2 {
                let first = (2 * step + half) * LANES;
                let mut rows = [_mm512_setzero_si512(); LANES];
                for (row, run) in rows.iter_mut().zip(runs) {
                    *row = match first + LANES <= shortest {
                        // SAFETY: no run is shorter than the shortest one.
                        true => vector_of(unsafe { &*run.as_ptr().add(first).cast::<[E; LANES]>() }, ahead),
                        false => rest_of(run.get(first..).unwrap_or_default(), ahead),
                    };
                }
                pack_columns(&transposed(rows), &mut place[vector * TILE + half * PAIRS * STEP..], &mut found);
            }
        }
        found.raise(largest.get_mut(vector * LANES..).unwrap_or_default());
        all.add_parts(&found);
    }
    all.parts()
}

/// The same for a run of each feature, which has all outputs.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn pack_runs_of_features<'e, E: Element>(
    features: usize,
    run: impl Fn(usize) -> &'e [E],
    ahead: usize,
    place: &mut [u8],
    largest: &mut [f32],
) -> usize {
    let mut found = [Found::new(); VECTORS];
    for (step, place) in place.chunks_exact_mut(PARTS * PART).enumerate() {
        for half in 0..2 {
            let first = (2 * step + half) * LANES;
            let mut columns = [[_mm512_setzero_si512(); LANES]; VECTORS];
            for feature in first..features.min(first + LANES) {
                let run = run(feature);
                for (vector, columns) in columns.iter_mut().enumerate() {
                    columns[feature - first] = rest_of(run.get(vector * LANES..).unwrap_or_default(), ahead);
                }
            }
            for (vector, (columns, found)) in columns.iter().zip(&mut found).enumerate() {
                pack_columns(columns, &mut place[vector * TILE + half * PAIRS * STEP..], found);
            }
        }
    }
    let mut all = Found::new();
    for (found, largest) in found.iter().zip(largest.chunks_mut(LANES)) {
        found.raise(largest);
        all.add_parts(found);
    }
    all.parts()
}

/// The first 16 elements as floats, with zeros for those that there are not. Prefetches those `ahead` of them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn rest_of<E: Element>(elements: &[E], ahead: usize) -> __m512i {
    if let Some(elements) = elements.first_chunk() {
        return vector_of(elements, ahead);
    }
    let mut floats = [0.0; LANES];
    floats.iter_mut().zip(elements).for_each(|(float, element)| *float = element.widen());
    vector_of(&floats, 0)
}

/// Elements as floats. Prefetches those `ahead` of them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn vector_of<E: Element>(elements: &[E; LANES], ahead: usize) -> __m512i {
    _mm_prefetch::<_MM_HINT_T1>(elements.as_ptr().wrapping_add(ahead).cast());
    if let Some(floats) = E::as_f32s(elements) {
        // SAFETY: there are 16 floats.
        return unsafe { _mm512_loadu_si512(floats.as_ptr().cast()) };
    }
    if let Some(numbers) = E::as_f16s(elements) {
        // SAFETY: there are 16 numbers.
        let numbers = unsafe { _mm256_loadu_si256(numbers.as_ptr().cast()) };
        return _mm512_castps_si512(_mm512_cvtph_ps(numbers));
    }
    let floats: [f32; LANES] = std::array::from_fn(|lane| elements[lane].widen());
    // SAFETY: there are 16 floats.
    unsafe { _mm512_loadu_si512(floats.as_ptr().cast()) }
}

/// Packs the columns of 16 features of 16 outputs. `place` begins with the first pair of the first part.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn pack_columns(columns: &[__m512i; LANES], place: &mut [u8], found: &mut Found) {
    let place = &mut place[..(PARTS - 1) * PART + PAIRS * STEP];
    for (pair, columns) in columns.as_chunks().0.iter().enumerate() {
        for (part, numbers) in split_pair(columns, found).into_iter().enumerate() {
            // SAFETY: the place has 64 bytes for each part of each pair.
            unsafe { _mm512_storeu_si512(place.as_mut_ptr().add(part * PART + pair * STEP).cast(), numbers) };
        }
    }
}

/// The parts of two features, in the two halves of each word.
#[inline]
#[target_feature(enable = "avx512f")]
fn split_pair([even, odd]: &[__m512i; 2], found: &mut Found) -> [__m512i; PARTS] {
    let (even, odd) = (split(*even, found), split(*odd, found));
    let parts: [__m512i; PARTS] =
        std::array::from_fn(|part| _mm512_or_si512(_mm512_srli_epi32::<16>(even[part]), odd[part]));
    for (bits, part) in found.parts.iter_mut().zip(&parts[1..]) {
        *bits = _mm512_or_si512(*bits, *part);
    }
    parts
}

/// The parts of floats, each with 16 bits of zeros after it.
#[inline]
#[target_feature(enable = "avx512f")]
fn split(floats: __m512i, found: &mut Found) -> [__m512i; PARTS] {
    let magnitudes = _mm512_and_si512(floats, _mm512_set1_epi32(i32::MAX));
    found.largest = _mm512_max_epu32(found.largest, magnitudes);
    let first = nearest(floats);
    let rest = less(floats, first);
    let second = nearest(rest);
    let third = less(rest, second);
    [first, second, third]
}

/// The nearest bf16, and of two the larger magnitude.
#[inline]
#[target_feature(enable = "avx512f")]
fn nearest(floats: __m512i) -> __m512i {
    let half = _mm512_add_epi32(floats, _mm512_set1_epi32(0x8000));
    _mm512_and_si512(half, _mm512_set1_epi32(0xffff_0000u32 as i32))
}

/// The difference, which is exact.
#[inline]
#[target_feature(enable = "avx512f")]
fn less(floats: __m512i, part: __m512i) -> __m512i {
    _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(floats), _mm512_castsi512_ps(part)))
}
