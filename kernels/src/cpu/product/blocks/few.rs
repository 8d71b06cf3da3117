//! Products of a few rows, on integers.

use pulp::Arch;

use super::BlockMatrix;
use super::dot::dot;
use super::pairs::{self, Bytes};
use super::rows::{Bits, Rows, ToFloats};
use crate::cpu::places::Places;
use crate::cpu::product::computed;
use crate::cpu::product::problem::{Product, check};
use crate::cpu::product::rounded::dot::TOGETHER;
use crate::cpu::product::rounded::few::outputs_of_a_task;
use crate::cpu::scratch::{Disjoint, with_scratch};
use crate::cpu::threads;

/// [`product`](crate::cpu::product::product) with rows that are rounded.
pub(super) fn rounded(problem: &Product<'_, BlockMatrix<'_>>, bits: Bits, output: &mut [f32]) {
    let rows = check(problem, output.len());
    if rows * problem.matrix.outputs == 0 {
        return;
    }
    let format = problem.matrix.format;
    Rows::with(problem.input, problem.matrix.inputs, bits, |rows| {
        if pairs::is_available() {
            return Bytes::with(rows, bits, format, |bytes| {
                each_output(problem, output, |runs, write| pairs::multiply(format, runs, bytes, write));
            });
        }
        each_output(problem, output, |runs, write| dot(format, runs, rows, write));
    });
}

/// The product with rows that are rounded and multiplied as floats, for more rows on processors without products of bytes.
pub(super) fn in_f32(problem: &Product<'_, BlockMatrix<'_>>, bits: Bits, output: &mut Places<'_>) {
    check(problem, output.len());
    let input = problem.input;
    with_scratch(input.len(), |scratch| {
        threads::each_part(scratch, problem.matrix.inputs, |row, floats| {
            let row = &input[row * floats.len()..][..floats.len()];
            Arch::new().dispatch(ToFloats { row, bits, floats });
        });
        computed(&Product { input: scratch, ..*problem }, output);
    });
}

/// Receives a row and its products.
type Write<'a> = dyn FnMut(usize, [f32; TOGETHER]) + 'a;

/// Writes the products of all outputs, a group of which `multiply` computes for every row.
fn each_output(
    problem: &Product<'_, BlockMatrix<'_>>,
    output: &mut [f32],
    multiply: impl Fn([&[u8]; TOGETHER], &mut Write<'_>) + Sync,
) {
    let Product { matrix, bias, width, first, .. } = *problem;
    let outputs = matrix.outputs;
    let together = outputs_of_a_task(outputs);
    let output = Disjoint::new(output);
    threads::each(outputs.div_ceil(together), |task| {
        let own = task * together..outputs.min((task + 1) * together);
        for at in own.clone().step_by(TOGETHER) {
            let count = TOGETHER.min(own.end - at);
            // The last output is repeated up to a whole group, and the copies are not read.
            let runs = std::array::from_fn(|n| matrix.run(at + n.min(count - 1)));
            multiply(runs, &mut |row, sums| {
                // SAFETY: no other task has these features.
                let places = unsafe { output.part(row * width + first + at, count) };
                for (n, place) in places.iter_mut().enumerate() {
                    *place = sums[n] + bias.map_or(0.0, |bias| bias[at + n]);
                }
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::product::InputElements;
    use crate::cpu::product::blocks::dot::{is_available, tests};

    #[test]
    fn floats_of_rounded_rows_have_the_products_of_their_integers() {
        if !is_available() {
            return;
        }
        for format in tests::quantised() {
            let (rows, inputs, outputs) = (11, 256, 19);
            let blocks = tests::blocks(format, [outputs, inputs]);
            let matrix = BlockMatrix { format, blocks: &blocks, inputs, outputs };
            let mut input: Vec<f32> = (0..rows * inputs).map(|at| ((at * 37 % 101) as f32 - 50.0) / 16.0).collect();
            input[5 * inputs + 3] = f32::NAN;
            let (elements, width) = (InputElements::F32, outputs);
            let problem = Product { input: &input, elements, sequence: rows, matrix, bias: None, width, first: 0 };
            let mut outputs = [vec![7.0; rows * width], vec![7.0; rows * width]];
            rounded(&problem, Bits::Eight, &mut outputs[0]);
            in_f32(&problem, Bits::Eight, &mut Places::of(&mut outputs[1]));
            let most = outputs[0].iter().fold(1.0f32, |most, value| most.max(value.abs()));
            for (at, (expected, found)) in outputs[0].iter().zip(&outputs[1]).enumerate() {
                let near = (found - expected).abs() <= 2e-5 * most;
                assert!(if at / width == 5 { found.is_nan() } else { near }, "{format}: {found} for {expected}");
            }
        }
    }
}
