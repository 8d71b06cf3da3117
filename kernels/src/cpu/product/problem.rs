//! Rows times a matrix: the arguments, their checks, and what a matrix must provide.

use std::ops::Range;

use pulp::Simd;

use crate::contract::check_len;

/// The outputs of a task are a multiple of this, in whole vectors, so that the number of threads does not affect the result.
pub(super) const MULTIPLE: usize = 16;

/// The arguments of [`product`](super::product).
#[derive(Debug, Clone, Copy)]
pub struct Product<'a, W> {
    /// `[rows, inputs]`.
    pub input: &'a [f32],
    /// Rows of a sequence. The way the product is computed depends on this and not on the number of sequences, so the result
    /// of a sequence is bitwise the same alone and in a batch.
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
pub(crate) enum Path {
    Stream,
    Tiles,
    Packed,
}

/// A matrix that rows can be multiplied with.
pub(crate) trait Weights: Copy + Send + Sync {
    fn inputs(&self) -> usize;

    fn outputs(&self) -> usize;

    /// Panics unless the slices have the lengths that the sizes imply.
    #[track_caller]
    fn check(&self);

    /// How this many rows of a sequence are multiplied.
    fn path(&self, sequence: usize) -> Path;

    /// Adds the products of `input`, `[rows, inputs]`, and the outputs from `first` on to `sums`, `[rows, outputs]`.
    fn stream<S: Simd>(&self, simd: S, input: &[f32], first: usize, sums: &mut [f32]);

    /// The weights of some outputs and features in f32, as runs along the features: the first of them, and the stride between
    /// them. `scratch` has a place for each.
    fn block<'r>(
        &'r self,
        outputs: &Range<usize>,
        features: &Range<usize>,
        scratch: &'r mut [f32],
    ) -> (&'r [f32], usize);

    /// The product of many rows.
    fn packed(problem: &Product<'_, Self>, output: &mut [f32]);
}

/// Panics unless the slices have the lengths that the sizes imply; returns the rows.
#[track_caller]
pub(super) fn check<W: Weights>(problem: &Product<'_, W>, output: &[f32]) -> usize {
    let Product { input, matrix, bias, width, first, .. } = *problem;
    let (inputs, outputs) = (matrix.inputs(), matrix.outputs());
    assert!(
        inputs > 0 && input.len().is_multiple_of(inputs),
        "product: `input` has {} elements, rows have {inputs}",
        input.len()
    );
    let rows = input.len() / inputs;
    assert!(
        rows.checked_mul(width) == Some(output.len()),
        "product: `output` has {} elements, expected {rows} · {width}",
        output.len()
    );
    assert!(
        first.checked_add(outputs).is_some_and(|end| end <= width),
        "product: {outputs} features from {first} on do not fit into {width}"
    );
    matrix.check();
    if let Some(bias) = bias {
        check_len("product", "bias", bias.len(), outputs);
    }
    rows
}
