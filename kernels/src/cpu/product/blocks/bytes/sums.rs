//! The products and the sums of a tile, and how the ones are added to the others.

use std::arch::x86_64::{
    __m512, __m512i, _mm512_add_epi32, _mm512_cvtepi32_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mul_ps, _mm512_set1_ps, _mm512_slli_epi32, _mm512_storeu_ps,
};

use crate::cpu::product::panel::{GROUP, LANES, OUTPUTS, VECTORS};

/// The integer products of a step, the plane of the upper bytes first.
pub(super) type Products<const N: usize> = [[[i32; OUTPUTS]; GROUP]; N];

/// The sums of a group.
pub(super) type Sums = [[f32; OUTPUTS]; GROUP];

/// Adds the integer of one or both planes, times the scales of an output and a row.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn scaled(upper: __m512i, lower: Option<__m512i>, output: __m512, row: f32, total: __m512) -> __m512 {
    let whole = match lower {
        Some(lower) => _mm512_add_epi32(_mm512_slli_epi32::<8>(upper), lower),
        None => upper,
    };
    _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), _mm512_mul_ps(output, _mm512_set1_ps(row)), total)
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn integers(numbers: &[i32; OUTPUTS], vector: usize) -> __m512i {
    let numbers: &[[i32; LANES]] = numbers.as_chunks().0;
    // SAFETY: the vector has 16 numbers.
    unsafe { _mm512_loadu_si512(numbers[vector].as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn load(numbers: &[f32; OUTPUTS]) -> [__m512; VECTORS] {
    // SAFETY: there are two vectors.
    unsafe { [_mm512_loadu_ps(numbers.as_ptr()), _mm512_loadu_ps(numbers.as_ptr().add(LANES))] }
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn store(totals: [__m512; VECTORS], numbers: &mut [f32; OUTPUTS]) {
    for (total, place) in totals.into_iter().zip(numbers.as_chunks_mut::<LANES>().0) {
        // SAFETY: there is room for 16 numbers.
        unsafe { _mm512_storeu_ps(place.as_mut_ptr(), total) };
    }
}
