//! Elements of blocks as f32.

use burn_deepspeed_core::block::BlockFormat;
use cubecl::prelude::*;

use super::bytes::Bytes;
use super::factors::{Factors, half_of};
use super::layout::{fifths, has_minimum, lower, offset, table, upper};
use crate::cube::bytes::RAISED_VALUE;

/// The bits of the elements that are in one word: runs of 4, the [span](super::layout::Packed) apart.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Word {
    lower: u32,
    /// The upper bits, those of the first run in the lowest places.
    upper: u32,
    /// Where the format has powers of two: that of the block.
    exponent: u32,
}

/// The word of element `at` of the block that begins at byte `block`: the first one of its first run.
#[cube]
pub(crate) fn word(bytes: &Bytes, block: u32, at: u32, #[comptime] format: BlockFormat) -> Word {
    let (first, period, span) = comptime!((lower(format).first, lower(format).period(), lower(format).span));
    let mut found = Word {
        lower: bytes.four(block + first + at / period * span + at % span),
        upper: 0u32.runtime(),
        exponent: 0u32.runtime(),
    };
    if comptime!(upper(format).is_some()) {
        let packed = comptime!(upper(format).unwrap_or(lower(format)));
        let (period, span) = comptime!((packed.period(), packed.span));
        let word = bytes.four(block + packed.first + at / period * span + at % span);
        found.upper = word >> (at % period / span * packed.bits);
    }
    if comptime!(fifths(format).is_some()) {
        found.upper = bytes.four(block + comptime!(fifths(format).unwrap_or(0))) >> at;
    }
    if comptime!(format == BlockFormat::MXFP4) {
        found.exponent = bytes.byte(block);
    }
    found
}

/// The elements of run `run` of a word. `raised` is [`RAISED`](crate::cube::bytes::RAISED).
#[cube]
pub(crate) fn elements(
    word: Word,
    factors: Factors,
    raised: u32,
    #[comptime] run: u32,
    #[comptime] format: BlockFormat,
) -> Vector<f32, Const<4>> {
    let bits = bits(word, run, format);
    let mut values = Vector::<f32, Const<4>>::new(0.0f32);
    #[unroll]
    for k in 0..4usize {
        let mut own = bits;
        if comptime!(k > 0) {
            own = bits >> comptime!(8 * k as u32);
        }
        if comptime!(table(format).is_some()) {
            own = choose(own & 15u32, comptime!(table(format).unwrap_or([0; 4])));
        }
        // Without a conversion: the byte becomes the last one of 2^23. Every step is exact.
        let element = f32::reinterpret((own & 0xffu32) | raised) - comptime!(RAISED_VALUE + offset(format));
        let mut value = factors.scale * element;
        if comptime!(has_minimum(format)) {
            value += factors.minimum;
        }
        if comptime!(format == BlockFormat::MXFP4) {
            value = subnormal(word.exponent, own & 0xffu32, value);
        }
        values[k] = value;
    }
    values
}

/// The bits of each element of run `run`, in its byte.
#[cube]
fn bits(word: Word, #[comptime] run: u32, #[comptime] format: BlockFormat) -> u32 {
    let packed = comptime!(lower(format));
    let mut bits = (word.lower >> comptime!(run * packed.bits)) & comptime!(packed.mask());
    if comptime!(upper(format).is_some()) {
        let upper = comptime!(upper(format).unwrap_or(packed));
        // From the lowest places of their bytes to those after the lower bits.
        let right = comptime!(run * packed.span / upper.span * upper.bits);
        let mask = comptime!(upper.mask() << packed.bits);
        if comptime!(right >= packed.bits) {
            bits |= word.upper >> comptime!(right - packed.bits) & mask;
        } else {
            bits |= word.upper << comptime!(packed.bits - right) & mask;
        }
    }
    if comptime!(fifths(format).is_some()) {
        // Four copies of the bits, 7 apart, have one in each byte.
        let own = word.upper >> comptime!(run * packed.span) & 15u32;
        bits |= (own * 0x0204_0810u32) & 0x1010_1010u32;
    }
    if comptime!(format == BlockFormat::Q8_0) {
        bits ^= 0x8080_8080u32;
    }
    bits
}

/// The float at byte `at`.
#[cube]
pub(crate) fn float(bytes: &Bytes, at: u32, #[comptime] format: BlockFormat) -> f32 {
    match comptime!(format) {
        BlockFormat::F16 => half_of::<f32>(bytes.two(at), false, false),
        BlockFormat::BF16 => f32::reinterpret(bytes.two(at) << 16u32),
        _ => f32::reinterpret(bytes.four(at)),
    }
}

/// Byte `at` of a table.
#[cube]
fn choose(at: u32, #[comptime] table: [u32; 4]) -> u32 {
    let first = select(at < 4u32, comptime!(table[0]), comptime!(table[1]));
    let last = select(at < 12u32, comptime!(table[2]), comptime!(table[3]));
    select(at < 8u32, first, last) >> (at % 4u32 * 8u32)
}

/// `value`, unless the power of two of its block is one of the two smallest. Then the bits of the product are put together, since a device
/// may flush subnormal factors to 0. `own` is 128 more than twice the element of E2M1.
#[cube]
fn subnormal(exponent: u32, own: u32, value: f32) -> f32 {
    let negative = own < 128u32;
    let magnitude = select(negative, 128u32 - own, own - 128u32);
    // In units of the smallest subnormal.
    let units = magnitude << (21u32 + min(exponent, 1u32));
    let normal = u32::reinterpret(f32::cast_from(units)) - comptime!(149u32 << 23);
    let bits = select(units < comptime!(1u32 << 23), units, normal);
    let signed = f32::reinterpret(bits | select(negative, 0x8000_0000u32, 0u32));
    select(exponent < 2u32, signed, value)
}
