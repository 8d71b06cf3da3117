//! Products of rows with a matrix.
//!
//! A few rows are as fast as memory gives the matrix: it is read once, in long runs, for all of them. More lie side by side in
//! [`tiles`], many go to the `gemm` crate.
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

mod tiles;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::stream::{Columns, add_rows, dot_rows};
use super::{Disjoint, with_room};

/// Rows of a sequence up to which a matrix is streamed that lies `[out, in]`. `benches/project.rs` measures these limits.
const FEW_ALONG_INPUTS: usize = 8;

/// The same for `[in, out]`, which has to be turned for a tile.
const FEW_ALONG_OUTPUTS: usize = 24;

/// Rows of a sequence up to which they lie in tiles; beyond, the `gemm` crate packs the matrix.
const MANY: usize = 128;

/// Rows that meet the matrix together.
const ROWS: usize = 16;

/// Inputs of which the weights are met at once.
const DEPTH: usize = 8;

/// Outputs whose weights are met at once.
const TOGETHER: usize = 4;

/// Most outputs of a task: long runs, which memory foresees.
const MOST_OUTPUTS: usize = 4096;

/// Most sums of a task: they are read and written for every few inputs.
const MOST_SUMS: usize = 16 * 1024;

/// Fewest outputs of a task: runs shorter than this leave the memory's own reading ahead behind.
const FEWEST_OUTPUTS: usize = 128;

/// Outputs of a task are a multiple of it, whole vectors, so that an output is computed alike on any number of threads.
const MULTIPLE: usize = 16;

/// Runs of a matrix are long enough for memory to foresee them.
const NOTHING_AHEAD: Option<fn(usize) -> &'static [f32]> = None;

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
    /// Rows of a sequence. How the product is computed depends on it and not on how many sequences there are, so that a
    /// sequence by itself gives bitwise what it gives in a batch.
    pub sequence: usize,
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
    let Product { input, sequence, matrix, bias, width, first } = *problem;
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
    let few = match (input_stride, output_stride) {
        (1, _) => FEW_ALONG_INPUTS,
        (_, 1) => FEW_ALONG_OUTPUTS,
        _ => 0,
    };
    match sequence {
        sequence if sequence <= few => stream(problem, rows, output),
        sequence if sequence <= MANY => tiles::tiles(problem, rows, output),
        _ => many(problem, rows, output),
    }
}

/// A few rows.
fn stream(problem: &Product<'_>, rows: usize, output: &mut [f32]) {
    let Product { input, matrix, bias, width, first, .. } = *problem;
    let Matrix { inputs, outputs, .. } = matrix;

    let fair = outputs.div_ceil(4 * rayon::current_num_threads()).next_multiple_of(MULTIPLE);
    let most = (MOST_SUMS / rows.min(ROWS) / MULTIPLE * MULTIPLE).min(MOST_OUTPUTS);
    let each = fair.clamp(FEWEST_OUTPUTS, most);
    let output = Disjoint::new(output);
    (0..outputs.div_ceil(each)).into_par_iter().for_each(|task| {
        let range = task * each..outputs.min((task + 1) * each);
        with_room(rows.min(ROWS) * range.len(), |room| {
            for (group, input) in input.chunks(ROWS * inputs).enumerate() {
                let sums = &mut room[..input.len() / inputs * range.len()];
                sums.fill(0.0);
                Arch::new().dispatch(Task { matrix, input, first: range.start, sums });
                for (row, sums) in sums.chunks_exact(range.len()).enumerate() {
                    let place = (group * ROWS + row) * width + first + range.start;
                    // SAFETY: no other task has these features.
                    let output = unsafe { output.part(place, range.len()) };
                    output.copy_from_slice(sums);
                    if let Some(bias) = bias {
                        output.iter_mut().zip(&bias[range.clone()]).for_each(|(output, bias)| *output += bias);
                    }
                }
            }
        });
    });
}

/// Some outputs of a few rows: `sums` is `[rows, outputs]`.
struct Task<'a> {
    matrix: Matrix<'a>,
    input: &'a [f32],
    first: usize,
    sums: &'a mut [f32],
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if self.matrix.output_stride == 1 { self.along_outputs(simd) } else { self.along_inputs(simd) }
    }
}

impl Task<'_> {
    /// `[in, out]`: the weights of `DEPTH` inputs, each a run of memory, are added to the sums of every row.
    #[inline(always)]
    fn along_outputs<S: Simd>(mut self, simd: S) {
        let inputs = self.matrix.inputs;
        let whole = inputs / DEPTH * DEPTH;
        for at in (0..whole).step_by(DEPTH) {
            self.add::<S, DEPTH>(simd, at);
        }
        for at in whole..inputs {
            self.add::<S, 1>(simd, at);
        }
    }

    /// Adds the weights of `N` inputs from `at` on to the sums of every row.
    #[inline(always)]
    fn add<S: Simd, const N: usize>(&mut self, simd: S, at: usize) {
        let Matrix { elements, inputs, input_stride, .. } = self.matrix;
        let outputs = self.sums.len() / (self.input.len() / inputs);
        let runs: [&[f32]; N] = std::array::from_fn(|n| &elements[(at + n) * input_stride + self.first..][..outputs]);
        let columns = Columns { stride: inputs, first: at };
        add_rows(simd, runs, self.input, columns, self.sums, NOTHING_AHEAD);
    }

    /// `[out, in]`: the features of a few outputs, each a run of memory, meet those of every row.
    #[inline(always)]
    fn along_inputs<S: Simd>(mut self, simd: S) {
        let outputs = self.sums.len() / (self.input.len() / self.matrix.inputs);
        let whole = outputs / TOGETHER * TOGETHER;
        for at in (0..whole).step_by(TOGETHER) {
            self.dot::<S, TOGETHER>(simd, at);
        }
        for at in whole..outputs {
            self.dot::<S, 1>(simd, at);
        }
    }

    /// The sums of `N` outputs from `at` on.
    #[inline(always)]
    fn dot<S: Simd, const N: usize>(&mut self, simd: S, at: usize) {
        let Matrix { elements, inputs, output_stride, .. } = self.matrix;
        let outputs = self.sums.len() / (self.input.len() / inputs);
        let runs: [&[f32]; N] = std::array::from_fn(|n| &elements[(self.first + at + n) * output_stride..][..inputs]);
        let columns = Columns { stride: outputs, first: at };
        dot_rows(simd, runs, self.input, self.sums, columns, NOTHING_AHEAD);
    }
}

/// Any number of rows, on the `gemm` crate.
fn many(problem: &Product<'_>, rows: usize, output: &mut [f32]) {
    let Product { input, matrix, bias, width, first, .. } = *problem;
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
