//! Products of rows in lanes, one row to a lane: each weight is read once for all rows of a tile.
//!
//! ```text
//!                  outputs of a task
//!                ┌───────────────────┐
//!  256 features  │ weights [out, in] │   in the second-level cache, for every tile of the task
//!                └───────────────────┘
//!      │           ↓ 6 at a time
//!  ┌───────┐     ┌───────────────────┐
//!  │ tile  │     │ sums [out, lanes] │
//!  └───────┘     └───────────────────┘
//!   [features, lanes], in the first-level cache
//! ```

use std::ops::Range;

use pulp::{Arch, Simd};
use rayon::prelude::*;

use super::problem::{MULTIPLE, Product, Weights};
use crate::cpu::lanes::{Count, Lanes, RUNS, WithLanes, dot, into_lanes, out_of_lanes};
use crate::cpu::scratch::{Disjoint, with_scratch};

/// Features of a tile that are multiplied at a time.
const DEPTH: usize = 256;

/// Most outputs of a task.
const MOST_OUTPUTS: usize = 128;

/// Most rows of a task.
const MOST_ROWS: usize = 256;

/// Rows that are packed into lanes at a time, which bounds the memory that a thread keeps for them.
const MOST_PACKED: usize = 1024;

/// The product of any number of rows.
pub(super) fn tiles<W: Weights>(problem: &Product<'_, W>, output: &mut [f32]) {
    let inputs = problem.input.chunks(MOST_PACKED * problem.matrix.inputs());
    for (input, output) in inputs.zip(output.chunks_mut(MOST_PACKED * problem.width)) {
        packed(&Product { input, ..*problem }, output);
    }
}

/// The same for rows that are all packed at once.
fn packed<W: Weights>(problem: &Product<'_, W>, output: &mut [f32]) {
    let (inputs, outputs) = (problem.matrix.inputs(), problem.matrix.outputs());
    let rows = problem.input.len() / inputs;
    let lanes = Arch::new().dispatch(Lanes(Count));
    let parts = rows.div_ceil(MOST_ROWS.next_multiple_of(lanes));
    let each_rows = rows.div_ceil(parts).next_multiple_of(lanes);
    let fair = outputs.div_ceil((4 * rayon::current_num_threads()).div_ceil(parts)).next_multiple_of(MULTIPLE);
    let each = fair.min(MOST_OUTPUTS);
    let output = Disjoint::new(output);
    with_scratch(rows.next_multiple_of(lanes) * inputs, |packed| {
        packed.par_chunks_exact_mut(lanes * inputs).enumerate().for_each(|(tile, packed)| {
            Arch::new().dispatch(Lanes(Pack { input: problem.input, inputs, first: tile * lanes, packed }));
        });
        // Neighbouring tasks share their weights.
        (0..outputs.div_ceil(each) * parts).into_par_iter().for_each(|task| {
            let own = task / parts * each..outputs.min((task / parts + 1) * each);
            let rows = task % parts * each_rows..rows.min((task % parts + 1) * each_rows);
            if rows.is_empty() {
                return;
            }
            let sums = rows.len().next_multiple_of(lanes) * own.len();
            with_scratch(sums + own.len() * DEPTH, |scratch| {
                let (sums, weights) = scratch.split_at_mut(sums);
                let packed = &packed[rows.start * inputs..rows.end.next_multiple_of(lanes) * inputs];
                let task = Task { problem, packed, rows, outputs: own, sums, weights, output: &output };
                Arch::new().dispatch(Lanes(task));
            });
        });
    });
}

/// Packs the rows from `first` on into lanes.
struct Pack<'a> {
    input: &'a [f32],
    inputs: usize,
    first: usize,
    packed: &'a mut [f32],
}

impl WithLanes for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn with_lanes<S: Simd, const V: usize>(self, _simd: S) {
        // The last row is repeated up to a whole tile, and the copies are not read.
        let last = self.input.len() / self.inputs - 1;
        let row = |lane: usize| &self.input[(self.first + lane).min(last) * self.inputs..][..self.inputs];
        into_lanes(row, V * S::F32_LANES, self.packed);
    }
}

/// Some outputs of some rows.
struct Task<'a, W> {
    problem: &'a Product<'a, W>,
    /// Contiguous tiles, each `[inputs, lanes]`.
    packed: &'a [f32],
    rows: Range<usize>,
    outputs: Range<usize>,
    /// Scratch for contiguous tiles, each `[outputs, lanes]`.
    sums: &'a mut [f32],
    /// Scratch for `[outputs, DEPTH]`.
    weights: &'a mut [f32],
    output: &'a Disjoint<'a>,
}

impl<W: Weights> WithLanes for Task<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_lanes<S: Simd, const V: usize>(self, simd: S) {
        let Self { problem, packed, rows, outputs, sums, weights, output } = self;
        let Product { matrix, bias, width, first, .. } = *problem;
        let lanes = V * S::F32_LANES;
        sums.fill(0.0);
        let inputs = matrix.inputs();
        for start in (0..inputs).step_by(DEPTH) {
            let features = start..inputs.min(start + DEPTH);
            let scratch = &mut weights[..outputs.len() * features.len()];
            let (runs, stride) = matrix.block(&outputs, &features, scratch);
            let tiles = packed.chunks_exact(inputs * lanes);
            for (tile, sums) in tiles.zip(sums.chunks_exact_mut(outputs.len() * lanes)) {
                let tile = &tile[features.start * lanes..features.end * lanes];
                let tile = S::as_simd_f32s(tile).0.as_chunks::<V>().0;
                let sums = S::as_mut_simd_f32s(sums).0.as_chunks_mut::<V>().0;
                let (whole, rest) = sums.as_chunks_mut::<RUNS>();
                for (at, sums) in whole.iter_mut().enumerate() {
                    dot(simd, tile, &runs[at * RUNS * stride..], stride, sums);
                }
                let done = whole.len() * RUNS;
                for (at, sums) in rest.as_chunks_mut::<1>().0.iter_mut().enumerate() {
                    dot(simd, tile, &runs[(done + at) * stride..], stride, sums);
                }
            }
        }
        for (tile, sums) in sums.chunks_exact_mut(outputs.len() * lanes).enumerate() {
            if let Some(bias) = bias {
                for (sums, bias) in sums.chunks_exact_mut(lanes).zip(&bias[outputs.clone()]) {
                    sums.iter_mut().for_each(|sum| *sum += bias);
                }
            }
            let first_row = rows.start + tile * lanes;
            let place = |lane: usize| {
                let at = (first_row + lane) * width + first + outputs.start;
                // SAFETY: no other task has these features of these rows, and no other lane this row.
                unsafe { output.part(at, outputs.len()) }
            };
            out_of_lanes(sums, lanes, (rows.end - first_row).min(lanes), place);
        }
    }
}
