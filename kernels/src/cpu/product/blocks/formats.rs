//! What the kernels read of each format: integers of 8 bits, and the factors of 16 or 32 of them.

use std::arch::x86_64::{
    __m128, __m128i, __m256, __m256i, __m512i, _mm_cvtph_ps, _mm_cvtsi32_si128, _mm_insert_epi16, _mm_loadl_epi64,
    _mm_loadu_si128, _mm_set_epi64x, _mm_set_ss, _mm_set1_epi32, _mm_setr_epi8, _mm_srli_epi16, _mm256_and_si256,
    _mm256_broadcastsi128_si256, _mm256_castps128_ps256, _mm256_castsi128_si256, _mm256_cmpeq_epi8, _mm256_cvtph_ps,
    _mm256_fmadd_ps, _mm256_inserti128_si256, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_mul_ps, _mm256_or_si256,
    _mm256_set1_epi8, _mm256_set1_epi64x, _mm256_setr_epi64x, _mm256_shuffle_epi8, _mm256_storeu_ps, _mm256_sub_epi8,
    _mm512_and_si512, _mm512_broadcast_i32x4, _mm512_castsi256_si512, _mm512_inserti64x4, _mm512_mask_broadcast_i32x4,
    _mm512_set1_epi8, _mm512_setr_epi64, _mm512_shuffle_epi8, _mm512_srlv_epi64, _mm512_xor_si512,
};

use burn_deepspeed_core::block::{IQ4_NL_VALUES, TWICE_E2M1, half_of_power};

use super::rows::{CHUNK, RowGroup};

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

    /// What [`pair`](Self::pair) adds to the integers.
    const OFFSET: u8 = 128;

    /// The integers of two chunks, which an offset makes positive.
    ///
    /// # Safety
    /// The processor has AVX-512 BW, and `group` the chunks.
    #[inline(always)]
    unsafe fn pair(group: *const u8, chunk: usize, other: usize) -> __m512i {
        // SAFETY: the caller has the instructions and the chunks.
        unsafe {
            let both = [Self::elements(group, chunk), Self::elements(group, other)];
            let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(both[0]), both[1]);
            _mm512_xor_si512(both, _mm512_set1_epi8(-128))
        }
    }
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

/// The f16 that each of the first `count` blocks begins with, and zeros.
#[inline(always)]
unsafe fn f16s<const BYTES: usize>(group: *const u8, count: usize) -> __m256 {
    // SAFETY: the caller has F16C and the blocks.
    unsafe {
        let own = |at: usize| group.add(at * BYTES).cast::<u16>().read_unaligned();
        if count == 8 && BYTES > CHUNK {
            // Blocks of bytes take few instructions on vectors.
            let mut halves = _mm_cvtsi32_si128(i32::from(own(0)));
            halves = _mm_insert_epi16::<1>(halves, i32::from(own(1)));
            halves = _mm_insert_epi16::<2>(halves, i32::from(own(2)));
            halves = _mm_insert_epi16::<3>(halves, i32::from(own(3)));
            halves = _mm_insert_epi16::<4>(halves, i32::from(own(4)));
            halves = _mm_insert_epi16::<5>(halves, i32::from(own(5)));
            halves = _mm_insert_epi16::<6>(halves, i32::from(own(6)));
            return _mm256_cvtph_ps(_mm_insert_epi16::<7>(halves, i32::from(own(7))));
        }
        if count == 8 {
            // The others take many, and the units for numbers that are no vectors have nothing else to do.
            let four = |first: usize| {
                let [a, b, c, d] = [0, 1, 2, 3].map(|at| i64::from(own(first + at)));
                a | b << 16 | c << 32 | d << 48
            };
            return _mm256_cvtph_ps(_mm_set_epi64x(four(4), four(0)));
        }
        let mut halves = [0; 8];
        for (at, half) in halves.iter_mut().enumerate().take(count) {
            *half = own(at);
        }
        _mm256_cvtph_ps(_mm_loadu_si128(halves.as_ptr().cast()))
    }
}

/// The same for the powers of two of MXFP4.
#[inline(always)]
unsafe fn powers<const BYTES: usize>(group: *const u8, count: usize) -> __m256 {
    let mut scales = [0.0; 8];
    for (at, scale) in scales.iter_mut().enumerate().take(count) {
        // SAFETY: the caller has the blocks.
        *scale = half_of_power(unsafe { group.add(at * BYTES).read() });
    }
    // SAFETY: the caller has AVX2, and there are eight.
    unsafe { _mm256_loadu_ps(scales.as_ptr()) }
}

/// 32 bytes from `at` on.
#[inline(always)]
pub(super) unsafe fn bytes(at: *const u8) -> __m256i {
    // SAFETY: the caller has them.
    unsafe { _mm256_loadu_si256(at.cast()) }
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

/// Those of two blocks.
#[inline(always)]
unsafe fn nibbles_of_two(one: *const u8, other: *const u8) -> __m512i {
    // SAFETY: the caller has AVX-512 and the bytes.
    unsafe {
        let one = _mm512_broadcast_i32x4(_mm_loadu_si128(one.cast()));
        let both = _mm512_mask_broadcast_i32x4(one, 0xff00, _mm_loadu_si128(other.cast()));
        let shifted = _mm512_srlv_epi64(both, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4));
        _mm512_and_si512(shifted, _mm512_set1_epi8(15))
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

/// The same, plus 128.
#[inline(always)]
unsafe fn looked_up_with_offset(nibbles: __m512i, table: [i8; 16]) -> __m512i {
    let table = table.map(|element| element ^ -128);
    // SAFETY: the caller has AVX-512 BW, and a table is 16 bytes.
    unsafe { _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), nibbles) }
}

#[inline(always)]
pub(super) unsafe fn minus(elements: __m256i, offset: i8) -> __m256i {
    // SAFETY: the caller has AVX2.
    unsafe { _mm256_sub_epi8(elements, _mm256_set1_epi8(offset)) }
}

/// A format of blocks of one chunk: its bytes, whether a minimum follows the scale, a function for the scale and the minimum of a block, one for the
/// scales of all blocks of a group, and the elements. If there is a faster way to those of two blocks than one by one, what it adds to them, and they.
macro_rules! of_32 {
    (
        $name:ident, $bytes:literal, $minima:literal, $factors:ident, $scales:ident, |$block:ident| $elements:expr
        $(, $offset:literal, |$one:ident, $other:ident| $pair:expr)?
    ) => {
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
                // SAFETY: the caller has AVX2, FMA, F16C and the chunks, and there is room for 16 scales. Chunks that are not there have 0.
                unsafe {
                    let own = $scales::<$bytes>(group, count);
                    for m in 0..M {
                        let [factors, sums] = rows[m].vectors();
                        _mm256_storeu_ps(scales[m].as_mut_ptr(), _mm256_mul_ps(own, factors));
                        if Self::MINIMA {
                            minima[m] = _mm256_fmadd_ps(f16s::<$bytes>(group.add(2), count), sums, minima[m]);
                        }
                    }
                }
            }

            #[inline(always)]
            unsafe fn elements(group: *const u8, chunk: usize) -> __m256i {
                // SAFETY: the caller has AVX2 and the chunk, a block of the group.
                unsafe {
                    let $block = group.add(chunk * $bytes);
                    $elements
                }
            }

            $(
                const OFFSET: u8 = $offset;

                #[inline(always)]
                unsafe fn pair(group: *const u8, chunk: usize, other: usize) -> __m512i {
                    // SAFETY: the caller has AVX-512 BW and the chunks, blocks of the group.
                    unsafe {
                        let ($one, $other) = (group.add(chunk * $bytes), group.add(other * $bytes));
                        $pair
                    }
                }
            )?
        }
    };
}

of_32!(Q4_0, 18, false, halves, f16s, |block| minus(nibbles(block.add(2)), 8), 8, |one, other| {
    nibbles_of_two(one.add(2), other.add(2))
});
of_32!(Q4_1, 20, true, halves, f16s, |block| nibbles(block.add(4)), 0, |one, other| {
    nibbles_of_two(one.add(4), other.add(4))
});
of_32!(Q5_0, 22, false, halves, f16s, |block| {
    minus(_mm256_or_si256(nibbles(block.add(6)), fifths(block.add(2))), 16)
});
of_32!(Q5_1, 24, true, halves, f16s, |block| _mm256_or_si256(nibbles(block.add(8)), fifths(block.add(4))));
of_32!(Q8_0, 34, false, halves, f16s, |block| bytes(block.add(2)));
of_32!(Iq4Nl, 18, false, halves, f16s, |block| looked_up(nibbles(block.add(2)), IQ4_NL_VALUES), 128, |one, other| {
    looked_up_with_offset(nibbles_of_two(one.add(2), other.add(2)), IQ4_NL_VALUES)
});
of_32!(MXFP4, 17, false, power, powers, |block| looked_up(nibbles(block.add(1)), TWICE_E2M1), 128, |one, other| {
    looked_up_with_offset(nibbles_of_two(one.add(1), other.add(1)), TWICE_E2M1)
});
