//! Tiles of 32 rows and 32 outputs.
//!
//! ```text
//!                512 inputs                       up to 256 outputs
//!           ┌────────────────────┐             ┌────────────────────┐
//!  32 rows  │ up to three parts  │  ×  panels  │ weights            │ 512 inputs   packed, in the second-level cache
//!           └────────────────────┘             └────────────────────┘
//! ```
//!
//! The sums of all rows stay in the second-level cache, too, and are loaded for every 512 inputs. They are added in the order of the inputs, so neither
//! tiles nor tasks affect them.

use std::ops::Range;

use super::amx::{AHEAD, Sums};
use super::split::{DEPTH, INPUTS, Parts, ROWS};
use super::weights::{self, Runs, pack_weights};
use super::{Engine, amx, dot};
use crate::cpu::product::amx::Tiles;
use crate::cpu::product::blocks::BlockMatrix;
use crate::cpu::product::panel::{self, GROUP, OUTPUTS, STEP};
use crate::cpu::product::problem::Product;
use crate::cpu::scratch::{Disjoint, with_scratch};
use crate::cpu::threads;

/// Most outputs of a task.
const MOST_OUTPUTS: usize = 256;

/// The product of rows that were split. Writes the largest magnitude of the weights of each output, too: that of one with a NaN is NaN.
///
/// # Panics
/// If the processor does not have the instructions.
pub(super) fn product(
    engine: Engine,
    problem: &Product<'_, BlockMatrix<'_>>,
    parts: &Parts<'_>,
    largest: &mut [f32],
    output: &mut [f32],
) {
    assert!(panel::is_available(), "the processor has no AVX-512");
    assert!(engine != Engine::Dot || dot::is_available(), "the processor has no AVX512-BF16");
    let outputs = problem.matrix.outputs;
    let fair = outputs.div_ceil(4 * rayon::current_num_threads()).next_multiple_of(OUTPUTS);
    let each = fair.min(MOST_OUTPUTS);
    let output = Disjoint::new(output);
    threads::each_part(largest, each, |task, largest| {
        let outputs = task * each..task * each + largest.len();
        Task { engine, problem, parts, outputs, output: &output }.run(largest);
    });
}

/// Some outputs of all rows.
struct Task<'a> {
    engine: Engine,
    problem: &'a Product<'a, BlockMatrix<'a>>,
    parts: &'a Parts<'a>,
    outputs: Range<usize>,
    output: &'a Disjoint<'a>,
}

impl Task<'_> {
    fn run(self, largest: &mut [f32]) {
        let Self { engine, problem, parts, ref outputs, .. } = self;
        let panels = outputs.len().div_ceil(OUTPUTS);
        let row_tiles = parts.rows().div_ceil(ROWS);
        let tiles = (engine == Engine::Amx).then(Tiles::new);
        largest.fill(0.0);
        let sums = row_tiles * panels * ROWS * OUTPUTS;
        let weight_parts = weights::parts(problem.matrix.format);
        let runs = size_of::<Runs>() / size_of::<f32>();
        with_scratch(sums + weight_parts * panels * OUTPUTS * DEPTH / 2 + runs, |scratch| {
            let (sums, rest) = scratch.split_at_mut(sums);
            let (runs, weights) = rest.split_at_mut(runs);
            sums.fill(0.0);
            let runs: &mut Runs = bytemuck::from_bytes_mut(bytemuck::cast_slice_mut(runs));
            let sums: &mut [Sums] = bytemuck::cast_slice_mut(sums);
            let weights: &mut [u8] = bytemuck::cast_slice_mut(weights);
            for (block, first) in (0..problem.matrix.inputs).step_by(DEPTH).enumerate() {
                let features = first..problem.matrix.inputs.min(first + DEPTH);
                let bytes = features.len().div_ceil(INPUTS) * STEP * OUTPUTS;
                let weights = &mut weights[..panels * weight_parts * bytes];
                let packed = weights.chunks_exact_mut(weight_parts * bytes).zip(largest.chunks_mut(OUTPUTS));
                for (at, (place, largest)) in packed.enumerate() {
                    // SAFETY: the processor has the instructions: `product` has checked it.
                    unsafe {
                        pack_weights(&problem.matrix, &features, outputs.start + at * OUTPUTS, runs, place, largest);
                    }
                }
                for (tile, sums) in sums.chunks_exact_mut(panels).enumerate() {
                    let rows = parts.block(tile, block);
                    // What the first panel would wait for: the rows of all tiles do not fit into the second-level cache.
                    let next = parts.after(tile, block).numbers.as_ptr();
                    for (at, panel) in weights.chunks_exact(bytes).enumerate() {
                        let sums = &mut sums[at / weight_parts];
                        match &tiles {
                            Some(tiles) => amx::multiply(tiles, rows, panel, next.wrapping_add(at * AHEAD), sums),
                            None => {
                                let sums = &mut sums[..ROWS.min(parts.rows() - tile * ROWS)];
                                for (sums, numbers) in sums.chunks_mut(GROUP).zip(rows.numbers.chunks(rows.group)) {
                                    // SAFETY: the processor has the instruction: `product` has checked it.
                                    unsafe { dot::multiply(numbers, panel, sums) };
                                }
                            }
                        }
                    }
                }
            }
            for (tile, sums) in sums.chunks_exact(panels).enumerate() {
                for (panel, sums) in sums.iter().enumerate() {
                    self.write(tile * ROWS, outputs.start + panel * OUTPUTS, sums);
                }
            }
        });
    }

    /// Writes the sums of a tile, with the bias.
    fn write(&self, first_row: usize, first: usize, sums: &Sums) {
        let Product { bias, width, first: column, .. } = *self.problem;
        let count = OUTPUTS.min(self.outputs.end - first);
        for (row, sums) in (first_row..self.parts.rows()).zip(sums) {
            // SAFETY: no other task has these outputs.
            let places = unsafe { self.output.part(row * width + column + first, count) };
            // A sum of -0 would have become 0 by the product with a part that is 0, and not have without.
            places.iter_mut().zip(sums).for_each(|(place, sum)| *place = sum + 0.0);
            if let Some(bias) = bias {
                places.iter_mut().zip(&bias[first..]).for_each(|(place, bias)| *place += bias);
            }
        }
    }
}
