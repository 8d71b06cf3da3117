//! Products of many rows as products of bf16 on AMX or AVX512-BF16, as accurate as those in f32.
//!
//! An f32 is the exact sum of three bf16, of 8 bits each, and a product of two bf16 is exact in f32. So the products of the parts of an element with
//! those of a weight have the sum that f32 would have. `split` makes parts of rows, and `weights` those of a matrix: one of numbers that are bf16
//! already, two of f16. `tiles` multiplies those that are not 0.
//!
//! Of the nine products of two f32, six are computed. The other three are those of second and third parts with third and second parts: at most 2^-22 of
//! the whole, and as often above as below 0. Apart from them nothing is rounded but the sums.
//!
//! AMX multiplies all parts. AVX512-BF16 would take longer than f32 for three of them, so it multiplies rows that are stated to be bf16 by bf16. The two add
//! in other orders: AMX adds the even and the odd products of 32 inputs for themselves, which would take twice as many instructions of AVX512-BF16.
//!
//! Both instructions take subnormal numbers for 0, and make 0 of subnormal results: what they lose is below 2^-126. Rows and outputs whose
//! largest element is so small that this may matter, and those with an infinity or NaN, are computed in f32 instead.

mod amx;
mod dot;
mod pack;
mod split;
mod tiles;
mod weights;

use std::ops::Range;

use super::problem::{InputElements, Product, check};
use super::tiles::some_outputs as in_f32;
use super::{amx as instructions, panel, with_rounded_input};
use crate::cpu::places::Places;
use crate::cpu::scratch::with_scratch;
pub(super) use split::DEPTH;
pub(super) use weights::{InParts, Panels};

/// Parts of elements of rows that are made at a time, which bounds the memory that a thread keeps for them: 2 bytes each.
const MOST_PARTS: usize = 3 << 21;

/// Rows that are multiplied with packed weights at a time. Their sums are in the second-level cache.
const GROUP_ROWS: usize = 512;

/// The least magnitude of the largest element of a row, and of an output: 2^-40. Products of both are 2^46 times what an instruction loses.
const LEAST: f32 = 1.0 / (1u64 << 40) as f32;

/// The largest float of which the nearest bf16 is finite.
const MOST: f32 = f32::from_bits(0x7f7f_7fff);

/// Which instructions multiply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Engine {
    /// AVX512-BF16, for inputs that are stated to be bf16.
    Dot,
    /// AMX.
    Amx,
}

impl Engine {
    /// The fastest for this product, if the process may use one that is faster than f32.
    fn of<W: InParts>(problem: &Product<'_, W>) -> Option<Self> {
        let Product { matrix, elements, sequence, .. } = problem;
        if !panel::is_available() || *sequence < matrix.fewest_rows() || !matrix.has_parts() {
            None
        } else if instructions::has_bf16() {
            Some(Self::Amx)
        } else if matrix.is_bf16() && *elements != InputElements::F32 && dot::is_fast() {
            Some(Self::Dot)
        } else {
            None
        }
    }

    /// Most parts of a row. One with an element that has more is computed in f32.
    fn parts(self) -> usize {
        match self {
            Self::Dot => 1,
            Self::Amx => split::PARTS,
        }
    }
}

/// Computes [`product`](super::product) if it is faster in parts, and returns whether it is. A row's result depends neither on the other rows nor on the
/// number of threads.
pub(super) fn product<W: InParts>(problem: &Product<'_, W>, output: &mut Places<'_>) -> bool {
    let engine = Engine::of(problem);
    if let Some(engine) = engine {
        product_on(engine, problem, output);
    }
    engine.is_some()
}

/// # Panics
/// If the processor does not have the instructions, or the matrix does not fit the engine.
fn product_on<W: InParts>(engine: Engine, problem: &Product<'_, W>, output: &mut Places<'_>) {
    let rows = check(problem, output.len());
    if rows * problem.matrix.outputs() == 0 {
        return;
    }
    output.claim(problem.first..problem.first + problem.matrix.outputs(), problem.width);
    let inputs = problem.matrix.inputs();
    let most = MOST_PARTS / elements(engine, problem).room();
    let rows = (most / inputs / GROUP_ROWS * GROUP_ROWS).max(GROUP_ROWS);
    for (at, input) in problem.input.chunks(rows * inputs).enumerate() {
        some_rows(engine, &Product { input, ..*problem }, (output, at * rows));
    }
}

/// What becomes of the elements of rows.
fn elements<W: InParts>(engine: Engine, problem: &Product<'_, W>) -> split::Elements {
    match problem.elements {
        InputElements::RoundToBf16 => split::Elements::Rounded,
        _ => split::Elements::Exact { parts: engine.parts() },
    }
}

/// The same for rows that are all split at once, into those of the output from `first_row` on.
fn some_rows<W: InParts>(engine: Engine, problem: &Product<'_, W>, (output, first_row): (&Places<'_>, usize)) {
    let Product { input, .. } = *problem;
    let (inputs, outputs) = (problem.matrix.inputs(), problem.matrix.outputs());
    let rows = input.len() / inputs;
    with_scratch(rows + outputs, |scratch| {
        let (largest_of_rows, largest_of_outputs) = scratch.split_at_mut(rows);
        split::with_parts(input, inputs, elements(engine, problem), largest_of_rows, |parts| {
            tiles::product(engine, problem, parts, largest_of_outputs, (output, first_row));
        });
        each_extreme(largest_of_outputs, |first, count| {
            again_in_f32(problem, first..first + count, (output, first_row));
        });
        each_extreme(largest_of_rows, |row, rows| {
            let input = &input[row * inputs..][..rows * inputs];
            again_in_f32(&Product { input, ..*problem }, 0..outputs, (output, first_row + row));
        });
    });
}

/// Computes some outputs in f32 that were written before. It is rare, so that another copy of them does not matter.
fn again_in_f32<W: InParts>(
    problem: &Product<'_, W>,
    outputs: Range<usize>,
    (output, first_row): (&Places<'_>, usize),
) {
    let all = problem.matrix.outputs();
    let mut copy = vec![0.0; problem.input.len() / problem.matrix.inputs() * all];
    let alone = Product { width: all, first: 0, ..*problem };
    with_rounded_input(&alone, |alone| in_f32(alone, outputs.clone(), &Places::of(&mut copy)));
    for (row, copy) in copy.chunks_exact(all).enumerate() {
        let first = problem.place(first_row + row, outputs.start);
        // SAFETY: tasks have written them, and have ended.
        unsafe { output.again(first, outputs.len()) }.copy_from_slice(&copy[outputs.clone()]);
    }
}

/// Calls `work` for each run of largest magnitudes for which the instructions are not meant, with its first index and its length.
fn each_extreme(largest: &[f32], mut work: impl FnMut(usize, usize)) {
    let is_extreme = |largest: &f32| *largest != 0.0 && !(LEAST..=MOST).contains(largest);
    let mut first = 0;
    for run in largest.chunk_by(|a, b| is_extreme(a) == is_extreme(b)) {
        if is_extreme(&run[0]) {
            work(first, run.len());
        }
        first += run.len();
    }
}

#[cfg(test)]
mod tests {
    use burn_deepspeed_core::block::BlockFormat;

    use super::*;
    use crate::cpu::product::BlockMatrix;

    /// Numbers of 8 significant bits between -1 and 1.
    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|at| ((at + seed).wrapping_mul(2_654_435_761) >> 8 & 0xff) as f32 / 128.0 - 1.0).collect()
    }

    fn engines() -> Vec<Engine> {
        let available = [(Engine::Dot, dot::is_available()), (Engine::Amx, instructions::has_bf16())];
        available.into_iter().filter(|(_, is)| *is && panel::is_available()).map(|(engine, _)| engine).collect()
    }

    /// The output of an engine, or of f32.
    fn output(engine: Option<Engine>, problem: &Product<'_, BlockMatrix<'_>>) -> Vec<f32> {
        let mut output = vec![7.0; problem.input.len() / problem.matrix.inputs * problem.width];
        match engine {
            Some(engine) => product_on(engine, problem, &mut Places::of(&mut output)),
            None => in_f32(problem, 0..problem.matrix.outputs, &Places::of(&mut output)),
        }
        output
    }

    #[test]
    fn every_engine_agrees_with_f32() {
        for (rows, inputs, outputs) in
            [(16, 1, 1), (17, 31, 15), (33, 32, 17), (44, 33, 33), (45, 600, 130), (30, 2100, 70)]
        {
            let (input, bias) = (numbers(rows * inputs, 1), numbers(outputs, 2));
            let blocks = BlockFormat::BF16.quantise(&numbers(inputs * outputs, 3));
            let matrix = BlockMatrix { format: BlockFormat::BF16, blocks: &blocks, inputs, outputs };
            let (width, first, bias) = (outputs + 3, 2, Some(&bias[..]));
            let elements = InputElements::Bf16;
            let problem = Product { input: &input, elements, sequence: rows, matrix, bias, width, first };
            let expected = output(None, &problem);
            for engine in engines() {
                for (found, expected) in output(Some(engine), &problem).into_iter().zip(&expected) {
                    let error = (found - expected).abs();
                    assert!(error <= 1e-6 * (inputs as f32).sqrt(), "{engine:?}, {rows} rows, {inputs} to {outputs}");
                }
            }
        }
    }

    #[test]
    fn rows_that_an_engine_cannot_have_are_computed_in_f32_and_the_others_do_not_depend_on_them() {
        let (rows, inputs, outputs) = (37, 70, 40);
        let plain = numbers(rows * inputs, 1);
        let blocks = BlockFormat::BF16.quantise(&numbers(inputs * outputs, 3));
        let matrix = BlockMatrix { format: BlockFormat::BF16, blocks: &blocks, inputs, outputs };
        let mut input = plain.clone();
        input[3 * inputs + 69] = f32::NAN;
        input[20 * inputs..21 * inputs].fill(f32::MIN_POSITIVE);
        // No bf16, which AMX splits.
        input[36 * inputs] = 0.1;
        let elements = InputElements::Bf16;
        let problem = Product { input: &input, elements, sequence: rows, matrix, bias: None, width: outputs, first: 0 };
        let bits = |engine, problem: &Product<'_, _>| {
            output(engine, problem).into_iter().map(f32::to_bits).collect::<Vec<u32>>()
        };
        let in_f32 = bits(None, &problem);
        for engine in engines() {
            let found = bits(Some(engine), &problem);
            let others = bits(Some(engine), &Product { input: &plain, ..problem });
            for row in 0..rows {
                let expected = match row {
                    3 | 20 => &in_f32,
                    36 if engine == Engine::Dot => &in_f32,
                    36 => continue,
                    _ => &others,
                };
                let own = row * outputs..(row + 1) * outputs;
                assert_eq!(found[own.clone()], expected[own], "{engine:?}, row {row}");
            }
        }
    }
}
