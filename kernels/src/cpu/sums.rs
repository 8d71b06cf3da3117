//! Sums for norms, in an order that does not depend on the processor.

/// Partial sums, so that they run in vector registers.
const LANES: usize = 16;

/// The sum of the values.
#[inline(always)]
pub(super) fn sum(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value;
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// The sum of `(value - mean)²`.
#[inline(always)]
pub(super) fn squares(values: &[f32], mean: f32) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += (value - mean) * (value - mean);
        }
    }
    let mut sum = lanes.iter().sum::<f32>();
    for value in rest {
        sum += (value - mean) * (value - mean);
    }
    sum
}
