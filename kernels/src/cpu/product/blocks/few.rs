//! Products of a few rows, on integers.

use super::BlockMatrix;
use super::dot::dot;
use super::rows::{Bits, Rows};
use crate::cpu::product::problem::{Product, check};
use crate::cpu::product::rounded::dot::TOGETHER;
use crate::cpu::product::rounded::few::outputs_of_a_task;
use crate::cpu::scratch::Disjoint;
use crate::cpu::threads;

/// [`product`](crate::cpu::product::product) with rows that are rounded.
pub(super) fn rounded(problem: &Product<'_, BlockMatrix<'_>>, bits: Bits, output: &mut [f32]) {
    let rows = check(problem, output);
    if rows * problem.matrix.outputs == 0 {
        return;
    }
    let Product { input, matrix, bias, width, first, .. } = *problem;
    let outputs = matrix.outputs;
    let together = outputs_of_a_task(outputs);
    let output = Disjoint::new(output);
    Rows::with(input, matrix.inputs, bits, |rows| {
        threads::each(outputs.div_ceil(together), |task| {
            let own = task * together..outputs.min((task + 1) * together);
            for at in own.clone().step_by(TOGETHER) {
                let count = TOGETHER.min(own.end - at);
                // The last output is repeated up to a whole group, and the copies are not read.
                let runs = std::array::from_fn(|n| matrix.run(at + n.min(count - 1)));
                dot(matrix.format, runs, rows, |row, sums: [f32; TOGETHER]| {
                    // SAFETY: no other task has these features.
                    let places = unsafe { output.part(row * width + first + at, count) };
                    for (n, place) in places.iter_mut().enumerate() {
                        *place = sums[n] + bias.map_or(0.0, |bias| bias[at + n]);
                    }
                });
            }
        });
    });
}
