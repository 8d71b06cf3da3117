//! The scale and the minimum of an element.

use burn_deepspeed_core::block::BlockFormat;
use cubecl::prelude::*;

use super::bytes::Bytes;
use crate::cube::fragment::Pair;

/// An element counts `scale · element + minimum`.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Factors {
    pub scale: f32,
    /// 0 where the format has none.
    pub minimum: f32,
}

/// The value of an f16, without f16 arithmetic, which not every device has.
#[cube]
fn half(bits: u32) -> f32 {
    let rest = bits & 0x7fffu32;
    let (exponent, fraction) = (rest >> 10u32, rest & 0x3ffu32);
    // Exponents count from 15 in place of 127.
    let normal = f32::reinterpret((rest << 13u32) + 0x3800_0000u32);
    let small = f32::cast_from(fraction) * comptime!(1.0 / 16_777_216.0);
    let no_number = f32::reinterpret((rest << 13u32) | 0x7f80_0000u32);
    let value = select(exponent == 0u32, small, select(exponent == 31u32, no_number, normal));
    select(bits >= 0x8000u32, -value, value)
}

/// The f16 in the lower half of a word, or in the upper one: by their bits, unless [`halves`](crate::cube::Machine::halves) become f32 as `H`.
#[cube]
pub(crate) fn half_of<H: Float>(word: u32, #[comptime] upper: bool, #[comptime] halves: bool) -> f32 {
    if comptime!(halves) {
        let pair = Vector::<H, Pair>::reinterpret(word);
        f32::cast_from(pair[comptime!(upper as usize)])
    } else if comptime!(upper) {
        half(word >> 16u32)
    } else {
        half(word & 0xffffu32)
    }
}

/// A scale and a minimum in the halves of a word.
#[cube]
fn both<H: Float>(word: u32, #[comptime] halves: bool) -> Factors {
    Factors { scale: half_of::<H>(word, false, halves), minimum: half_of::<H>(word, true, halves) }
}

/// The factors of [part](super::layout::parts) `part` of the block that begins at byte `block`. Elements of MXFP4 are twice as large, and
/// their scale is half of it; a scale of 2^-127 and less is 0.
#[cube]
pub(crate) fn factors<H: Float>(
    bytes: &Bytes,
    block: u32,
    part: u32,
    #[comptime] format: BlockFormat,
    #[comptime] halves: bool,
) -> Factors {
    let mut found = Factors { scale: 0.0f32.runtime(), minimum: 0.0f32.runtime() };
    match comptime!(format) {
        BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::Q8_0 | BlockFormat::IQ4_NL => {
            found.scale = half_of::<H>(bytes.two(block), false, halves);
        }
        BlockFormat::Q4_1 | BlockFormat::Q5_1 => {
            let both = both::<H>(bytes.four(block), halves);
            found.scale = both.scale;
            found.minimum = both.minimum;
        }
        BlockFormat::MXFP4 => {
            let exponent = bytes.byte(block);
            found.scale = f32::reinterpret(select(exponent < 2u32, 0u32, (exponent - 1u32) << 23u32));
        }
        BlockFormat::Q2_K => {
            let both = both::<H>(bytes.four(block + 80u32), halves);
            let own = bytes.byte(block + part);
            found.scale = both.scale * f32::cast_from(own & 15u32);
            found.minimum = -(both.minimum * f32::cast_from(own >> 4u32));
        }
        BlockFormat::Q3_K => {
            let low = bytes.byte(block + 96u32 + part % 8u32) >> (part / 8u32 * 4u32) & 15u32;
            let high = bytes.byte(block + 104u32 + part % 4u32) >> (part / 4u32 * 2u32) & 3u32;
            let own = f32::cast_from(low | high << 4u32) - 32.0f32;
            found.scale = half_of::<H>(bytes.two(block + 108u32), false, halves) * own;
        }
        BlockFormat::Q4_K | BlockFormat::Q5_K => {
            let both = both::<H>(bytes.four(block), halves);
            let own = six_bits(bytes.four(block + 4u32), bytes.four(block + 8u32), bytes.four(block + 12u32), part);
            found.scale = both.scale * f32::cast_from(own & 0xffu32);
            found.minimum = -(both.minimum * f32::cast_from(own >> 8u32));
        }
        BlockFormat::Q6_K => {
            let own = f32::cast_from(bytes.byte(block + 192u32 + part) ^ 0x80u32) - 128.0f32;
            found.scale = half_of::<H>(bytes.two(block + 208u32), false, halves) * own;
        }
        BlockFormat::F32 | BlockFormat::F16 | BlockFormat::BF16 => {
            found.scale = 1.0f32.runtime();
        }
    }
    found
}

/// Scale and minimum of part `part` of 8, of 6 bits each, in the first two bytes. The first four have theirs in the words of scales and
/// of minima; the last four have 4 bits each in the last word, and the others with the first four.
#[cube]
fn six_bits(scales: u32, minima: u32, last: u32, part: u32) -> u32 {
    let shift = part % 4u32 * 8u32;
    let (scale, minimum, rest) = (scales >> shift, minima >> shift, last >> shift);
    let early = scale & 63u32 | (minimum & 63u32) << 8u32;
    let late_scale = rest & 15u32 | (scale >> 6u32 & 3u32) << 4u32;
    let late_minimum = rest >> 4u32 & 15u32 | (minimum >> 6u32 & 3u32) << 4u32;
    select(part < 4u32, early, late_scale | late_minimum << 8u32)
}
