//! Products of a few rows, or many, with a matrix.
//!
//! A few rows are as fast as memory gives the matrix: it is read once, in long runs, for all of them. Many go to the `gemm`
//! crate.
//!
//! ```text
//!            outputs of a task                       features
//!          ┌───────────────────┐                ┌──────────────┐
//! 8 inputs │ one run of memory │ ↓    4 outputs │ ──────────▶  │
//! 8 inputs │                   │                │              │
//!          └───────────────────┘                └──────────────┘
//!           `[in, out]`: sums in the            `[out, in]`: sums in
//!           first-level cache                    registers
//! ```

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::Disjoint;

/// Rows up to which the matrix is streamed.
pub const FEW: usize = 16;

/// Inputs of which the weights are met at once.
const DEPTH: usize = 8;

/// Most outputs of a task: sums of a few rows stay in the first-level cache.
const MOST_OUTPUTS: usize = 1024;

/// Fewest outputs of a task: runs shorter than this leave the memory's own reading ahead behind.
const FEWEST_OUTPUTS: usize = 128;

/// A matrix from `inputs` to `outputs` features.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// Its elements.
    pub elements: &'a [f32],
    /// Features that go in.
    pub inputs: usize,
    /// Features that come out.
    pub outputs: usize,
    /// From one input to the next, in elements.
    pub input_stride: usize,
    /// From one output to the next. One of the two strides is 1 where the matrix is to be streamed.
    pub output_stride: usize,
}

/// The arguments of [`product`].
#[derive(Debug, Clone, Copy)]
pub struct Product<'a> {
    /// `[rows, inputs]`.
    pub input: &'a [f32],
    /// The matrix.
    pub matrix: Matrix<'a>,
    /// Added to every row, `[outputs]`.
    pub bias: Option<&'a [f32]>,
    /// Features of a row of the output, of which the product fills a part.
    pub width: usize,
    /// The first of them.
    pub first: usize,
}

/// Computes `input · matrix + bias` into the features `first..first + outputs` of `output`, `[rows, width]`.
///
/// # Panics
/// If a slice does not have the length that the sizes say.
pub fn product(problem: &Product<'_>, output: &mut [f32]) {
    let Product { input, matrix, bias, width, first } = *problem;
    let Matrix { inputs, outputs, input_stride, output_stride, elements } = matrix;
    assert!(
        inputs > 0 && input.len().is_multiple_of(inputs),
        "product: `input` has {} elements, rows have {inputs}",
        input.len()
    );
    let rows = input.len() / inputs;
    assert!(output.len() == rows * width, "product: `output` has {} elements, expected {rows} · {width}", output.len());
    assert!(first + outputs <= width, "product: {outputs} features from {first} on do not fit into {width}");
    if rows * outputs == 0 {
        return;
    }
    let last = (inputs - 1) * input_stride + (outputs - 1) * output_stride;
    assert!(last < elements.len(), "product: `matrix` has {} elements, its strides need {}", elements.len(), last + 1);
    if let Some(bias) = bias {
        assert!(bias.len() == outputs, "product: `bias` has {} elements, expected {outputs}", bias.len());
    }
    if rows > FEW || (input_stride != 1 && output_stride != 1) {
        return many(problem, rows, output);
    }

    let fair = outputs.div_ceil(4 * rayon::current_num_threads()).next_multiple_of(DEPTH);
    let each = fair.clamp(FEWEST_OUTPUTS, MOST_OUTPUTS);
    let output = Disjoint::new(output);
    (0..outputs.div_ceil(each)).into_par_iter().for_each_init(Vec::new, |sums, task| {
        let range = task * each..outputs.min((task + 1) * each);
        sums.clear();
        sums.resize(rows * range.len(), 0.0);
        Arch::new().dispatch(Task { problem, first: range.start, sums });
        for (row, sums) in sums.chunks_exact(range.len()).enumerate() {
            // SAFETY: no other task has these features.
            let output = unsafe { output.part(row * width + first + range.start, range.len()) };
            match bias {
                Some(bias) => {
                    output.iter_mut().zip(sums).zip(&bias[range.clone()]).for_each(|((y, sum), bias)| *y = sum + bias);
                }
                None => output.copy_from_slice(sums),
            }
        }
    });
}

/// Some outputs of all rows: `sums` is `[rows, outputs]`.
struct Task<'a> {
    problem: &'a Product<'a>,
    first: usize,
    sums: &'a mut [f32],
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if self.problem.matrix.output_stride == 1 { self.along_outputs(simd) } else { self.along_inputs(simd) }
    }
}

impl Task<'_> {
    /// `[in, out]`: the weights of `DEPTH` inputs, each a run of memory, are added to the sums of every row.
    #[inline(always)]
    fn along_outputs<S: Simd>(self, simd: S) {
        let Product { input, matrix, .. } = *self.problem;
        let Matrix { elements, inputs, input_stride, .. } = matrix;
        let rows = input.len() / inputs;
        let outputs = self.sums.len() / rows;
        let run = |at: usize| &elements[at * input_stride + self.first..][..outputs];
        let whole = inputs / DEPTH * DEPTH;
        for at in (0..whole).step_by(DEPTH) {
            let runs: [&[f32]; DEPTH] = std::array::from_fn(|depth| run(at + depth));
            for (row, sums) in self.sums.chunks_exact_mut(outputs).enumerate() {
                add(simd, runs, &input[row * inputs + at..][..DEPTH], sums);
            }
        }
        for at in whole..inputs {
            for (row, sums) in self.sums.chunks_exact_mut(outputs).enumerate() {
                add(simd, [run(at)], &input[row * inputs + at..][..1], sums);
            }
        }
    }

    /// `[out, in]`: the features of a few outputs, each a run of memory, meet those of every row.
    #[inline(always)]
    fn along_inputs<S: Simd>(self, simd: S) {
        const TOGETHER: usize = 4;
        let Product { input, matrix, .. } = *self.problem;
        let Matrix { elements, inputs, output_stride, .. } = matrix;
        let rows = input.len() / inputs;
        let outputs = self.sums.len() / rows;
        let run = |at: usize| &elements[(self.first + at) * output_stride..][..inputs];
        let whole = outputs / TOGETHER * TOGETHER;
        for at in (0..whole).step_by(TOGETHER) {
            let runs: [&[f32]; TOGETHER] = std::array::from_fn(|output| run(at + output));
            for (row, input) in input.chunks_exact(inputs).enumerate() {
                let sums = dot(simd, runs, input);
                self.sums[row * outputs + at..][..TOGETHER].copy_from_slice(&sums);
            }
        }
        for at in whole..outputs {
            for (row, input) in input.chunks_exact(inputs).enumerate() {
                [self.sums[row * outputs + at]] = dot(simd, [run(at)], input);
            }
        }
    }
}

/// Adds `runs`, each times its input, to `sums`, which has their length.
#[inline(always)]
fn add<S: Simd, const N: usize>(simd: S, runs: [&[f32]; N], inputs: &[f32], sums: &mut [f32]) {
    let (vectors, rest) = S::as_mut_simd_f32s(sums);
    let mut factors = [simd.splat_f32s(0.0); N];
    for (factor, input) in factors.iter_mut().zip(inputs) {
        *factor = simd.splat_f32s(*input);
    }
    let count = vectors.len();
    let mut parts = [&[][..]; N];
    for (part, run) in parts.iter_mut().zip(runs) {
        *part = &S::as_simd_f32s(run).0[..count];
    }
    for (at, sum) in vectors.iter_mut().enumerate() {
        let mut total = *sum;
        for n in 0..N {
            total = simd.mul_add_e_f32s(parts[n][at], factors[n], total);
        }
        *sum = total;
    }
    let done = count * S::F32_LANES;
    for (at, sum) in rest.iter_mut().enumerate() {
        for n in 0..N {
            *sum += runs[n][done + at] * inputs[n];
        }
    }
}

/// The sums of `runs`, each times `input`, which has their length.
#[inline(always)]
fn dot<S: Simd, const N: usize>(simd: S, runs: [&[f32]; N], input: &[f32]) -> [f32; N] {
    let (vectors, rest) = S::as_simd_f32s(input);
    let count = vectors.len();
    let mut parts = [&[][..]; N];
    for (part, run) in parts.iter_mut().zip(runs) {
        *part = &S::as_simd_f32s(run).0[..count];
    }
    let mut sums = [simd.splat_f32s(0.0); N];
    for (at, input) in vectors.iter().enumerate() {
        for n in 0..N {
            sums[n] = simd.mul_add_e_f32s(parts[n][at], *input, sums[n]);
        }
    }
    let done = count * S::F32_LANES;
    let mut totals = [0.0; N];
    for n in 0..N {
        let left: f32 = runs[n][done..].iter().zip(rest).map(|(weight, input)| weight * input).sum();
        totals[n] = simd.reduce_sum_f32s(sums[n]) + left;
    }
    totals
}

/// Any number of rows, on the `gemm` crate.
fn many(problem: &Product<'_>, rows: usize, output: &mut [f32]) {
    let Product { input, matrix, bias, width, first } = *problem;
    let Matrix { inputs, outputs, .. } = matrix;
    if let Some(bias) = bias {
        for row in output.chunks_exact_mut(width) {
            row[first..first + outputs].copy_from_slice(bias);
        }
    }
    let alpha = if bias.is_some() { 1.0 } else { 0.0 };
    // SAFETY: rows, columns and strides lie within the slices, whose lengths were checked; only `output` is written.
    unsafe {
        gemm::gemm(
            rows,
            outputs,
            inputs,
            output.as_mut_ptr().add(first),
            1,
            width as isize,
            bias.is_some(),
            input.as_ptr(),
            1,
            inputs as isize,
            matrix.elements.as_ptr(),
            matrix.output_stride as isize,
            matrix.input_stride as isize,
            alpha,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(0),
        );
    }
}
