//! Products of many rows with a matrix of bf16 on AMX, as accurate as those in f32.
//!
//! An f32 is the exact sum of three bf16, of 8 bits each, and a product of two bf16 is exact in f32. So the products of the three parts with a weight
//! have the sum that f32 would have: nothing is rounded but the sums. `split` makes parts of rows, and `tiles` multiplies those that are not 0: one of
//! rows that are bf16 already.
//!
//! The instruction takes subnormal numbers for 0, and makes 0 of subnormal results: what it loses is below 2^-126. Rows and outputs whose
//! largest element is so small that this may matter, and those with an infinity or NaN, are computed in f32 instead.

mod amx;
mod split;
mod tiles;

use super::BlockMatrix;
use crate::cpu::product::problem::{Product, check};
use crate::cpu::product::tiles::tiles as in_f32;
use crate::cpu::product::{amx as instructions, panel};
use crate::cpu::scratch::with_scratch;

/// Fewest rows of a sequence that are worth the packing of weights.
pub(super) const FEWEST_ROWS: usize = 16;

/// Rows that are split at a time, which bounds the memory that a thread keeps for them.
const MOST_ROWS: usize = 512;

/// The least magnitude of the largest element of a row, and of an output: 2^-40. Products of both are 2^46 times what the instruction loses.
const LEAST: f32 = 1.0 / (1u64 << 40) as f32;

/// Whether this process may use the instructions.
pub(super) fn is_available() -> bool {
    panel::is_available() && instructions::has_bf16()
}

/// [`product`](crate::cpu::product::product) with a matrix of bf16. A row's result depends neither on the other rows nor on the number of threads.
///
/// # Panics
/// If the instructions are not [available](is_available), or the matrix is not of bf16.
pub(super) fn product(problem: &Product<'_, BlockMatrix<'_>>, output: &mut [f32]) {
    let rows = check(problem, output);
    if rows * problem.matrix.outputs == 0 {
        return;
    }
    let inputs = problem.input.chunks(MOST_ROWS * problem.matrix.inputs);
    for (input, output) in inputs.zip(output.chunks_mut(MOST_ROWS * problem.width)) {
        some(&Product { input, ..*problem }, output);
    }
}

/// The same for rows that are all split at once.
fn some(problem: &Product<'_, BlockMatrix<'_>>, output: &mut [f32]) {
    let Product { input, matrix, bias, width, first, .. } = *problem;
    let BlockMatrix { inputs, outputs, .. } = matrix;
    let rows = input.len() / inputs;
    with_scratch(rows + outputs, |scratch| {
        let (largest_of_rows, largest_of_outputs) = scratch.split_at_mut(rows);
        split::with_parts(input, inputs, split::PARTS, largest_of_rows, |parts| {
            tiles::product(problem, parts, largest_of_outputs, output);
        });
        each_extreme(largest_of_outputs, |at, outputs| {
            let blocks = &matrix.blocks[at * matrix.row_bytes()..][..outputs * matrix.row_bytes()];
            let matrix = BlockMatrix { blocks, outputs, ..matrix };
            let bias = bias.map(|bias| &bias[at..][..outputs]);
            in_f32(&Product { matrix, bias, first: first + at, ..*problem }, output);
        });
        each_extreme(largest_of_rows, |row, rows| {
            let input = &input[row * inputs..][..rows * inputs];
            in_f32(&Product { input, ..*problem }, &mut output[row * width..][..rows * width]);
        });
    });
}

/// Calls `work` for each run of largest magnitudes for which the instruction is not meant, with its first index and its length.
fn each_extreme(largest: &[f32], mut work: impl FnMut(usize, usize)) {
    let is_extreme = |largest: &f32| *largest != 0.0 && !(LEAST..=f32::MAX).contains(largest);
    let mut first = 0;
    for run in largest.chunk_by(|a, b| is_extreme(a) == is_extreme(b)) {
        if is_extreme(&run[0]) {
            work(first, run.len());
        }
        first += run.len();
    }
}
