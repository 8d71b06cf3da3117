//! Rows times a matrix: the arguments, their checks, and what a matrix must provide.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use crate::contract::check_len;
use crate::cpu::places::Places;

/// The outputs of a task are a multiple of this, in whole vectors, so that the number of threads does not affect the result.
pub(super) const MULTIPLE: usize = 16;

/// Inputs whose weights are packed together: those of a tile of 64 rows leave a third of a first-level cache of 48 KB.
pub(super) const DEPTH: usize = 128;

/// Most outputs whose weights are packed together.
pub(super) const WIDTH: usize = 192;

/// Inputs between two prefetches: a line of f32.
pub(super) const PART: usize = 16;

/// The arguments of [`product`](super::product).
#[derive(Debug, Clone, Copy)]
pub struct Product<'a, W> {
    /// `[rows, inputs]`.
    pub input: &'a [f32],
    /// What the elements of `input` are known to be.
    pub elements: InputElements,
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

impl<W> Product<'_, W> {
    /// Where an output of a row is.
    #[inline(always)]
    pub(super) fn place(&self, row: usize, output: usize) -> usize {
        row * self.width + self.first + output
    }
}

/// What the elements of an input are known to be, or become. A statement may make a product faster, and affects no more of the result than the
/// rounding of sums. A wrong one costs time alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum InputElements {
    /// Any f32. The default.
    #[default]
    F32,
    /// Numbers of bf16: the lower 16 bits of each f32 are zero.
    Bf16,
    /// Any f32. They are rounded to bf16 before they are multiplied: to nearest, ties to even, and those above the largest bf16 become infinite.
    RoundToBf16,
}

/// How a product is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    Stream,
    Tiles,
    Packed,
}

/// How packed weights lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `[outputs, depth]`, a group of outputs at a time.
    Along,
    /// `[features, WIDTH]`, all outputs of a task at once.
    Across,
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

    /// How `pack` lays weights out.
    fn layout(&self) -> Layout {
        Layout::Along
    }

    /// Runs of f32 along the inputs, if the matrix has them, and the stride between them.
    fn in_place(&self) -> Option<(&[f32], usize)> {
        None
    }

    /// Packs the weights of some outputs and features in f32. Along the inputs, runs have room for `depth` features.
    fn pack(&self, outputs: &Range<usize>, features: &Range<usize>, depth: usize, place: &mut [f32]);

    /// Prefetches weights: a part of what `pack` gets after the group `at`, whose outputs are `own`, of a block.
    fn fetch(&self, own: &Range<usize>, block: &Range<usize>, features: &Range<usize>, at: usize, part: usize);

    /// Computes the product as parts of bf16, if that is faster, and returns whether it is. Rounds the input where that is asked for.
    fn in_parts(_problem: &Product<'_, Self>, _output: &mut Places<'_>) -> bool {
        false
    }

    /// The product of any rows that are not computed in parts. They are rounded already, if that was asked for.
    fn product(problem: &Product<'_, Self>, output: &mut Places<'_>);

    /// The product of many rows.
    fn packed(problem: &Product<'_, Self>, output: &mut Places<'_>);
}

/// Panics unless the slices, and the output, have the lengths that the sizes imply; returns the rows.
#[track_caller]
pub(super) fn check<W: Weights>(problem: &Product<'_, W>, output: usize) -> usize {
    let Product { input, matrix, bias, width, first, .. } = *problem;
    let (inputs, outputs) = (matrix.inputs(), matrix.outputs());
    assert!(
        inputs > 0 && input.len().is_multiple_of(inputs),
        "product: `input` has {} elements, rows have {inputs}",
        input.len()
    );
    let rows = input.len() / inputs;
    assert!(
        rows.checked_mul(width) == Some(output),
        "product: `output` has {output} elements, expected {rows} · {width}"
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

/// The first output and feature of what follows the group `own` of a block: the next group, or the next features of the first.
#[inline(always)]
pub(super) fn after(
    own: &Range<usize>,
    block: &Range<usize>,
    features: &Range<usize>,
    inputs: usize,
) -> (usize, usize) {
    if own.end < block.end {
        (own.end, features.start)
    } else if features.end < inputs {
        (block.start, features.end)
    } else {
        (block.end, 0)
    }
}

/// Most rows of a sequence for which runs of elements that become f32 are streamed.
pub(super) fn few_widened() -> usize {
    if has_wide_vectors() { 16 } else { 8 }
}

/// Whether the processor has 32 registers of 16 floats.
pub(super) fn has_wide_vectors() -> bool {
    struct Wide;
    impl WithSimd for Wide {
        type Output = bool;

        #[inline(always)]
        fn with_simd<S: Simd>(self, _simd: S) -> bool {
            S::REGISTER_COUNT >= 32 && S::F32_LANES >= 16
        }
    }
    Arch::new().dispatch(Wide)
}
