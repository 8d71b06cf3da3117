//! Blocks of 32 elements of 4 bits, some with a fifth bit apart. The low halves of 16 bytes are the first 16 elements, the high halves
//! the others.

use super::scale::scale;

/// What the elements of IQ4_NL choose from.
pub const IQ4_NL_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice the floats of E2M1, which the elements of MXFP4 choose from.
pub const TWICE_E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Writes `value(nibble, place)` for each of 32 elements.
fn unpack(bytes: &[u8], into: &mut [f32], value: impl Fn(u8, usize) -> f32) {
    for (at, byte) in bytes.iter().enumerate() {
        into[at] = value(byte & 15, at);
        into[at + 16] = value(byte >> 4, at + 16);
    }
}

/// `scale | nibbles`.
pub(super) fn q4_0(block: &[u8], into: &mut [f32]) {
    let scale = scale(block, 0);
    unpack(&block[2..], into, |nibble, _| scale * (f32::from(nibble) - 8.0));
}

/// `scale | minimum | nibbles`.
pub(super) fn q4_1(block: &[u8], into: &mut [f32]) {
    let (minimum, scale) = (scale(block, 2), scale(block, 0));
    unpack(&block[4..], into, |nibble, _| scale * f32::from(nibble) + minimum);
}

/// A nibble with its fifth bit, from the 4 bytes of fifth bits.
fn fifth(bits: &[u8], nibble: u8, at: usize) -> f32 {
    f32::from(nibble | (bits[at / 8] >> (at % 8) & 1) << 4)
}

/// `scale | fifth bits | nibbles`.
pub(super) fn q5_0(block: &[u8], into: &mut [f32]) {
    let scale = scale(block, 0);
    unpack(&block[6..], into, |nibble, at| scale * (fifth(&block[2..6], nibble, at) - 16.0));
}

/// `scale | minimum | fifth bits | nibbles`.
pub(super) fn q5_1(block: &[u8], into: &mut [f32]) {
    let (minimum, scale) = (scale(block, 2), scale(block, 0));
    unpack(&block[8..], into, |nibble, at| scale * fifth(&block[4..8], nibble, at) + minimum);
}

/// `scale | nibbles`, which choose from a table.
pub(super) fn iq4_nl(block: &[u8], into: &mut [f32]) {
    let scale = scale(block, 0);
    unpack(&block[2..], into, |nibble, _| scale * f32::from(IQ4_NL_VALUES[usize::from(nibble)]));
}

/// Half of 2^(exponent - 127): what [`TWICE_E2M1`] is multiplied by.
#[inline]
pub fn half_of_power(exponent: u8) -> f32 {
    // The two smallest are subnormal.
    f32::from_bits(match u32::from(exponent) {
        exponent @ 0..=1 => 0x0020_0000 << exponent,
        exponent => (exponent - 1) << 23,
    })
}

/// `exponent | nibbles`: floats E2M1 times 2^(exponent - 127).
pub(super) fn mxfp4(block: &[u8], into: &mut [f32]) {
    let scale = half_of_power(block[0]);
    unpack(&block[1..], into, |nibble, _| scale * f32::from(TWICE_E2M1[usize::from(nibble)]));
}
