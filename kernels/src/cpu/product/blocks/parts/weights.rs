//! Weights of 32 outputs, packed, and their largest magnitudes.

use std::arch::x86_64::{
    __m256i, __m512i, _mm256_loadu_si256, _mm256_storeu_si256, _mm512_and_si512, _mm512_castps_si512,
    _mm512_castsi512_ps, _mm512_cvtepi32_epi16, _mm512_cvtph_ps, _mm512_max_epu16, _mm512_set1_epi16,
    _mm512_set1_epi32, _mm512_srli_epi32, _mm512_storeu_si512, _mm512_sub_ps,
};
use std::ops::Range;

use burn_deepspeed_core::block::BlockFormat;

use super::split::DEPTH;
use crate::cpu::product::blocks::BlockMatrix;
use crate::cpu::product::panel::{LANES, OUTPUTS, VECTORS, pack};

/// Most parts of a weight.
pub(super) const MOST_PARTS: usize = 2;

/// The parts of bf16 of the runs of a panel.
pub(super) type Runs = [[[u16; DEPTH]; OUTPUTS]; MOST_PARTS];

/// Parts of a weight: an f16, of 11 bits, is the exact sum of two bf16.
pub(super) fn parts(format: BlockFormat) -> usize {
    if format == BlockFormat::F16 { 2 } else { 1 }
}

/// Packs some features, at most [`DEPTH`], of the outputs from `first` on, and makes their largest magnitudes those of these weights if they are
/// larger. `place` has a panel for each part, the last part first. `runs` is scratch.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn pack_weights(
    matrix: &BlockMatrix<'_>,
    features: &Range<usize>,
    first: usize,
    runs: &mut Runs,
    place: &mut [u8],
    largest: &mut [f32],
) {
    let run = |n| &matrix.run(first + n)[size_of::<u16>() * features.start..size_of::<u16>() * features.end];
    let outputs = largest.len();
    if matrix.format == BlockFormat::BF16 {
        return pack_part(std::array::from_fn(|n| if n < outputs { run(n) } else { &[] }), place, largest);
    }
    let [upper, lower] = &mut *runs;
    for (n, (upper, lower)) in upper.iter_mut().zip(lower).enumerate().take(outputs) {
        split(run(n), upper, lower);
    }
    let panel = place.len() / MOST_PARTS;
    for (runs, place) in runs.iter().rev().zip(place.chunks_exact_mut(panel)) {
        let run = |n: usize| bytemuck::cast_slice(&runs[n][..features.len()]);
        pack_part(std::array::from_fn(|n| if n < outputs { run(n) } else { &[] }), place, largest);
    }
}

/// Splits a run of f16.
#[target_feature(enable = "avx512f,avx512bw")]
fn split(run: &[u8], upper: &mut [u16; DEPTH], lower: &mut [u16; DEPTH]) {
    let places = upper.as_chunks_mut::<LANES>().0.iter_mut().zip(lower.as_chunks_mut::<LANES>().0);
    let (whole, rest) = run.as_chunks();
    let mut last = [0; size_of::<[u16; LANES]>()];
    last[..rest.len()].copy_from_slice(rest);
    for (run, (upper, lower)) in whole.iter().chain((!rest.is_empty()).then_some(&last)).zip(places) {
        // SAFETY: the run has 16 numbers.
        let numbers = unsafe { _mm256_loadu_si256(run.as_ptr().cast()) };
        let numbers = _mm512_cvtph_ps(numbers);
        let first = _mm512_and_si512(_mm512_castps_si512(numbers), _mm512_set1_epi32(0xffff_0000u32 as i32));
        // Exact: three bits are left.
        let second = _mm512_castps_si512(_mm512_sub_ps(numbers, _mm512_castsi512_ps(first)));
        for (place, part) in [(upper, first), (lower, second)] {
            // SAFETY: there is room for 16 numbers.
            unsafe { _mm256_storeu_si256(place.as_mut_ptr().cast(), upper_halves(part)) };
        }
    }
}

/// The upper half of each word.
#[target_feature(enable = "avx512f")]
fn upper_halves(words: __m512i) -> __m256i {
    _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(words))
}

/// Packs runs of bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn pack_part(runs: [&[u8]; OUTPUTS], place: &mut [u8], largest: &mut [f32]) {
    let magnitude = _mm512_set1_epi16(i16::MAX);
    let most = pack(&runs, place, |most, column| _mm512_max_epu16(most, _mm512_and_si512(column, magnitude)));
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
