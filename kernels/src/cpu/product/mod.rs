//! Products of rows with a matrix, in f32 or int8.
//!
//! A few rows are as fast as memory gives the matrix: it is read once, in long runs, for all of them. More lie side by side in
//! the lanes of tiles, many go to the `gemm` crate.

mod int8;
mod matrix;
mod rounded;
mod tiles;

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::{Disjoint, with_room};
pub use int8::Int8Matrix;
pub use matrix::Matrix;
pub use rounded::{has_rounded, rounded_product};

/// Rows that meet the matrix together.
const ROWS: usize = 16;

/// Most outputs of a task: long runs, which memory foresees.
const MOST_OUTPUTS: usize = 4096;

/// Most sums of a task: they are read and written for every few inputs.
const MOST_SUMS: usize = 16 * 1024;

/// Fewest outputs of a task: runs shorter than this leave the memory's own reading ahead behind.
const FEWEST_OUTPUTS: usize = 128;

/// Outputs of a task are a multiple of it, whole vectors, so that an output is computed alike on any number of threads.
const MULTIPLE: usize = 16;

/// The arguments of [`product`].
#[derive(Debug, Clone, Copy)]
pub struct Product<'a, W> {
    /// `[rows, inputs]`.
    pub input: &'a [f32],
    /// Rows of a sequence. How the product is computed depends on it and not on how many sequences there are, so that a
    /// sequence by itself gives bitwise what it gives in a batch.
    pub sequence: usize,
    /// The matrix.
    pub matrix: W,
    /// Added to every row, `[outputs]`.
    pub bias: Option<&'a [f32]>,
    /// Features of a row of the output, of which the product fills a part.
    pub width: usize,
    /// The first of them.
    pub first: usize,
}

/// How a product is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Path {
    Stream,
    Tiles,
    Packed,
}

/// A matrix that rows can be multiplied with.
pub(super) trait Weights: Copy + Send + Sync {
    fn inputs(&self) -> usize;

    fn outputs(&self) -> usize;

    /// Panics unless the slices have the lengths that the sizes say.
    #[track_caller]
    fn check(&self);

    /// How so many rows of a sequence are multiplied.
    fn path(&self, sequence: usize) -> Path;

    /// Adds the products of `input`, `[rows, inputs]`, and the outputs from `first` on to `sums`, `[rows, outputs]`.
    fn stream<S: Simd>(&self, simd: S, input: &[f32], first: usize, sums: &mut [f32]);

    /// The weights of some outputs and features in f32, as runs along the features: the first of them, and how far they lie
    /// apart. `room` has a place for each.
    fn block<'r>(&'r self, outputs: &Range<usize>, features: &Range<usize>, room: &'r mut [f32]) -> (&'r [f32], usize);

    /// [`product`], for many rows.
    fn packed(problem: &Product<'_, Self>, output: &mut [f32]) {
        tiles::tiles(problem, output);
    }
}

/// A matrix that rows can be multiplied with: [`Matrix`] or [`Int8Matrix`].
#[allow(private_bounds, reason = "the kernels are written for these two")]
pub trait AnyMatrix: Weights {}

impl<W: Weights> AnyMatrix for W {}

/// Computes `input · matrix + bias` into the features `first..first + outputs` of `output`, `[rows, width]`.
///
/// # Panics
/// If a slice does not have the length that the sizes say.
pub fn product<W: AnyMatrix>(problem: &Product<'_, W>, output: &mut [f32]) {
    let rows = check(problem, output);
    if rows * problem.matrix.outputs() == 0 {
        return;
    }
    match problem.matrix.path(problem.sequence) {
        Path::Stream => stream(problem, rows, output),
        Path::Tiles => tiles::tiles(problem, output),
        Path::Packed => W::packed(problem, output),
    }
}

/// Panics unless the slices have the lengths that the sizes say; returns the rows.
#[track_caller]
fn check<W: Weights>(problem: &Product<'_, W>, output: &[f32]) -> usize {
    let Product { input, matrix, bias, width, first, .. } = *problem;
    let (inputs, outputs) = (matrix.inputs(), matrix.outputs());
    assert!(
        inputs > 0 && input.len().is_multiple_of(inputs),
        "product: `input` has {} elements, rows have {inputs}",
        input.len()
    );
    let rows = input.len() / inputs;
    assert!(output.len() == rows * width, "product: `output` has {} elements, expected {rows} · {width}", output.len());
    assert!(first + outputs <= width, "product: {outputs} features from {first} on do not fit into {width}");
    matrix.check();
    if let Some(bias) = bias {
        assert!(bias.len() == outputs, "product: `bias` has {} elements, expected {outputs}", bias.len());
    }
    rows
}

/// A few rows.
fn stream<W: Weights>(problem: &Product<'_, W>, rows: usize, output: &mut [f32]) {
    let Product { input, matrix, bias, width, first, .. } = *problem;
    let (inputs, outputs) = (matrix.inputs(), matrix.outputs());

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
struct Task<'a, W> {
    matrix: W,
    input: &'a [f32],
    first: usize,
    sums: &'a mut [f32],
}

impl<W: Weights> WithSimd for Task<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.matrix.stream(simd, self.input, self.first, self.sums);
    }
}
