//! What the kernels read of each format: integers of 8 bits, and the factors of 16 or 32 of them.

use std::arch::x86_64::{
    __m128, __m128i, __m256, __m256i, _mm_add_ps, _mm_castpd_ps, _mm_cvtph_ps, _mm_cvtsi32_si128, _mm_cvtss_f32,
    _mm_load_sd, _mm_loadl_epi64, _mm_loadu_si128, _mm_mul_ps, _mm_set_ss, _mm_set1_epi32, _mm_setr_epi8,
    _mm_srli_epi16, _mm_store_ss, _mm256_and_si256, _mm256_broadcastsi128_si256, _mm256_castps128_ps256,
    _mm256_castps256_ps128, _mm256_castsi128_si256, _mm256_cmpeq_epi8, _mm256_fmadd_ps, _mm256_inserti128_si256,
    _mm256_loadu_ps, _mm256_loadu_si256, _mm256_or_si256, _mm256_set1_epi8, _mm256_set1_epi64x, _mm256_setr_epi64x,
    _mm256_shuffle_epi8, _mm256_slli_epi16, _mm256_srl_epi16, _mm256_storeu_ps, _mm256_sub_epi8,
};

use burn_deepspeed_core::block::{IQ4_NL_VALUES, TWICE_E2M1, half_of_power};

use super::rows::RowGroup;

/// The factors of 256 elements: an element is `scale · integer + minimum`.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    /// Of 32 elements each, or of 16.
    pub(super) scales: [f32; 16],
    /// Of 16 elements each.
    pub(super) minima: [f32; 16],
}

impl Factors {
    pub(super) const ZERO: Self = Self { scales: [0.0; 16], minima: [0.0; 16] };
}

/// A format. A group is 256 elements, or the rest of a row; a chunk has 32 of them.
pub(super) trait Format {
    /// Scales of a chunk, 1 or 2.
    const PARTS: usize;
    /// Whether elements have minima.
    const MINIMA: bool;
    /// Bytes of a whole group.
    const GROUP: usize;

    /// Whether a block has one chunk, and a group may have fewer than eight.
    const SMALL: bool;

    /// The factors of a group.
    ///
    /// # Safety
    /// The processor has F16C, and `group` whole blocks of the format.
    unsafe fn factors(group: &[u8], to: &mut Factors);

    /// Writes the scales of the first `count` chunks of a group times those of rows, and adds minima times the sums of rows to `minima`, of
    /// which [`minimum`](Self::minimum) is the total.
    ///
    /// # Safety
    /// The processor has AVX2, FMA and F16C, and `group` the chunks.
    #[inline(always)]
    unsafe fn weigh<const M: usize>(
        group: *const u8,
        _count: usize,
        rows: &[RowGroup<'_>; M],
        scales: &mut [[f32; 16]; M],
        minima: &mut [__m256; M],
    ) {
        let mut factors = Factors::ZERO;
        // SAFETY: the caller has F16C, and the chunks are a whole block.
        unsafe { Self::factors(std::slice::from_raw_parts(group, Self::GROUP), &mut factors) };
        for ((row, scales), total) in rows.iter().zip(scales).zip(minima) {
            for (at, scale) in scales.iter_mut().enumerate().take(8 * Self::PARTS) {
                *scale = factors.scales[at] * row.factors[at / Self::PARTS][0];
            }
            if Self::MINIMA {
                for (minima, sums) in factors.minima.as_chunks::<8>().0.iter().zip(row.sums.as_chunks::<8>().0) {
                    // SAFETY: the caller has FMA, and both have eight elements.
                    *total = unsafe {
                        _mm256_fmadd_ps(_mm256_loadu_ps(minima.as_ptr()), _mm256_loadu_ps(sums.as_ptr()), *total)
                    };
                }
            }
        }
    }

    /// The total of minima.
    ///
    /// # Safety
    /// The processor has AVX2.
    #[inline(always)]
    unsafe fn minimum(minima: __m256) -> f32 {
        // SAFETY: there is room for eight lanes.
        unsafe { lanes(minima) }.iter().sum()
    }

    /// The integers of a chunk.
    ///
    /// # Safety
    /// The processor has AVX2, and `group` the chunk.
    unsafe fn elements(group: *const u8, chunk: usize) -> __m256i;
}

/// The f16 at byte `at`.
#[inline(always)]
unsafe fn half(block: &[u8], at: usize) -> f32 {
    let bits = u16::from_le_bytes([block[at], block[at + 1]]);
    // SAFETY: the caller has F16C.
    unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))) }
}

#[inline(always)]
unsafe fn lanes(vector: __m256) -> [f32; 8] {
    let mut lanes = [0.0; 8];
    // SAFETY: the caller has AVX2, and there is room for eight lanes.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), vector) };
    lanes
}

/// The four f16 that a block begins with: a scale, perhaps a minimum, and what comes of others.
#[inline(always)]
unsafe fn halves(block: *const u8) -> __m128 {
    // SAFETY: the caller has F16C and the bytes.
    unsafe { _mm_cvtph_ps(_mm_loadl_epi64(block.cast())) }
}

/// The power of two that a block of MXFP4 begins with, over the 2 of its table.
#[inline(always)]
unsafe fn power(block: *const u8) -> __m128 {
    // SAFETY: the caller has the byte.
    unsafe { _mm_set_ss(half_of_power(block.read())) }
}

/// Four bytes as a word.
#[inline(always)]
fn word(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// 32 bytes from `at` on.
#[inline(always)]
unsafe fn bytes(at: *const u8) -> __m256i {
    // SAFETY: the caller has them.
    unsafe { _mm256_loadu_si256(at.cast()) }
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

/// The low halves of 16 bytes, and then the high ones.
#[inline(always)]
unsafe fn nibbles(at: *const u8) -> __m256i {
    // SAFETY: the caller has AVX2 and the bytes.
    unsafe {
        let bytes: __m128i = _mm_loadu_si128(at.cast());
        let both = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(bytes), _mm_srli_epi16::<4>(bytes));
        _mm256_and_si256(both, _mm256_set1_epi8(15))
    }
}

/// 16 where a bit of the four bytes at `at` is set.
#[inline(always)]
unsafe fn fifths(at: *const u8) -> __m256i {
    // SAFETY: the caller has AVX2 and the bytes.
    unsafe {
        let word = _mm256_broadcastsi128_si256(_mm_set1_epi32(at.cast::<i32>().read_unaligned()));
        // Byte 0 in the place of elements 0 to 7, and so on; then one bit of each.
        let places = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
        let one = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let own = _mm256_and_si256(_mm256_shuffle_epi8(word, places), one);
        _mm256_and_si256(_mm256_cmpeq_epi8(own, one), _mm256_set1_epi8(16))
    }
}

/// Elements that a table of 16 has.
#[inline(always)]
unsafe fn looked_up(nibbles: __m256i, table: [i8; 16]) -> __m256i {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = table;
    // SAFETY: the caller has AVX2.
    unsafe {
        let table = _mm_setr_epi8(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p);
        _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), nibbles)
    }
}

#[inline(always)]
unsafe fn minus(elements: __m256i, offset: i8) -> __m256i {
    // SAFETY: the caller has AVX2.
    unsafe { _mm256_sub_epi8(elements, _mm256_set1_epi8(offset)) }
}

/// A format of blocks of one chunk: its bytes, whether a minimum follows the scale, which lane of a vector has the scale first and the
/// minimum second, and the elements.
macro_rules! of_32 {
    ($name:ident, $bytes:literal, $minima:literal, $factors:ident, |$block:ident| $elements:expr) => {
        pub(super) struct $name;

        impl Format for $name {
            const PARTS: usize = 1;
            const MINIMA: bool = $minima;
            const GROUP: usize = 8 * $bytes;
            const SMALL: bool = true;

            #[inline(always)]
            unsafe fn factors(group: &[u8], to: &mut Factors) {
                for (at, block) in group.as_chunks::<$bytes>().0.iter().enumerate() {
                    // SAFETY: the caller has F16C, and the block more than eight bytes.
                    let [scale, minimum, ..] = unsafe { lanes(_mm256_castps128_ps256($factors(block.as_ptr()))) };
                    to.scales[at] = scale;
                    if Self::MINIMA {
                        to.minima[2 * at..][..2].fill(minimum);
                    }
                }
            }

            #[inline(always)]
            unsafe fn weigh<const M: usize>(
                group: *const u8,
                count: usize,
                rows: &[RowGroup<'_>; M],
                scales: &mut [[f32; 16]; M],
                minima: &mut [__m256; M],
            ) {
                for at in 0..count {
                    // SAFETY: the caller has F16C and the chunk, a block of more than eight bytes.
                    let own = unsafe { $factors(group.add(at * $bytes)) };
                    for m in 0..M {
                        // SAFETY: the caller has AVX2, and both arrays have an element for each chunk.
                        unsafe {
                            let row = _mm_load_sd(rows[m].factors.get_unchecked(at).as_ptr().cast());
                            let products = _mm_mul_ps(own, _mm_castpd_ps(row));
                            _mm_store_ss(scales[m].get_unchecked_mut(at), products);
                            if Self::MINIMA {
                                let sum = _mm_add_ps(_mm256_castps256_ps128(minima[m]), products);
                                minima[m] = _mm256_castps128_ps256(sum);
                            }
                        }
                    }
                }
            }

            #[inline(always)]
            unsafe fn minimum(minima: __m256) -> f32 {
                // SAFETY: the caller has AVX2.
                unsafe { lanes(minima)[1] }
            }

            #[inline(always)]
            unsafe fn elements(group: *const u8, chunk: usize) -> __m256i {
                // SAFETY: the caller has AVX2 and the chunk, a block of the group.
                unsafe {
                    let $block = group.add(chunk * $bytes);
                    $elements
                }
            }
        }
    };
}

of_32!(Q4_0, 18, false, halves, |block| minus(nibbles(block.add(2)), 8));
of_32!(Q4_1, 20, true, halves, |block| nibbles(block.add(4)));
of_32!(Q5_0, 22, false, halves, |block| minus(_mm256_or_si256(nibbles(block.add(6)), fifths(block.add(2))), 16));
of_32!(Q5_1, 24, true, halves, |block| _mm256_or_si256(nibbles(block.add(8)), fifths(block.add(4))));
of_32!(Q8_0, 34, false, halves, |block| bytes(block.add(2)));
of_32!(Iq4Nl, 18, false, halves, |block| looked_up(nibbles(block.add(2)), IQ4_NL_VALUES));
of_32!(MXFP4, 17, false, power, |block| looked_up(nibbles(block.add(1)), TWICE_E2M1));

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
