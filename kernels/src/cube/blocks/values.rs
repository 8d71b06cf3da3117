//! Elements of blocks as f32.

use burn_deepspeed_core::block::BlockFormat;
use cubecl::prelude::*;

use super::bytes::Bytes;
use super::factors::{factors, half};
use super::layout::{Packed, fifths, has_minimum, lower, offset, table, upper};

/// Elements `at` to `at + N` of the block that begins at byte `block`; of floats, those of `N` blocks. `N` is at most 4, and divides `at`.
#[cube]
pub(crate) fn elements<N: Size>(bytes: &Bytes, block: u32, at: u32, #[comptime] format: BlockFormat) -> Vector<f32, N> {
    let mut values = Vector::<f32, N>::new(0.0f32);
    if comptime!(format.elements() == 1) {
        #[unroll]
        for k in 0..N::value() {
            values[k] = float(bytes, block + comptime!((k * format.bytes()) as u32), format);
        }
    } else {
        let own = integers::<N>(bytes, block, at, format);
        let factors = factors(bytes, block, at, format);
        #[unroll]
        for k in 0..N::value() {
            let mut value = factors.scale * (f32::cast_from(own[k]) - comptime!(offset(format)));
            if comptime!(has_minimum(format)) {
                value += factors.minimum;
            }
            if comptime!(format == BlockFormat::MXFP4) {
                value = subnormal(bytes.byte(block), own[k], value);
            }
            values[k] = value;
        }
    }
    values
}

/// A float of these bytes.
#[cube]
fn float(bytes: &Bytes, at: u32, #[comptime] format: BlockFormat) -> f32 {
    let word = bytes.four(at);
    match comptime!(format) {
        BlockFormat::F16 => half(word & 0xffffu32),
        BlockFormat::BF16 => f32::reinterpret(word << 16u32),
        _ => f32::reinterpret(word),
    }
}

/// The bits of the elements, or what they chose from their table.
#[cube]
fn integers<N: Size>(bytes: &Bytes, block: u32, at: u32, #[comptime] format: BlockFormat) -> Vector<u32, N> {
    let mut found = packed::<N>(bytes, block, at, comptime!(lower(format)));
    if comptime!(upper(format).is_some()) {
        let upper = packed::<N>(bytes, block, at, comptime!(upper(format).unwrap_or(lower(format))));
        #[unroll]
        for k in 0..N::value() {
            found[k] |= upper[k] << comptime!(lower(format).bits);
        }
    }
    if comptime!(fifths(format).is_some()) {
        let fifths = bytes.four(block + comptime!(fifths(format).unwrap_or(0))) >> at;
        #[unroll]
        for k in 0..N::value() {
            found[k] |= (fifths >> comptime!(k as u32) & 1u32) << 4u32;
        }
    }
    if comptime!(format == BlockFormat::Q8_0) {
        #[unroll]
        for k in 0..N::value() {
            found[k] ^= 0x80u32;
        }
    }
    if comptime!(table(format).is_some()) {
        #[unroll]
        for k in 0..N::value() {
            found[k] = choose(found[k], comptime!(table(format).unwrap_or([0; 4])));
        }
    }
    found
}

/// Bits of elements that are next to each other.
#[cube]
fn packed<N: Size>(bytes: &Bytes, block: u32, at: u32, #[comptime] packed: Packed) -> Vector<u32, N> {
    let (period, span) = comptime!((packed.period(), packed.span));
    let word = bytes.four(block + packed.first + at / period * span + at % span);
    let word = word >> (at % period / span * packed.bits);
    let mut found = Vector::<u32, N>::new(0u32);
    #[unroll]
    for k in 0..N::value() {
        found[k] = word >> comptime!(8 * k as u32) & comptime!(packed.mask());
    }
    found
}

/// Byte `at` of a table.
#[cube]
fn choose(at: u32, #[comptime] table: [u32; 4]) -> u32 {
    let first = select(at < 4u32, comptime!(table[0]), comptime!(table[1]));
    let last = select(at < 12u32, comptime!(table[2]), comptime!(table[3]));
    select(at < 8u32, first, last) >> (at % 4u32 * 8u32) & 0xffu32
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
