//! Products of rows that lie side by side in lanes: each weight is read once for all rows of a tile.
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

use super::{MULTIPLE, Matrix, Product};
use crate::cpu::lanes::{Count, Lanes, RUNS, WithLanes, dot, into_lanes, out_of_lanes};
use crate::cpu::{Disjoint, with_room};

/// Features that meet a tile at once.
const DEPTH: usize = 256;

/// Most outputs of a task.
const MOST_OUTPUTS: usize = 128;

/// Most rows of a task.
const MOST_ROWS: usize = 256;

/// [`product`](super::product), for any number of rows.
pub(super) fn tiles(problem: &Product<'_>, rows: usize, output: &mut [f32]) {
    let Matrix { inputs, outputs, .. } = problem.matrix;
    let lanes = Arch::new().dispatch(Lanes(Count));
    let parts = rows.div_ceil(MOST_ROWS.next_multiple_of(lanes));
    let each_rows = rows.div_ceil(parts).next_multiple_of(lanes);
    let fair = outputs.div_ceil((4 * rayon::current_num_threads()).div_ceil(parts)).next_multiple_of(MULTIPLE);
    let each = fair.min(MOST_OUTPUTS);
    let output = Disjoint::new(output);
    with_room(rows.next_multiple_of(lanes) * inputs, |packed| {
        packed.par_chunks_exact_mut(lanes * inputs).enumerate().for_each(|(tile, packed)| {
            Arch::new().dispatch(Lanes(Pack { input: problem.input, inputs, first: tile * lanes, packed }));
        });
        // Tasks beside each other share their weights.
        (0..outputs.div_ceil(each) * parts).into_par_iter().for_each(|task| {
            let own = task / parts * each..outputs.min((task / parts + 1) * each);
            let rows = task % parts * each_rows..rows.min((task % parts + 1) * each_rows);
            if rows.is_empty() {
                return;
            }
            let sums = rows.len().next_multiple_of(lanes) * own.len();
            with_room(sums + own.len() * DEPTH, |room| {
                let (sums, weights) = room.split_at_mut(sums);
                let packed = &packed[rows.start * inputs..rows.end.next_multiple_of(lanes) * inputs];
                let task = Task { problem, packed, rows, outputs: own, sums, weights, output: &output };
                Arch::new().dispatch(Lanes(task));
            });
        });
    });
}

/// Lays the rows from `first` on side by side.
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
        // Behind the last row comes the last one again, and nobody reads it.
        let last = self.input.len() / self.inputs - 1;
        let row = |lane: usize| &self.input[(self.first + lane).min(last) * self.inputs..][..self.inputs];
        into_lanes(row, V * S::F32_LANES, self.packed);
    }
}

/// Some outputs of some rows.
struct Task<'a> {
    problem: &'a Product<'a>,
    /// Tile behind tile, each `[inputs, lanes]`.
    packed: &'a [f32],
    rows: Range<usize>,
    outputs: Range<usize>,
    /// Room for tile behind tile, each `[outputs, lanes]`.
    sums: &'a mut [f32],
    /// Room for `[outputs, DEPTH]`.
    weights: &'a mut [f32],
    output: &'a Disjoint<'a>,
}

impl WithLanes for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_lanes<S: Simd, const V: usize>(self, simd: S) {
        let Self { problem, packed, rows, outputs, sums, weights, output } = self;
        let Product { matrix, bias, width, first, .. } = *problem;
        let lanes = V * S::F32_LANES;
        sums.fill(0.0);
        for start in (0..matrix.inputs).step_by(DEPTH) {
            let features = start..matrix.inputs.min(start + DEPTH);
            let (runs, stride) = block(&matrix, &outputs, &features, weights);
            let tiles = packed.chunks_exact(matrix.inputs * lanes);
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

/// The weights of some outputs and features as runs along the features: the first of them, and how far they lie apart.
#[inline(always)]
fn block<'a>(
    matrix: &Matrix<'a>,
    outputs: &Range<usize>,
    features: &Range<usize>,
    room: &'a mut [f32],
) -> (&'a [f32], usize) {
    let Matrix { elements, input_stride, output_stride, .. } = *matrix;
    if input_stride == 1 {
        return (&elements[outputs.start * output_stride + features.start..], output_stride);
    }
    let room = &mut room[..outputs.len() * features.len()];
    if output_stride == 1 {
        let row = |at: usize| &elements[(features.start + at) * input_stride + outputs.start..][..outputs.len()];
        into_lanes(row, features.len(), room);
    } else {
        for (output, run) in outputs.clone().zip(room.chunks_exact_mut(features.len())) {
            for (feature, element) in features.clone().zip(run) {
                *element = elements[feature * input_stride + output * output_stride];
            }
        }
    }
    (room, features.len())
}
