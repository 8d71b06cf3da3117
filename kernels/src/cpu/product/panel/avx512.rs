//! Packing with AVX-512, which transposes 16 words of 16 runs at a time.

use std::arch::x86_64::{
    __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_maskz_loadu_epi8, _mm512_setzero_si512, _mm512_storeu_si512,
};

use super::{LANES, OUTPUTS, STEP, TILE, VECTORS};
use crate::cpu::transpose::transposed;
use crate::cpu::x86::has_avx512_vnni;

/// Steps between those that are packed and those that are prefetched.
const AHEAD: usize = 4;

/// Whether the processor has the instructions that pack.
pub(in crate::cpu) fn is_available() -> bool {
    has_avx512_vnni()
}

/// [`pack_anywhere`](super::pack_anywhere). Returns for each vector what `fold` makes of zeros and all of its registers, in which each lane is an output.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(in crate::cpu::product) fn pack(
    runs: &[&[u8]; OUTPUTS],
    place: &mut [u8],
    fold: impl Fn(__m512i, __m512i) -> __m512i,
) -> [__m512i; VECTORS] {
    let mut totals = [_mm512_setzero_si512(); VECTORS];
    let vector = place.len() / VECTORS;
    let vectors = place.chunks_exact_mut(vector).zip(runs.as_chunks::<LANES>().0);
    for ((place, runs), total) in vectors.zip(&mut totals) {
        for (step, place) in place.as_chunks_mut::<TILE>().0.iter_mut().enumerate() {
            let rows: [__m512i; LANES] = std::array::from_fn(|lane| {
                let rest = runs[lane].get(step * STEP..).unwrap_or_default();
                _mm_prefetch::<_MM_HINT_T0>(runs[lane].as_ptr().wrapping_add((step + AHEAD) * STEP).cast());
                let mask = u64::MAX.checked_shr(STEP.saturating_sub(rest.len()) as u32).unwrap_or_default();
                // SAFETY: the mask has no bytes but those of `rest`.
                unsafe { _mm512_maskz_loadu_epi8(mask, rest.as_ptr().cast()) }
            });
            for (column, place) in transposed(rows).into_iter().zip(place.as_chunks_mut::<STEP>().0) {
                *total = fold(*total, column);
                // SAFETY: the place has 64 bytes.
                unsafe { _mm512_storeu_si512(place.as_mut_ptr().cast(), column) };
            }
        }
    }
    totals
}
