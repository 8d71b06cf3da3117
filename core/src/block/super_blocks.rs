//! Blocks of 256 elements, the "K" formats: parts of 16 or 32 elements have scales of a few bits, which two f16 multiply.
//!
//! Elements are packed by 128 or 64: bits 0 and 1 of 32 bytes are elements 0 to 31, bits 2 and 3 elements 32 to 63, and so on.

use super::scale::scale;

/// Element `at` of two bits each.
fn two_bits(bytes: &[u8], at: usize) -> u8 {
    bytes[at / 128 * 32 + at % 32] >> (at % 128 / 32 * 2) & 3
}

/// Element `at` of four bits each, packed by 64.
fn four_bits(bytes: &[u8], at: usize) -> u8 {
    bytes[at / 64 * 32 + at % 32] >> (at % 64 / 32 * 4) & 15
}

/// Element `at` of one bit each.
fn one_bit(bytes: &[u8], at: usize) -> u8 {
    bytes[at % 32] >> (at / 32) & 1
}

/// `16 scales and minima of 4 bits | elements | scale | minimum`.
pub(super) fn q2(block: &[u8], into: &mut [f32]) {
    let (scale, minimum) = (scale(block, 80), scale(block, 82));
    for (part, into) in into.chunks_exact_mut(16).enumerate() {
        let (of_scale, of_minimum) = (block[part] & 15, block[part] >> 4);
        let (scale, minimum) = (scale * f32::from(of_scale), minimum * f32::from(of_minimum));
        for (at, place) in into.iter_mut().enumerate() {
            *place = scale * f32::from(two_bits(&block[16..80], part * 16 + at)) - minimum;
        }
    }
}

/// `third bits | elements | 16 scales of 6 bits | scale`. An element is 4 less if its third bit is 0.
pub(super) fn q3(block: &[u8], into: &mut [f32]) {
    let (thirds, elements, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let scale = scale(block, 108);
    for (part, into) in into.chunks_exact_mut(16).enumerate() {
        let low = scales[part % 8] >> (part / 8 * 4) & 15;
        let high = scales[8 + part % 4] >> (part / 4 * 2) & 3;
        let scale = scale * (f32::from(low | high << 4) - 32.0);
        for (at, place) in into.iter_mut().enumerate() {
            let at = part * 16 + at;
            let element = two_bits(elements, at) as i8 - 4 * (1 - one_bit(thirds, at) as i8);
            *place = scale * f32::from(element);
        }
    }
}

/// The scale and the minimum of part `part` of 8, of 6 bits each in 12 bytes. The last four keep their upper two bits with the
/// first four.
fn scale_and_minimum(bytes: &[u8], part: usize) -> [f32; 2] {
    match part {
        0..4 => [bytes[part] & 63, bytes[part + 4] & 63],
        _ => {
            let upper = [bytes[part - 4] >> 6, bytes[part] >> 6];
            [bytes[part + 4] & 15 | upper[0] << 4, bytes[part + 4] >> 4 | upper[1] << 4]
        }
    }
    .map(f32::from)
}

/// `scale | minimum | 8 scales and minima`, which Q4 and Q5 begin with, and then their elements.
fn with_minima(block: &[u8], into: &mut [f32], element: impl Fn(usize) -> u8) {
    let (scale, minimum) = (scale(block, 0), scale(block, 2));
    for (part, into) in into.chunks_exact_mut(32).enumerate() {
        let [of_scale, of_minimum] = scale_and_minimum(&block[4..16], part);
        let (scale, minimum) = (scale * of_scale, minimum * of_minimum);
        for (at, place) in into.iter_mut().enumerate() {
            *place = scale * f32::from(element(part * 32 + at)) - minimum;
        }
    }
}

/// `… | elements`.
pub(super) fn q4(block: &[u8], into: &mut [f32]) {
    with_minima(block, into, |at| four_bits(&block[16..], at));
}

/// `… | fifth bits | elements`.
pub(super) fn q5(block: &[u8], into: &mut [f32]) {
    with_minima(block, into, |at| four_bits(&block[48..], at) | one_bit(&block[16..48], at) << 4);
}

/// `lower 4 bits | upper 2 bits | 16 scales | scale`. Lower bits are packed by 128.
pub(super) fn q6(block: &[u8], into: &mut [f32]) {
    let (lower, upper, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = scale(block, 208);
    for (part, into) in into.chunks_exact_mut(16).enumerate() {
        let scale = scale * f32::from(scales[part] as i8);
        for (at, place) in into.iter_mut().enumerate() {
            let at = part * 16 + at;
            let low = lower[at / 128 * 64 + at % 64] >> (at % 128 / 64 * 4) & 15;
            *place = scale * f32::from((low | two_bits(upper, at) << 4) as i8 - 32);
        }
    }
}
