//! Rounding to blocks.

use half::{bf16, f16};

use super::BlockFormat;
use super::nibbles::{IQ4_NL_VALUES, TWICE_E2M1};

/// Rounds whole blocks.
pub(super) fn quantise(format: BlockFormat, values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(values.len() / format.elements() * format.bytes());
    let blocks = values.as_chunks::<32>().0.iter();
    match format {
        BlockFormat::F32 => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        BlockFormat::F16 => bytes.extend(values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes())),
        BlockFormat::BF16 => bytes.extend(values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes())),
        BlockFormat::Q4_0 => blocks.for_each(|block| {
            let (scale, elements) = symmetric(block, 8.0);
            bytes.extend(f16::from_f32(scale).to_le_bytes());
            bytes.extend(nibbles(&elements));
        }),
        BlockFormat::Q4_1 => blocks.for_each(|block| {
            let (scale, minimum, elements) = asymmetric(block, 15.0);
            bytes.extend([scale, minimum].into_iter().flat_map(|value| f16::from_f32(value).to_le_bytes()));
            bytes.extend(nibbles(&elements));
        }),
        BlockFormat::Q5_0 => blocks.for_each(|block| {
            let (scale, elements) = symmetric(block, 16.0);
            bytes.extend(f16::from_f32(scale).to_le_bytes());
            bytes.extend(fifths(&elements));
            bytes.extend(nibbles(&elements));
        }),
        BlockFormat::Q5_1 => blocks.for_each(|block| {
            let (scale, minimum, elements) = asymmetric(block, 31.0);
            bytes.extend([scale, minimum].into_iter().flat_map(|value| f16::from_f32(value).to_le_bytes()));
            bytes.extend(fifths(&elements));
            bytes.extend(nibbles(&elements));
        }),
        BlockFormat::Q8_0 => blocks.for_each(|block| {
            let scale = largest(block).abs() / 127.0;
            let inverse = inverse(scale);
            bytes.extend(f16::from_f32(scale).to_le_bytes());
            bytes.extend(block.iter().map(|value| (value * inverse).round() as i8 as u8));
        }),
        BlockFormat::IQ4_NL => blocks.for_each(|block| {
            // The largest magnitude of the table is negative.
            let scale = largest(block) / f32::from(IQ4_NL_VALUES[0]);
            let inverse = inverse(scale);
            bytes.extend(f16::from_f32(scale).to_le_bytes());
            bytes.extend(nibbles(&block.map(|value| nearest(value * inverse, &IQ4_NL_VALUES))));
        }),
        BlockFormat::MXFP4 => blocks.for_each(|block| {
            // The exponent of the largest magnitude becomes that of 4, the largest power of two in E2M1.
            let exponent = (largest(block).abs().to_bits() >> 23).saturating_sub(2).min(254);
            let scale = f64::from(exponent as i32 - 127).exp2();
            bytes.push(exponent as u8);
            bytes.extend(nibbles(&block.map(|value| nearest((2.0 * f64::from(value) / scale) as f32, &TWICE_E2M1))));
        }),
        _ => {}
    }
    bytes
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

/// Elements from the smallest value, which becomes 0, to the largest, which becomes `most`.
fn asymmetric(block: &[f32; 32], most: f32) -> (f32, f32, [u8; 32]) {
    let smallest = block.iter().copied().fold(f32::INFINITY, f32::min);
    let largest = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = (largest - smallest) / most;
    let inverse = inverse(scale);
    (scale, smallest, block.map(|value| ((value - smallest) * inverse + 0.5).trunc().clamp(0.0, most) as u8))
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
