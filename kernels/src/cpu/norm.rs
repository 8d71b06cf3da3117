//! LayerNorm and RMSNorm.

use super::threads;
use crate::contract::check_len;

/// Partial sums of a row, so that they run in vector registers.
const LANES: usize = 16;

/// Elements of a task, so that a task is worth a thread.
const TASK: usize = 1 << 14;

/// The arguments of [`norm`].
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// `[rows, features]`.
    pub input: &'a [f32],
    /// Added to the input, of its shape.
    pub residual: Option<&'a [f32]>,
    /// Factor of each feature.
    pub gamma: &'a [f32],
    /// Summand of each feature.
    pub beta: Option<&'a [f32]>,
    /// Added to the variance.
    pub epsilon: f32,
    /// RMSNorm: the mean is not subtracted.
    pub rms: bool,
}

/// `(x - mean) / sqrt(variance + epsilon) · gamma + beta` of each row `x = input + residual`, or without the mean.
///
/// # Panics
/// If a slice does not have the length that the others imply.
pub fn norm(problem: &Norm<'_>, output: &mut [f32]) {
    let features = problem.gamma.len();
    let len = problem.input.len();
    let whole = if features == 0 { len == 0 } else { len.is_multiple_of(features) };
    assert!(whole, "norm: `input` has {len} elements, rows have {features}, the length of `gamma`");
    check_len("norm", "output", output.len(), len);
    if let Some(beta) = problem.beta {
        check_len("norm", "beta", beta.len(), features);
    }
    if let Some(residual) = problem.residual {
        check_len("norm", "residual", residual.len(), len);
    }
    if len == 0 {
        return;
    }
    let together = TASK.div_ceil(features) * features;
    threads::each_part(output, together, |task, output| {
        for (row, output) in output.chunks_mut(features).enumerate() {
            let at = task * together + row * features..task * together + (row + 1) * features;
            output.copy_from_slice(&problem.input[at.clone()]);
            if let Some(residual) = problem.residual {
                output.iter_mut().zip(&residual[at]).for_each(|(output, residual)| *output += residual);
            }
            normalise(problem, output);
        }
    });
}

fn normalise(problem: &Norm<'_>, output: &mut [f32]) {
    let count = output.len() as f32;
    let mean = if problem.rms { 0.0 } else { sum(output, |x| x) / count };
    let variance = sum(output, |x| (x - mean) * (x - mean)) / count;
    let factor = 1.0 / (variance + problem.epsilon).sqrt();
    for (output, gamma) in output.iter_mut().zip(problem.gamma) {
        *output = (*output - mean) * factor * gamma;
    }
    if let Some(beta) = problem.beta {
        output.iter_mut().zip(beta).for_each(|(output, beta)| *output += beta);
    }
}

fn sum(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += term(*value);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|value| term(*value)).sum::<f32>()
}
