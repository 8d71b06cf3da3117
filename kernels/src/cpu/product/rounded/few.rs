//! A few rows, whose elements are integers of 16 bits.

use burn_deepspeed_core::data_type::InputBits;

use super::dot::{QUAD, Rows, TOGETHER, add_products, arrange};
use super::row::Round;
use crate::cpu::product::int8::Int8Matrix;
use crate::cpu::product::problem::Product;
use crate::cpu::scratch::{Disjoint, with_scratch};
use crate::cpu::threads;

/// Elements of the rows that are multiplied with a task's weights, which stay in the second-level cache.
const MOST_ELEMENTS: usize = 256 * 1024;

/// Rows that a task rounds: a few take less time than to start it.
const ROWS: usize = 8;

/// Fewest outputs of a task.
const FEWEST_OUTPUTS: usize = 32;

/// The product of rows that were checked.
pub(super) fn product(problem: &Product<'_, Int8Matrix<'_>>, bits: InputBits, output: &mut [f32]) {
    let rows = problem.input.len() / problem.matrix.inputs;
    let Product { input, matrix, bias, width, first, .. } = *problem;
    let (inputs, outputs) = (matrix.inputs, matrix.outputs);
    let together = outputs_of_a_task(outputs);
    // Two 16-bit integers in the place of each float.
    let words = inputs.div_ceil(2);
    let output = Disjoint::new(output);
    with_scratch(rows * (words + 1), |scratch| {
        // The rows first: they start where a cache line does.
        let (whole, scales) = scratch.split_at_mut(rows * words);
        let whole: &mut [i16] = bytemuck::cast_slice_mut(whole);
        let places = Disjoint::new(whole);
        threads::each_part(scales, ROWS, |part, scales| {
            for (row, scale) in (part * ROWS..).zip(scales) {
                // SAFETY: every row has its own place.
                let whole = unsafe { places.part(row * 2 * words, inputs) };
                *scale = pulp::Arch::new().dispatch(Round {
                    row: &input[row * inputs..][..inputs],
                    most: bits.largest(),
                    whole: &mut *whole,
                });
                arrange(whole, bits);
            }
        });
        let (whole, scales) = (&*whole, &*scales);
        let most = (MOST_ELEMENTS / (2 * words)).next_multiple_of(QUAD).min(rows);
        threads::each(outputs.div_ceil(together), |task| {
            let own = task * together..outputs.min((task + 1) * together);
            with_scratch((words + most) * TOGETHER, |scratch| {
                let (wide, sums) = scratch.split_at_mut(TOGETHER * words);
                let wide: &mut [i16] = bytemuck::cast_slice_mut(wide);
                for (part, (whole, scales)) in whole.chunks(most * 2 * words).zip(scales.chunks(most)).enumerate() {
                    let sums = &mut sums[..scales.len() * TOGETHER];
                    for at in own.clone().step_by(TOGETHER) {
                        let count = TOGETHER.min(own.end - at);
                        sums.fill(0.0);
                        add_products(&matrix, at, count, Rows { whole, bits }, wide, sums);
                        for (row, (sums, scale)) in sums.chunks_exact(TOGETHER).zip(scales).enumerate() {
                            let row = part * most + row;
                            // SAFETY: no other task has these features.
                            let places = unsafe { output.part(row * width + first + at, count) };
                            for (n, place) in places.iter_mut().enumerate() {
                                *place = sums[n] * scale + bias.map_or(0.0, |bias| bias[at + n]);
                            }
                        }
                    }
                }
            });
        });
    });
}

/// Outputs of a task, a few for each thread.
pub(in crate::cpu::product) fn outputs_of_a_task(outputs: usize) -> usize {
    outputs.div_ceil(4 * rayon::current_num_threads()).next_multiple_of(TOGETHER).max(FEWEST_OUTPUTS)
}
