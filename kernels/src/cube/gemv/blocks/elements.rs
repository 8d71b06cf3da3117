//! Words of a chunk as numbers, and what these are multiplied with.

use burn_deepspeed_core::block::BlockFormat;
use cubecl::prelude::*;

use super::chunk::{Chunk, SMALL};
use crate::cube::blocks::factors::Factors;
use crate::cube::blocks::half_of;
use crate::cube::bytes::{BYTES, RAISED_VALUE, byte};

/// Scale and minimum of run `run` of chunk `at`, whose words begin at `first`.
#[cube]
pub(super) fn factors<H: Float>(
    words: &Array<u32>,
    at: u32,
    #[comptime] run: usize,
    #[comptime] first: usize,
    #[comptime] chunk: Chunk,
) -> Factors {
    let begin = comptime!(chunk.begin(run));
    let mut minimum = 0.0f32.runtime();
    let scale = match comptime!(chunk.format) {
        BlockFormat::Q4_1 | BlockFormat::Q5_1 => {
            let word = words[comptime!(first + begin / BYTES)];
            minimum = half_of::<H>(word, true, chunk.halves);
            half_of::<H>(word, false, chunk.halves)
        }
        BlockFormat::MXFP4 => {
            let word = words[comptime!(first + begin / BYTES)];
            let exponent = word >> comptime!((begin % BYTES * 8) as u32) & 0xffu32;
            half_power(exponent)
        }
        BlockFormat::Q4_K | BlockFormat::Q5_K => {
            let (scales, minima) = six_bits(words, first, at % 2u32);
            let shift = comptime!(8 * run as u32);
            let word = words[first];
            minimum = -half_of::<H>(word, true, chunk.halves) * f32::cast_from(minima >> shift & 0xffu32);
            half_of::<H>(word, false, chunk.halves) * f32::cast_from(scales >> shift & 0xffu32)
        }
        BlockFormat::Q6_K => {
            let own = words[comptime!(first + 16 + run / 2)] >> (at % 2u32 * 16u32 + comptime!(8 * (run % 2) as u32));
            let scale = f32::cast_from((own & 0xffu32) ^ 0x80u32) - 128.0f32;
            half_of::<H>(words[comptime!(first + 18)], false, chunk.halves) * scale
        }
        // Q4_0, Q5_0 and Q8_0.
        _ => half_of::<H>(words[comptime!(first + begin / BYTES)], comptime!(begin % BYTES == 2), chunk.halves),
    };
    Factors { scale, minimum }
}

/// Half of the power of two of a block of MXFP4, whose elements are twice as large where they are integers.
#[cube]
pub(super) fn half_power(exponent: u32) -> f32 {
    f32::reinterpret(select(exponent < 2u32, 0x0020_0000u32 << exponent, (exponent - 1u32) << 23u32))
}

/// Scales and minima of the first 4 parts of 8, or of the last 4: 6 bits each, in their bytes. The second and the third word of the block have
/// those of the first parts; the fourth word has 4 bits of the others each, and their upper bits are with the first.
#[cube]
fn six_bits(words: &Array<u32>, #[comptime] block: usize, half: u32) -> (u32, u32) {
    let (scales, minima, last) = (words[block + 1], words[block + 2], words[block + 3]);
    let late_scales = last & 0x0f0f_0f0fu32 | scales >> 2u32 & 0x3030_3030u32;
    let late_minima = last >> 4u32 & 0x0f0f_0f0fu32 | minima >> 2u32 & 0x3030_3030u32;
    let is_first = half == 0u32;
    (select(is_first, scales & 0x3f3f_3f3fu32, late_scales), select(is_first, minima & 0x3f3f_3f3fu32, late_minima))
}

/// `S` elements of chunk `at` from element `from` on, as numbers. The words of the chunk begin at `first`.
#[cube]
pub(super) fn numbers<S: Size>(
    words: &Array<u32>,
    at: u32,
    zero: u32,
    raised: u32,
    #[comptime] from: usize,
    #[comptime] first: usize,
    #[comptime] chunk: Chunk,
) -> Vector<f32, S> {
    let mut numbers = Vector::<f32, S>::new(0.0f32);
    #[unroll]
    for e in 0..S::value() {
        let element = comptime!(from + e);
        let (block, own) = comptime!((element / SMALL, element % SMALL));
        numbers[e] = match comptime!(chunk.format) {
            BlockFormat::Q4_0 => {
                nibble(words, raised, first, comptime!(chunk.begin(block) + 2 + own % 16), comptime!(own / 16), 8.0f32)
            }
            BlockFormat::Q4_1 => nibble(words, raised, first, comptime!(4 + own % 16), comptime!(own / 16), 0.0f32),
            BlockFormat::Q4_K => {
                nibble(words, raised, first, comptime!(16 + block / 2 * SMALL + own), comptime!(block % 2), 0.0f32)
            }
            BlockFormat::Q8_0 => {
                let at = comptime!(chunk.begin(block) + 2 + own);
                byte(words[comptime!(first + at / BYTES)], zero, comptime!((at % BYTES) as u32))
            }
            BlockFormat::MXFP4 => {
                let bytes = packed(words, at, comptime!(element / BYTES), first, chunk);
                byte(bytes, zero, comptime!((element % BYTES) as u32))
            }
            _ => {
                let bytes = packed(words, at, comptime!(element / BYTES), first, chunk);
                unsigned(bytes, raised, comptime!((element % BYTES) as u32), comptime!(offset(chunk.format)))
            }
        };
    }
    numbers
}

/// What is subtracted from the bits of an element.
fn offset(format: BlockFormat) -> f32 {
    match format {
        BlockFormat::Q5_0 => 16.0,
        BlockFormat::Q6_K => 32.0,
        _ => 0.0,
    }
}

/// The 4 bytes of a chunk from byte `at` on.
#[cube]
fn four(words: &Array<u32>, #[comptime] first: usize, #[comptime] at: usize) -> u32 {
    let shift = comptime!((at % BYTES * 8) as u32);
    let mut word = words[comptime!(first + at / BYTES)];
    if comptime!(shift > 0) {
        word = word >> shift | words[comptime!(first + at / BYTES + 1)] << comptime!(32 - shift);
    }
    word
}

/// Elements `4·i` to `4·i + 4` of chunk `at`, whose words begin at `first`: a byte each.
#[cube]
fn packed(
    words: &Array<u32>,
    at: u32,
    #[comptime] i: usize,
    #[comptime] first: usize,
    #[comptime] chunk: Chunk,
) -> u32 {
    let (begin, own, upper) = comptime!((chunk.begin(i / 8), i % 4, i % 8 / 4));
    match comptime!(chunk.format) {
        BlockFormat::MXFP4 => twice_e2m1(nibbles(four(words, first, comptime!(begin + 1 + 4 * own)), upper)),
        BlockFormat::Q5_0 => {
            let fifths = four(words, first, comptime!(begin + 2));
            nibbles(four(words, first, comptime!(begin + 6 + 4 * own)), upper) | fifth(fifths, comptime!(i % 8))
        }
        BlockFormat::Q5_1 => nibbles(words[comptime!(first + 2 + own)], upper) | fifth(words[comptime!(first + 1)], i),
        BlockFormat::Q5_K => {
            let low = nibbles(words[comptime!(first + 12 + i / 16 * 8 + i % 8)], comptime!(i / 8 % 2));
            let part = at % 2u32 * 4u32 + comptime!((i / 8) as u32);
            low | (words[comptime!(first + 4 + i % 8)] >> part & 0x0101_0101u32) << 4u32
        }
        // Q6_K.
        _ => {
            let low = nibbles(words[comptime!(first + i % 8)], comptime!(i / 8));
            let high = words[comptime!(first + 8 + i % 8)] >> (at % 2u32 * 2u32);
            if comptime!(i < 8) { low | (high & 0x0303_0303u32) << 4u32 } else { low | (high & 0x3030_3030u32) }
        }
    }
}

/// The fifth bits of elements `4·i` to `4·i + 4`, each in its byte: four copies of the bits, 7 apart, have one in each.
#[cube]
fn fifth(bits: u32, #[comptime] i: usize) -> u32 {
    ((bits >> comptime!(4 * i as u32) & 15u32) * 0x0204_0810u32) & 0x1010_1010u32
}

/// The lower halves of four bytes, or the upper ones.
#[cube]
fn nibbles(bytes: u32, #[comptime] which: usize) -> u32 {
    if comptime!(which == 0) { bytes & 0x0f0f_0f0fu32 } else { bytes >> 4u32 & 0x0f0f_0f0fu32 }
}

/// Twice the floats of E2M1 of these four bits, in each byte: signed integers.
///
/// The magnitudes 0 to 7 are 0 to 3, and from 4 on 4, 6, 8 and 12: what is left of the magnitude counts once more, and 3 counts 2 more.
#[cube]
fn twice_e2m1(bits: u32) -> u32 {
    let magnitude = bits & 0x0707_0707u32;
    let large = bits >> 2u32 & 0x0101_0101u32;
    let rest = magnitude & (large * 3u32);
    let most = rest & rest >> 1u32 & 0x0101_0101u32;
    let twice = magnitude + rest + (most << 1u32);
    let negative = bits >> 3u32 & 0x0101_0101u32;
    // 128 - x is (x ^ 127) + 1, and 128 + x is x ^ 128.
    ((twice ^ (0x8080_8080u32 - negative)) + negative) ^ 0x8080_8080u32
}

/// Bits of a float after the first.
const MANTISSA: u32 = 23;

/// Four bits of byte `at` of a chunk, the lower or the upper ones, less `offset`. They stay where they are in their word, as the last bits of
/// a float whose first bit counts as much more as there are bits below them. Every step is exact.
#[cube]
fn nibble(
    words: &Array<u32>,
    raised: u32,
    #[comptime] first: usize,
    #[comptime] at: usize,
    #[comptime] upper: usize,
    #[comptime] offset: f32,
) -> f32 {
    let place = comptime!((at % BYTES * 8 + upper * 4) as u32);
    let mut word = words[comptime!(first + at / BYTES)];
    if comptime!(place + 4 > MANTISSA) {
        word >>= 16u32;
    }
    let bit = comptime!(if place + 4 > MANTISSA { place - 16 } else { place });
    let bits = (word & comptime!(15u32 << bit)) | (raised - comptime!(bit << 23));
    f32::reinterpret(bits) - comptime!(RAISED_VALUE / (1u32 << bit) as f32 + offset)
}

/// A byte of a word less `offset`, without a conversion: it becomes one of the last bytes of [`RAISED`](crate::cube::bytes::RAISED). Every step is exact.
#[cube]
fn unsigned(word: u32, raised: u32, #[comptime] at: u32, #[comptime] offset: f32) -> f32 {
    let mut half = word;
    if comptime!(at >= 2) {
        half = word >> 16u32;
    }
    if comptime!(at.is_multiple_of(2)) {
        f32::reinterpret((half & 0xffu32) | raised) - comptime!(RAISED_VALUE + offset)
    } else {
        // One byte further left, so that it counts 256 times as much.
        f32::reinterpret((half & 0xff00u32) | raised) * comptime!(1.0 / 256.0)
            - comptime!(RAISED_VALUE / 256.0 + offset)
    }
}
