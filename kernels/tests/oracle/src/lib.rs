//! What the tests of kernels compare with: attention, and what precedes it, in plain loops, in f64.

mod problem;

use burn_deepspeed_core::block::{BlockFormat, RowFormats};
use burn_deepspeed_core::layout::RotaryLayout;
use burn_deepspeed_core::qk_norm::QkNormKind;

pub use problem::Problem;

/// Values in -1..1, the same for the same seed.
pub fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Blocks without a pattern, whose elements are about 1.
pub fn blocks(format: BlockFormat, shape: [usize; 2]) -> Vec<u8> {
    if format.can_quantise() {
        return format.quantise(&noise(shape[0] * shape[1], 13));
    }
    let len = RowFormats::uniform(format, shape).expect("rows of whole blocks").bytes();
    let mut bytes: Vec<u8> = (0..len).map(|at| (at * 167 + at / 7 * 29 + 5) as u8).collect();
    for block in bytes.chunks_mut(format.bytes()) {
        // Where their f16 are, and the exponent that makes elements about 1, in the upper byte.
        let (places, exponent): (&[usize], u8) = match format {
            BlockFormat::Q2_K => (&[80, 82], 0x24),
            BlockFormat::Q3_K => (&[108], 0x20),
            BlockFormat::Q6_K => (&[208], 0x0c),
            BlockFormat::Q5_K => (&[0, 2], 0x10),
            _ => (&[0, 2], 0x14),
        };
        places.iter().for_each(|&at| block[at + 1] = block[at + 1] & 0x83 | exponent);
    }
    bytes
}

/// Equal up to the tolerance, NaN where NaN is expected.
#[track_caller]
pub fn assert_near(what: &str, actual: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}: length");
    for (at, (a, e)) in actual.iter().zip(expected).enumerate() {
        let near = (f64::from(*a) - e).abs() <= tolerance * e.abs().max(1.0) || a.is_nan() && e.is_nan();
        assert!(near, "{what}: element {at} is {a}, expected {e}");
    }
}

/// The norm of a head in f64, or of several heads together. `mean_square` replaces that of the features.
pub fn normalised(
    features: &[f64],
    kind: QkNormKind,
    epsilon: f64,
    mean_square: Option<f64>,
    weight: impl Fn(usize) -> f64,
) -> Vec<f64> {
    let count = features.len() as f64;
    let mean = if kind == QkNormKind::LayerNorm { features.iter().sum::<f64>() / count } else { 0.0 };
    let variance = features.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / count;
    let root = (mean_square.unwrap_or(variance) + epsilon).sqrt();
    features.iter().enumerate().map(|(at, x)| (x - mean) / root * weight(at)).collect()
}

/// A head in f64, rotated by these angles: one for each pair of features.
pub fn rotated(features: &[f64], layout: RotaryLayout, angles: &[f64]) -> Vec<f64> {
    let mut rotated = features.to_vec();
    for (pair, angle) in angles.iter().enumerate() {
        let (first, second) = match layout {
            RotaryLayout::Half => (pair, pair + angles.len()),
            RotaryLayout::Interleaved => (2 * pair, 2 * pair + 1),
        };
        let (a, b) = (features[first], features[second]);
        rotated[first] = a * angle.cos() - b * angle.sin();
        rotated[second] = b * angle.cos() + a * angle.sin();
    }
    rotated
}

/// The norms that kernels are tested with: what they are over, whether a feature is multiplied by 1 + weight, and whether heads are
/// rotated first.
pub const NORMS: [(QkNormKind, bool, bool); 6] = [
    (QkNormKind::Rms, false, false),
    (QkNormKind::Rms, true, true),
    (QkNormKind::LayerNorm, false, false),
    (QkNormKind::LayerNorm, true, true),
    (QkNormKind::RmsOfAllHeads, false, false),
    (QkNormKind::RmsOfAllHeads, true, false),
];
