//! Formats of blocks of 256 elements.

use std::arch::x86_64::{
    __m256i, _mm_cvtph_ps, _mm_cvtsi32_si128, _mm_cvtss_f32, _mm256_and_si256, _mm256_or_si256, _mm256_set1_epi8,
    _mm256_slli_epi16, _mm256_srl_epi16,
};

use super::formats::{Factors, Format, bytes, minus};

/// The f16 at byte `at`.
#[inline(always)]
unsafe fn half(block: &[u8], at: usize) -> f32 {
    let bits = u16::from_le_bytes([block[at], block[at + 1]]);
    // SAFETY: the caller has F16C.
    unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))) }
}

/// Four bytes as a word.
#[inline(always)]
fn word(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// The bits `shift..` of each of 32 bytes, of which `mask` leaves some.
#[inline(always)]
unsafe fn bits(bytes: __m256i, shift: usize, mask: i8) -> __m256i {
    // SAFETY: the caller has AVX2.
    unsafe {
        let shifted = _mm256_srl_epi16(bytes, _mm_cvtsi32_si128(shift as i32));
        _mm256_and_si256(shifted, _mm256_set1_epi8(mask))
    }
}

/// Bytes of four words, in order.
#[inline(always)]
fn of_words(words: [u32; 4]) -> [u8; 16] {
    let bytes = words.map(u32::to_le_bytes);
    std::array::from_fn(|at| bytes[at / 4][at % 4])
}

/// Where the bits of a chunk are that are packed by 128 elements: bytes before, and bits below.
#[inline(always)]
fn by_128(chunk: usize) -> (usize, usize) {
    (chunk / 4 * 32, chunk % 4 * 2)
}

/// `16 scales and minima of 4 bits | elements | scale | minimum`.
pub(super) struct Q2K;

impl Format for Q2K {
    const PARTS: usize = 2;
    const MINIMA: bool = true;
    const GROUP: usize = 84;
    const SMALL: bool = false;

    #[inline(always)]
    unsafe fn factors(group: &[u8], to: &mut Factors) {
        // SAFETY: the caller has F16C.
        let (scale, minimum) = unsafe { (half(group, 80), half(group, 82)) };
        for (part, own) in group[..16].iter().enumerate() {
            to.scales[part] = scale * f32::from(own & 15);
            to.minima[part] = -(minimum * f32::from(own >> 4));
        }
    }

    #[inline(always)]
    unsafe fn elements(group: *const u8, chunk: usize) -> __m256i {
        let (before, below) = by_128(chunk);
        // SAFETY: the caller has AVX2 and a whole block.
        unsafe { bits(bytes(group.add(16 + before)), below, 3) }
    }
}

/// `third bits | elements | 16 scales of 6 bits | scale`.
pub(super) struct Q3K;

impl Format for Q3K {
    const PARTS: usize = 2;
    const MINIMA: bool = false;
    const GROUP: usize = 110;
    const SMALL: bool = false;

    #[inline(always)]
    unsafe fn factors(group: &[u8], to: &mut Factors) {
        const FOUR: u32 = 0x0f0f_0f0f;
        const TWO: u32 = 0x0303_0303;
        // SAFETY: the caller has F16C.
        let scale = unsafe { half(group, 108) };
        let [a, b, c] = [96, 100, 104].map(|at| word(group, at));
        let low = [a & FOUR, b & FOUR, a >> 4 & FOUR, b >> 4 & FOUR];
        let own = of_words(std::array::from_fn(|at| low[at] | (c >> (2 * at) & TWO) << 4));
        for (part, own) in own.into_iter().enumerate() {
            to.scales[part] = scale * (f32::from(own) - 32.0);
        }
    }

    #[inline(always)]
    unsafe fn elements(group: *const u8, chunk: usize) -> __m256i {
        let (before, below) = by_128(chunk);
        // SAFETY: the caller has AVX2 and a whole block.
        unsafe {
            let third = _mm256_slli_epi16::<2>(bits(bytes(group), chunk, 1));
            minus(_mm256_or_si256(bits(bytes(group.add(32 + before)), below, 3), third), 4)
        }
    }
}

/// The factors that Q4_K and Q5_K begin with: `scale | minimum | 8 scales and minima of 6 bits`.
#[inline(always)]
unsafe fn with_minima(group: &[u8], to: &mut Factors) {
    const SIX: u32 = 0x3f3f_3f3f;
    const FOUR: u32 = 0x0f0f_0f0f;
    const TWO: u32 = 0x0303_0303;
    // SAFETY: the caller has F16C.
    let (scale, minimum) = unsafe { (half(group, 0), half(group, 2)) };
    let [a, b, c] = [4, 8, 12].map(|at| word(group, at));
    let upper = |word: u32| (word >> 6 & TWO) << 4;
    let own = of_words([a & SIX, c & FOUR | upper(a), b & SIX, c >> 4 & FOUR | upper(b)]);
    for (place, own) in to.scales.iter_mut().zip(&own[..8]) {
        *place = scale * f32::from(*own);
    }
    for (part, place) in to.minima.iter_mut().enumerate() {
        *place = -(minimum * f32::from(own[8 + part / 2]));
    }
}

/// `… | elements`.
pub(super) struct Q4K;

impl Format for Q4K {
    const PARTS: usize = 1;
    const MINIMA: bool = true;
    const GROUP: usize = 144;
    const SMALL: bool = false;

    #[inline(always)]
    unsafe fn factors(group: &[u8], to: &mut Factors) {
        // SAFETY: the caller guarantees it.
        unsafe { with_minima(group, to) }
    }

    #[inline(always)]
    unsafe fn elements(group: *const u8, chunk: usize) -> __m256i {
        // SAFETY: the caller has AVX2 and a whole block.
        unsafe { bits(bytes(group.add(16 + chunk / 2 * 32)), chunk % 2 * 4, 15) }
    }
}

/// `… | fifth bits | elements`.
pub(super) struct Q5K;

impl Format for Q5K {
    const PARTS: usize = 1;
    const MINIMA: bool = true;
    const GROUP: usize = 176;
    const SMALL: bool = false;

    #[inline(always)]
    unsafe fn factors(group: &[u8], to: &mut Factors) {
        // SAFETY: the caller guarantees it.
        unsafe { with_minima(group, to) }
    }

    #[inline(always)]
    unsafe fn elements(group: *const u8, chunk: usize) -> __m256i {
        // SAFETY: the caller has AVX2 and a whole block.
        unsafe {
            let fifth = _mm256_slli_epi16::<4>(bits(bytes(group.add(16)), chunk, 1));
            _mm256_or_si256(bits(bytes(group.add(48 + chunk / 2 * 32)), chunk % 2 * 4, 15), fifth)
        }
    }
}

/// `lower 4 bits | upper 2 bits | 16 scales | scale`.
pub(super) struct Q6K;

impl Format for Q6K {
    const PARTS: usize = 2;
    const MINIMA: bool = false;
    const GROUP: usize = 210;
    const SMALL: bool = false;

    #[inline(always)]
    unsafe fn factors(group: &[u8], to: &mut Factors) {
        // SAFETY: the caller has F16C.
        let scale = unsafe { half(group, 208) };
        for (place, own) in to.scales.iter_mut().zip(&group[192..208]) {
            *place = scale * f32::from(*own as i8);
        }
    }

    #[inline(always)]
    unsafe fn elements(group: *const u8, chunk: usize) -> __m256i {
        let (before, below) = by_128(chunk);
        // SAFETY: the caller has AVX2 and a whole block.
        unsafe {
            let lower = bytes(group.add(chunk / 4 * 64 + chunk % 2 * 32));
            let upper = _mm256_slli_epi16::<4>(bits(bytes(group.add(128 + before)), below, 3));
            minus(_mm256_or_si256(bits(lower, chunk % 4 / 2 * 4, 15), upper), 32)
        }
    }
}
