//! Tiles of 32 rows and 32 outputs.
//!
//! ```text
//!                128 inputs                       up to 256 outputs
//!           ┌────────────────────┐             ┌────────────────────┐
//!  32 rows  │ up to three parts  │  ×  panels  │ up to three parts  │ 128 inputs   packed, in the second-level cache
//!           └────────────────────┘             └────────────────────┘
//! ```
//!
//! The rows of a tile stay in the first-level cache for all panels. The sums of 512 rows stay in the second-level cache, and are loaded for every
//! 128 inputs but the first. They are added in the order of the inputs, so neither tiles nor tasks affect them. Weights of bf16 are packed for 512 inputs at a
//! time, and multiplied by rows of bf16 for 256.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::amx::{AHEAD, Start, Sums};
use super::split::{INPUTS, Parts, ROWS};
use super::weights::{InParts, PANELS, Packed, Panels, SCRATCH, bytes};
use super::{Engine, GROUP_ROWS, amx, dot};
use crate::cpu::places::Places;
use crate::cpu::product::amx::Tiles;
use crate::cpu::product::panel::{self, GROUP, OUTPUTS};
use crate::cpu::product::problem::{InputElements, Product};
use crate::cpu::scratch::with_scratch;
use crate::cpu::threads;

/// Steps of rows of three parts that are multiplied with all panels in turn: half of a first-level cache holds them. Twice as many of one part.
const SOME_STEPS: usize = 4;

/// Most outputs of a task.
const MOST_OUTPUTS: usize = PANELS * OUTPUTS;

/// The product of rows that were split, into the rows of the output from `first_row` on. Writes the largest magnitude of the weights of each output, too: that of one with a NaN is NaN.
///
/// # Panics
/// If the processor does not have the instructions.
pub(super) fn product<W: InParts>(
    engine: Engine,
    problem: &Product<'_, W>,
    parts: &Parts<'_>,
    largest: &mut [f32],
    (output, first_row): (&Places<'_>, usize),
) {
    assert!(panel::is_available(), "the processor has no AVX-512");
    assert!(engine != Engine::Dot || dot::is_available(), "the processor has no AVX512-BF16");
    let outputs = problem.matrix.outputs();
    // Each task reads all rows, so there are few: as many as the outputs need, up to a multiple of the threads.
    let tasks = outputs.div_ceil(MOST_OUTPUTS).next_multiple_of(rayon::current_num_threads());
    let each = outputs.div_ceil(tasks).next_multiple_of(OUTPUTS);
    threads::each_part(largest, each, |task, largest| {
        let outputs = task * each..task * each + largest.len();
        Task { engine, problem, parts, outputs, output, first_row }.run(largest);
    });
}

/// Most blocks of features that stay packed for all groups of rows.
const MOST_BLOCKS: usize = 8;

/// Tiles of a group of rows.
const GROUP_TILES: usize = GROUP_ROWS / ROWS;

/// Some outputs of all rows.
struct Task<'a, W> {
    engine: Engine,
    problem: &'a Product<'a, W>,
    parts: &'a Parts<'a>,
    outputs: Range<usize>,
    output: &'a Places<'a>,
    first_row: usize,
}

impl<W: InParts> Task<'_, W> {
    fn run(self, largest: &mut [f32]) {
        let Self { engine, problem, parts, ref outputs, .. } = self;
        let panels = outputs.len().div_ceil(OUTPUTS);
        let row_tiles = parts.rows().div_ceil(ROWS);
        let tiles = (engine == Engine::Amx).then(Tiles::new);
        largest.fill(0.0);
        let sums = row_tiles.min(GROUP_TILES) * panels * ROWS * OUTPUTS;
        let (inputs, depth) = (problem.matrix.inputs(), problem.matrix.depth());
        let (blocks, block) = (inputs.div_ceil(depth), panels * bytes(depth.min(inputs)));
        // What is packed once has to stay for the next rows.
        let kept = if row_tiles > GROUP_TILES && blocks <= MOST_BLOCKS { blocks } else { 1 };
        with_scratch(sums + kept * block / size_of::<f32>() + SCRATCH, |scratch| {
            let (sums, rest) = scratch.split_at_mut(sums);
            let (scratch, weights) = rest.split_at_mut(SCRATCH);
            let sums: &mut [Sums] = bytemuck::cast_slice_mut(sums);
            let weights: &mut [u8] = bytemuck::cast_slice_mut(weights);
            let mut packed = [[Packed::default(); PANELS]; MOST_BLOCKS];
            for first_tile in (0..row_tiles).step_by(GROUP_TILES) {
                let tiles_of_rows = first_tile..row_tiles.min(first_tile + GROUP_TILES);
                let sums = &mut sums[..tiles_of_rows.len() * panels];
                for (at, first) in (0..inputs).step_by(depth).enumerate() {
                    let features = first..inputs.min(first + depth);
                    let place = at % kept;
                    let weights = &mut weights[place * block..][..panels * bytes(features.len())];
                    if first_tile == 0 || kept < blocks {
                        let places = Panels::new(features.len(), scratch, weights, largest, &mut packed[place]);
                        problem.matrix.pack_parts(outputs, &features, places);
                    }
                    self.multiply(tiles.as_ref(), (first_tile, &features), (weights, &packed[place]), sums);
                }
                let end = parts.rows().min(tiles_of_rows.end * ROWS);
                let rows = self.first_row + first_tile * ROWS..self.first_row + end;
                let (outputs, output) = (outputs.clone(), self.output);
                Arch::new().dispatch(Write { problem, rows, outputs, output, sums });
            }
        });
    }

    /// Adds the products of some features, which were packed, to `sums`, `[tiles, panels]` from a tile on. The products of the first features replace
    /// what was there.
    #[inline(always)]
    fn multiply(
        &self,
        tiles: Option<&Tiles>,
        (first_tile, features): (usize, &Range<usize>),
        (weights, packed): (&[u8], &[Packed; PANELS]),
        sums: &mut [Sums],
    ) {
        let Self { problem, parts, ref outputs, .. } = *self;
        let panels = outputs.len().div_ceil(OUTPUTS);
        let some = if problem.elements != InputElements::F32 { 2 * SOME_STEPS } else { SOME_STEPS };
        let (start, end) = (features.start / INPUTS, features.end.div_ceil(INPUTS));
        for first in (start..end).step_by(some) {
            let steps = first..end.min(first + some);
            let begin = if first == 0 { Start::Zero } else { Start::Sums };
            for (tile, sums) in (first_tile..).zip(sums.chunks_exact_mut(panels)) {
                let (rows, ahead) = (parts.steps(tile, &steps), parts.after(tile, &steps));
                let panels = weights.chunks_exact(bytes(features.len())).zip(*packed).zip(sums);
                for (at, ((panel, packed), sums)) in panels.enumerate() {
                    let panel = (&panel[(first - start) * packed.step..], packed);
                    if let Some(tiles) = tiles {
                        amx::multiply(tiles, rows, panel, ahead.wrapping_add(at * AHEAD), (begin, sums));
                        continue;
                    }
                    let sums = &mut sums[..ROWS.min(parts.rows() - tile * ROWS)];
                    for (group, sums) in sums.chunks_mut(GROUP).enumerate() {
                        // SAFETY: the processor has the instruction: `product` has checked it.
                        unsafe { dot::multiply(rows, group, panel, (begin, sums)) };
                    }
                }
            }
        }
    }
}

/// Writes the sums of some rows of the output, times the scales of the outputs, with the bias.
struct Write<'a, W> {
    problem: &'a Product<'a, W>,
    rows: Range<usize>,
    outputs: Range<usize>,
    output: &'a Places<'a>,
    /// `[tiles, panels]`.
    sums: &'a [Sums],
}

impl<W: InParts> WithSimd for Write<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self { problem, rows, outputs, output, sums } = self;
        let Product { ref matrix, bias, .. } = *problem;
        let mut factors = [1.0; MOST_OUTPUTS];
        for (factor, output) in factors.iter_mut().zip(outputs.clone()) {
            *factor = matrix.scale(output);
        }
        let panels = outputs.len().div_ceil(OUTPUTS);
        let taker = output.taker();
        for (at, row) in rows.enumerate() {
            // SAFETY: no other task has these outputs, and this one takes those of a row once.
            let places = unsafe { taker.part(problem.place(row, outputs.start), outputs.len()) };
            let own = &sums[at / ROWS * panels..][..panels];
            let factors = factors.chunks_exact(OUTPUTS);
            for ((places, sums), factors) in places.chunks_mut(OUTPUTS).zip(own).zip(factors) {
                for ((place, sum), factor) in places.iter_mut().zip(&sums[at % ROWS]).zip(factors) {
                    // A sum of -0 would have become 0 by the product with a part that is 0, and not have without.
                    *place = (sum + 0.0) * factor;
                }
            }
            if let Some(bias) = bias {
                for (place, bias) in places.iter_mut().zip(&bias[outputs.clone()]) {
                    *place += bias;
                }
            }
        }
    }
}
