//! The scale and the minimum of an element.

use burn_deepspeed_core::block::BlockFormat;
use cubecl::prelude::*;

use super::bytes::Bytes;

/// An element counts `scale · element + minimum`.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Factors {
    pub scale: f32,
    /// 0 where the format [has none](super::layout::has_minimum).
    pub minimum: f32,
}

/// The value of an f16, without f16 arithmetic, which not every device has.
#[cube]
pub(crate) fn half(bits: u32) -> f32 {
    let rest = bits & 0x7fffu32;
    let (exponent, fraction) = (rest >> 10u32, rest & 0x3ffu32);
    // Exponents count from 15 in place of 127.
    let normal = f32::reinterpret((rest << 13u32) + 0x3800_0000u32);
    let small = f32::cast_from(fraction) * comptime!(1.0 / 16_777_216.0);
    let no_number = f32::reinterpret((rest << 13u32) | 0x7f80_0000u32);
    let value = select(exponent == 0u32, small, select(exponent == 31u32, no_number, normal));
    select(bits >= 0x8000u32, -value, value)
}

/// A scale and a minimum in the halves of a word.
#[cube]
fn halves(word: u32) -> Factors {
    Factors { scale: half(word & 0xffffu32), minimum: half(word >> 16u32) }
}

/// The factors of element `at` of the block that begins at byte `block`. Elements of MXFP4 are twice as large, and their scale is half of
/// it; a scale of 2^-127 and less is 0.
#[cube]
pub(super) fn factors(bytes: &Bytes, block: u32, at: u32, #[comptime] format: BlockFormat) -> Factors {
    let mut found = Factors { scale: 0.0f32.runtime(), minimum: 0.0f32.runtime() };
    match comptime!(format) {
        BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::Q8_0 | BlockFormat::IQ4_NL => {
            found.scale = half(bytes.four(block) & 0xffffu32);
        }
        BlockFormat::Q4_1 | BlockFormat::Q5_1 => {
            let both = halves(bytes.four(block));
            found.scale = both.scale;
            found.minimum = both.minimum;
        }
        BlockFormat::MXFP4 => {
            let exponent = bytes.byte(block);
            found.scale = f32::reinterpret(select(exponent < 2u32, 0u32, (exponent - 1u32) << 23u32));
        }
        BlockFormat::Q2_K => {
            let both = halves(bytes.four(block + 80u32));
            let own = bytes.byte(block + at / 16u32);
            found.scale = both.scale * f32::cast_from(own & 15u32);
            found.minimum = -(both.minimum * f32::cast_from(own >> 4u32));
        }
        BlockFormat::Q3_K => {
            let part = at / 16u32;
            let low = bytes.byte(block + 96u32 + part % 8u32) >> (part / 8u32 * 4u32) & 15u32;
            let high = bytes.byte(block + 104u32 + part % 4u32) >> (part / 4u32 * 2u32) & 3u32;
            let own = f32::cast_from(low | high << 4u32) - 32.0f32;
            found.scale = half(bytes.four(block + 108u32) & 0xffffu32) * own;
        }
        BlockFormat::Q4_K | BlockFormat::Q5_K => {
            let both = halves(bytes.four(block));
            let own =
                six_bits(bytes.four(block + 4u32), bytes.four(block + 8u32), bytes.four(block + 12u32), at / 32u32);
            found.scale = both.scale * f32::cast_from(own & 0xffu32);
            found.minimum = -(both.minimum * f32::cast_from(own >> 8u32));
        }
        BlockFormat::Q6_K => {
            let own = f32::cast_from(bytes.byte(block + 192u32 + at / 16u32) ^ 0x80u32) - 128.0f32;
            found.scale = half(bytes.four(block + 208u32) & 0xffffu32) * own;
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
