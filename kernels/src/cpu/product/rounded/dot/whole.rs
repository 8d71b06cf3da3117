//! What the ways to multiply share.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::{int16x8_t, vld1_s8, vld1q_s16, vmovl_s8};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256i, __m512i, _mm_loadu_si128, _mm256_cvtepi8_epi16, _mm256_loadu_si256, _mm512_cvtepi8_epi16,
    _mm512_loadu_si512,
};

/// Rows that the weights are multiplied with together.
pub const PAIR: usize = 2;

/// The same with 32 registers.
pub const QUAD: usize = 4;

/// Weights: integers of 8 bits, or of 16 that were widened. All are read as 16 bits.
pub trait Whole: Copy + Into<i32> {
    /// The elements `at..at + 16`.
    ///
    /// # Safety
    /// The slice has these elements, and the processor has AVX2.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load(elements: &[Self], at: usize) -> __m256i;

    /// The elements `at..at + 32`.
    ///
    /// # Safety
    /// The slice has these elements, and the processor has AVX-512BW.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load_wide(elements: &[Self], at: usize) -> __m512i;

    /// The elements `at..at + 8`.
    ///
    /// # Safety
    /// The slice has these elements.
    #[cfg(target_arch = "aarch64")]
    unsafe fn load(elements: &[Self], at: usize) -> int16x8_t;

    /// The elements as they are, if they are bytes.
    #[cfg(target_arch = "aarch64")]
    fn as_bytes(_elements: &[Self]) -> Option<&[i8]> {
        None
    }
}

impl Whole for i16 {
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(elements: &[Self], at: usize) -> __m256i {
        // SAFETY: the caller guarantees it.
        unsafe { _mm256_loadu_si256(elements.as_ptr().add(at).cast()) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load_wide(elements: &[Self], at: usize) -> __m512i {
        // SAFETY: the caller guarantees it.
        unsafe { _mm512_loadu_si512(elements.as_ptr().add(at).cast()) }
    }

    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    unsafe fn load(elements: &[Self], at: usize) -> int16x8_t {
        // SAFETY: the caller guarantees it.
        unsafe { vld1q_s16(elements.as_ptr().add(at)) }
    }
}

impl Whole for i8 {
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(elements: &[Self], at: usize) -> __m256i {
        // SAFETY: the caller guarantees it.
        unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(elements.as_ptr().add(at).cast())) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load_wide(elements: &[Self], at: usize) -> __m512i {
        // SAFETY: the caller guarantees it.
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(elements.as_ptr().add(at).cast())) }
    }

    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    unsafe fn load(elements: &[Self], at: usize) -> int16x8_t {
        // SAFETY: the caller guarantees it.
        unsafe { vmovl_s8(vld1_s8(elements.as_ptr().add(at))) }
    }

    #[cfg(target_arch = "aarch64")]
    fn as_bytes(elements: &[Self]) -> Option<&[i8]> {
        Some(elements)
    }
}

/// The sum of products, one by one.
pub fn rest<E: Whole>(run: &[E], row: &[i16]) -> i64 {
    run.iter().zip(row).map(|(a, b)| i64::from((*a).into() * i32::from(*b))).sum()
}
