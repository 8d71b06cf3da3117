//! Products of many rounded rows with blocks of integers, on AVX-512 VNNI or AMX.
//!
//! ```text
//!              32 inputs at a time            32 outputs
//!           ┌──────────────────────┐       ┌───────────────┐
//!  16 rows  │ high bytes │ low     │   ×   │ int8          │ inputs   panels of the outputs of a task
//!           └──────────────────────┘       └───────────────┘
//!             └▶ exact integer · (scale of the row · scale of the output), added in f32
//! ```
//!
//! Rows are those of the products of few: integers of 16 bits, of which a tile multiplies the upper and the lower byte, or of 8. Both engines
//! compute the same integers and add them in the order of the inputs, so they give the same bits.

mod amx;
mod engine;
mod rows;
mod shape;
mod sums;
mod tiles;
mod vnni;
mod weights;

use burn_deepspeed_core::block::BlockFormat;

pub(super) use self::engine::Engine;
use self::rows::RoundGroup;
use self::shape::Shape;
use self::tiles::Task;
use self::weights::Panels;
use super::BlockMatrix;
use super::dot::{self, of_format};
use super::formats::{Format, Iq4Nl, MXFP4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use super::k_formats::{Q2K, Q3K, Q4K, Q5K, Q6K};
use super::rows::Bits;
use crate::cpu::product::amx::has_int8;
use crate::cpu::product::panel::{self, GROUP, OUTPUTS};
use crate::cpu::product::problem::{Product, check};
use crate::cpu::scratch::{Disjoint, with_scratch};
use crate::cpu::threads;

/// Rows that are rounded at a time, which bounds the memory that a thread keeps for them.
const MOST_ROWS: usize = 1024;

/// Bytes of the panels of a task.
const PANELS: usize = 512 * 1024;

/// [`product`](crate::cpu::product::product) with rows that are rounded. A row's result depends neither on the other rows nor on the number of threads.
///
/// # Panics
/// If the processor does not have the instructions, or the matrix is one of floats.
pub(super) fn product(engine: Engine, problem: &Product<'_, BlockMatrix<'_>>, bits: Bits, output: &mut [f32]) {
    assert!(panel::is_available() && dot::is_available(), "the processor has no AVX512-VNNI");
    assert!(engine != Engine::Amx || has_int8(), "the processor has no AMX-INT8");
    let rows = check(problem, output.len());
    if rows * problem.matrix.outputs == 0 {
        return;
    }
    let format = problem.matrix.format;
    let inputs = problem.input.chunks(MOST_ROWS * problem.matrix.inputs);
    for (input, output) in inputs.zip(output.chunks_mut(MOST_ROWS * problem.width)) {
        let problem = Product { input, ..*problem };
        let (problem, output) = (&problem, &mut *output);
        let done = match bits {
            Bits::Eight => of_format!(format, planes::<1>(engine, problem, bits, output)),
            Bits::Sixteen => of_format!(format, planes::<2>(engine, problem, bits, output)),
        };
        assert!(done.is_some(), "{format} has no integers");
    }
}

fn planes<F: Format, const N: usize>(
    engine: Engine,
    problem: &Product<'_, BlockMatrix<'_>>,
    bits: Bits,
    output: &mut [f32],
) {
    let Product { input, matrix, .. } = *problem;
    let (inputs, outputs) = (matrix.inputs, matrix.outputs);
    let shape = Shape::of::<F>(inputs);
    let output = Disjoint::new(output);
    let rows = input.len() / inputs;
    let group = rows::floats::<N>(shape);
    with_scratch(rows.div_ceil(GROUP) * group, |scratch| {
        threads::each_part(scratch, group, |at, place| {
            let rows = &input[at * GROUP * inputs..input.len().min((at + 1) * GROUP * inputs)];
            pulp::Arch::new().dispatch(RoundGroup::<N> { rows, inputs, bits, flip: engine.flip(), shape, place });
        });
        let (groups, panel) = (&*scratch, weights::floats(shape));
        let fair = outputs.div_ceil(4 * rayon::current_num_threads()).next_multiple_of(OUTPUTS);
        let most = (PANELS / (panel * size_of::<f32>()) * OUTPUTS).max(OUTPUTS);
        let each = fair.clamp(OUTPUTS, most);
        threads::each(outputs.div_ceil(each), |task| {
            let outputs = task * each..outputs.min((task + 1) * each);
            Panels::with::<F>(&matrix, outputs.clone(), shape, |panels| {
                Task::<N> { engine, problem, shape, rows, groups, panels, outputs, output: &output }.run();
            });
        });
    });
}

#[cfg(test)]
mod tests {
    use super::engine::FEWEST_ROWS;
    use super::*;
    use crate::cpu::product::InputElements;
    use crate::cpu::product::blocks::dot::tests::{blocks, quantised};
    use crate::cpu::product::blocks::rows::CHUNK;

    fn engines() -> Vec<Engine> {
        match Engine::of(BlockFormat::Q4_0, Bits::Sixteen, FEWEST_ROWS) {
            Some(Engine::Amx) => vec![Engine::Vnni, Engine::Amx],
            Some(Engine::Vnni) => vec![Engine::Vnni],
            None => Vec::new(),
        }
    }

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|at| ((at + seed).wrapping_mul(2_654_435_761) >> 7 & 0xffff) as f32 / 32768.0 - 1.0).collect()
    }

    /// Rows as they are rounded.
    fn rounded(input: &[f32], bits: Bits) -> Vec<f64> {
        let mut values = Vec::new();
        for chunk in input.as_chunks::<CHUNK>().0 {
            let scale = chunk.iter().fold(0.0f32, |most, number| most.max(number.abs())) / bits.largest();
            values.extend(chunk.map(|number| f64::from((number / scale).round_ties_even()) * f64::from(scale)));
        }
        values
    }

    #[test]
    fn engines_have_the_same_bits_and_the_products_of_the_rounded_rows() {
        for format in quantised() {
            let inputs = if format.elements() == 256 { 512 } else { 352 };
            for (rows, outputs) in [(1, 1), (7, 33), (9, 16), (16, 70), (17, 5), (33, 40), (70, 131)] {
                let (input, bias) = (numbers(rows * inputs, 1), numbers(outputs, 2));
                let blocks = blocks(format, [outputs, inputs]);
                let mut weights = vec![0.0; outputs * inputs];
                format.dequantise(&blocks, &mut weights);
                let matrix = BlockMatrix { format, blocks: &blocks, inputs, outputs };
                let (width, first, elements) = (outputs + 3, 2, InputElements::F32);
                for bits in [Bits::Eight, Bits::Sixteen] {
                    let bias = (rows != 16).then_some(&bias[..]);
                    let problem = Product { input: &input, elements, sequence: rows, matrix, bias, width, first };
                    let outputs_of = engines().into_iter().map(|engine| {
                        let mut output = vec![7.0; rows * width];
                        product(engine, &problem, bits, &mut output);
                        output
                    });
                    let outputs_of: Vec<_> = outputs_of.collect();
                    assert!(outputs_of.windows(2).all(|pair| pair[0] == pair[1]), "{format}, {rows} rows, {bits:?}");
                    let Some(found) = outputs_of.first() else { return };
                    for (row, input) in rounded(&input, bits).chunks(inputs).enumerate() {
                        let found = &found[row * width..][..width];
                        assert_eq!([found[0], found[1], found[width - 1]], [7.0; 3]);
                        for (output, weights) in weights.chunks(inputs).enumerate() {
                            let terms = || input.iter().zip(weights).map(|(a, b)| a * f64::from(*b));
                            let expected = terms().sum::<f64>() + bias.map_or(0.0, |bias| f64::from(bias[output]));
                            let error = (f64::from(found[first + output]) - expected).abs();
                            let most = 1e-6 * (1.0 + terms().map(f64::abs).sum::<f64>());
                            assert!(error <= most, "{format}, {rows} rows, {bits:?}: off by {error} of {expected}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_affect_the_others() {
        let (rows, inputs, outputs) = (37, 96, 40);
        let blocks = BlockFormat::Q4_0.quantise(&numbers(inputs * outputs, 3));
        let matrix = BlockMatrix { format: BlockFormat::Q4_0, blocks: &blocks, inputs, outputs };
        let mut input = numbers(rows * inputs, 1);
        let output = |engine, input: &[f32]| {
            let (width, elements) = (outputs, InputElements::F32);
            let mut output = vec![7.0; input.len() / inputs * outputs];
            let problem = Product { input, elements, sequence: 16, matrix, bias: None, width, first: 0 };
            product(engine, &problem, Bits::Sixteen, &mut output);
            output
        };
        for engine in engines() {
            let plain = output(engine, &input);
            input[3 * inputs + 95] = f32::NAN;
            input[20 * inputs] = f32::NEG_INFINITY;
            let found = output(engine, &input);
            for row in 0..rows {
                let own = row * outputs..(row + 1) * outputs;
                match row {
                    3 | 20 => assert!(found[own].iter().all(|value| value.is_nan()), "{engine:?}, row {row}"),
                    _ => assert_eq!(found[own.clone()], plain[own], "{engine:?}, row {row}"),
                }
            }
            input = numbers(rows * inputs, 1);
            assert_eq!(output(engine, &input[30 * inputs..]), plain[30 * outputs..]);
        }
    }
}
