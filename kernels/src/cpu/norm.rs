//! LayerNorm and RMSNorm.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::places::Places;
use super::sums::{squares, sum};
use super::threads;
use crate::contract::check_len;

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
    norm_into(problem, &mut Places::of(output));
}

/// [`norm`] into a new result.
///
/// # Panics
/// If a slice, or the result, does not have the length that the others imply, or a part of a new result was written before.
pub fn norm_into(problem: &Norm<'_>, output: &mut Places<'_>) {
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
    output.claim(0..len, len);
    let output = &*output;
    let together = TASK.div_ceil(features) * features;
    threads::each(len.div_ceil(together), |task| {
        let elements = task * together..len.min((task + 1) * together);
        Arch::new().dispatch(Rows { problem, elements, output });
    });
}

/// Whole rows.
struct Rows<'a> {
    problem: &'a Norm<'a>,
    elements: Range<usize>,
    output: &'a Places<'a>,
}

impl WithSimd for Rows<'_> {
    type Output = ();

    // A closure would be compiled for the baseline instruction set.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self { problem, elements, output } = self;
        let features = problem.gamma.len();
        let taker = output.taker();
        for first in elements.step_by(features) {
            let at = first..first + features;
            // SAFETY: no other task has this row, and this one takes it once.
            let output = unsafe { taker.part(first, features) };
            output.copy_from_slice(&problem.input[at.clone()]);
            if let Some(residual) = problem.residual {
                for (output, residual) in output.iter_mut().zip(&residual[at]) {
                    *output += residual;
                }
            }
            normalise(problem, output);
        }
    }
}

#[inline(always)]
fn normalise(problem: &Norm<'_>, output: &mut [f32]) {
    let count = output.len() as f32;
    let mean = if problem.rms { 0.0 } else { sum(output) / count };
    let variance = squares(output, mean) / count;
    let factor = 1.0 / (variance + problem.epsilon).sqrt();
    for (output, gamma) in output.iter_mut().zip(problem.gamma) {
        *output = (*output - mean) * factor * gamma;
    }
    if let Some(beta) = problem.beta {
        for (output, beta) in output.iter_mut().zip(beta) {
            *output += beta;
        }
    }
}
