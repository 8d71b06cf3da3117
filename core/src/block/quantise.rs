//! Rounding to blocks of 32 elements.

use half::f16;

use super::nibbles::{IQ4_NL_VALUES, TWICE_E2M1};

/// `scale | nibbles`.
pub(super) fn q4_0(block: &[f32; 32], bytes: &mut Vec<u8>) {
    let (scale, elements) = symmetric(block, 8.0);
    bytes.extend(f16::from_f32(scale).to_le_bytes());
    bytes.extend(nibbles(&elements));
}

/// `scale | minimum | nibbles`.
pub(super) fn q4_1(block: &[f32; 32], bytes: &mut Vec<u8>) {
    let (factors, elements) = asymmetric(block, 15.0);
    bytes.extend(factors.into_iter().flat_map(|factor| f16::from_f32(factor).to_le_bytes()));
    bytes.extend(nibbles(&elements));
}

/// `scale | fifth bits | nibbles`.
pub(super) fn q5_0(block: &[f32; 32], bytes: &mut Vec<u8>) {
    let (scale, elements) = symmetric(block, 16.0);
    bytes.extend(f16::from_f32(scale).to_le_bytes());
    bytes.extend(fifths(&elements));
    bytes.extend(nibbles(&elements));
}

/// `scale | minimum | fifth bits | nibbles`.
pub(super) fn q5_1(block: &[f32; 32], bytes: &mut Vec<u8>) {
    let (factors, elements) = asymmetric(block, 31.0);
    bytes.extend(factors.into_iter().flat_map(|factor| f16::from_f32(factor).to_le_bytes()));
    bytes.extend(fifths(&elements));
    bytes.extend(nibbles(&elements));
}

/// `scale | 32 bytes`.
pub(super) fn q8_0(block: &[f32; 32], bytes: &mut Vec<u8>) {
    let scale = largest(block).abs() / 127.0;
    let inverse = inverse(scale);
    bytes.extend(f16::from_f32(scale).to_le_bytes());
    bytes.extend(block.iter().map(|value| (value * inverse).round() as i8 as u8));
}

/// `scale | nibbles`, which choose from a table.
pub(super) fn iq4_nl(block: &[f32; 32], bytes: &mut Vec<u8>) {
    // The largest magnitude of the table is negative.
    let scale = largest(block) / f32::from(IQ4_NL_VALUES[0]);
    let inverse = inverse(scale);
    bytes.extend(f16::from_f32(scale).to_le_bytes());
    bytes.extend(nibbles(&block.map(|value| nearest(value * inverse, &IQ4_NL_VALUES))));
}

/// `exponent | nibbles`.
pub(super) fn mxfp4(block: &[f32; 32], bytes: &mut Vec<u8>) {
    // The exponent of the largest magnitude becomes that of 4, the largest power of two in E2M1.
    let exponent = (largest(block).abs().to_bits() >> 23).saturating_sub(2).min(254);
    let scale = f64::from(exponent as i32 - 127).exp2();
    bytes.push(exponent as u8);
    bytes.extend(nibbles(&block.map(|value| nearest((2.0 * f64::from(value) / scale) as f32, &TWICE_E2M1))));
}

/// The first value of the largest magnitude.
fn largest(block: &[f32; 32]) -> f32 {
    block.iter().fold(0.0, |largest: f32, value| if value.abs() > largest.abs() { *value } else { largest })
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// Elements around `half`: the largest magnitude becomes 0.
fn symmetric(block: &[f32; 32], half: f32) -> (f32, [u8; 32]) {
    let scale = largest(block) / -half;
    let inverse = f64::from(inverse(scale));
    let (middle, most) = (f64::from(half) + 0.5, 2.0 * half - 1.0);
    (scale, block.map(|value| ((f64::from(value) * inverse + middle) as f32).trunc().clamp(0.0, most) as u8))
}

/// Elements from the smallest value, which becomes 0, to the largest, which becomes `most`; first their scale and minimum.
fn asymmetric(block: &[f32; 32], most: f32) -> ([f32; 2], [u8; 32]) {
    let smallest = block.iter().copied().fold(f32::INFINITY, f32::min);
    let largest = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = (largest - smallest) / most;
    let inverse = inverse(scale);
    ([scale, smallest], block.map(|value| ((value - smallest) * inverse + 0.5).trunc().clamp(0.0, most) as u8))
}

/// The place of the nearest value of a table; of two, the first.
fn nearest(value: f32, table: &[i8; 16]) -> u8 {
    let distance = |at: &u8| (f32::from(table[usize::from(*at)]) - value).abs();
    (0..16).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or_default()
}

/// The lower four bits: the first 16 elements in the low halves, the others in the high ones.
fn nibbles(elements: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|at| elements[at] & 15 | elements[at + 16] << 4)
}

/// The fifth bits.
fn fifths(elements: &[u8; 32]) -> [u8; 4] {
    let bits = elements.iter().enumerate().fold(0u32, |bits, (at, element)| bits | u32::from(element >> 4 & 1) << at);
    bits.to_le_bytes()
}
