//! Products of rows in lanes, one row to a lane: each weight is read once for all rows of a tile.
//!
//! ```text
//!                    outputs of a task
//!                  ┌───────────────────┐
//!    128 features  │ weights           │   in the second-level cache, for every tile of the task
//!                  └───────────────────┘
//!      │             ↓ a group at a time
//!  ┌─────────┐     ┌───────────────────┐
//!  │ tile    │     │ sums [out, lanes] │
//!  └─────────┘     └───────────────────┘
//!   [features, lanes], in the first-level cache
//! ```
//!
//! Where the matrix is read in place, 1024 features of a tile are in the second-level cache, and those of a group in the first.
//!
//! An element of the result is one chain of multiply-adds along the inputs, so neither tiles nor tasks affect it.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::groups::{Ahead, packed_across, packed_along, runs_of_features};
use super::problem::{DEPTH, Layout, Product, WIDTH, Weights};
use crate::cpu::lanes::{Count, Lanes};
use crate::cpu::places::{Places, Taker};
use crate::cpu::scratch::{Disjoint, with_scratch};
use crate::cpu::threads;
use crate::cpu::transpose::{into_lanes, out_of_lanes};

/// Most outputs of a group, and a multiple of all groups: with the vectors of a tile they have 24 sums in 32 registers or 12 in 16, which
/// hide the latency of a multiplication. Tasks have a multiple of it.
const MOST_GROUP: usize = 24;

/// Features that are multiplied at a time where weights are not packed for several tiles: a tile is in the second-level cache, and its sums are
/// stored less often.
const DEEP: usize = 1024;

/// Runs of weights compete for the same places of a cache if the bytes from one to the next are a multiple of this.
const PAGE: usize = 4096;

/// Most rows of a task.
const MOST_ROWS: usize = 512;

/// Rows that are packed into lanes at a time, which bounds the memory that a thread keeps for them.
const MOST_PACKED: usize = 1024;

/// The product of any number of rows.
pub(super) fn tiles<W: Weights>(problem: &Product<'_, W>, output: &mut Places<'_>) {
    let outputs = problem.matrix.outputs();
    output.claim(problem.first..problem.first + outputs, problem.width);
    some_outputs(problem, 0..outputs, output);
}

/// The same for some outputs of the matrix, which are claimed if the result is new.
pub(super) fn some_outputs<W: Weights>(problem: &Product<'_, W>, outputs: Range<usize>, output: &Places<'_>) {
    for (at, input) in problem.input.chunks(MOST_PACKED * problem.matrix.inputs()).enumerate() {
        packed(&Product { input, ..*problem }, &outputs, (output, at * MOST_PACKED));
    }
}

/// How rows are distributed over tiles: as many whole ones as there are, and one with the rest, in whole vectors.
#[derive(Clone, Copy)]
struct Tiling {
    rows: usize,
    /// Lanes of a whole tile.
    most: usize,
    /// Lanes of a vector.
    vector: usize,
    /// Whether there are registers for 24 sums.
    many_registers: bool,
}

impl Tiling {
    fn new(rows: usize) -> Self {
        let (vector, registers) = Arch::new().dispatch(Vectors);
        Self { rows, most: Arch::new().dispatch(Lanes(Count)), vector, many_registers: registers >= 32 }
    }

    fn tiles(&self) -> usize {
        self.rows.div_ceil(self.most)
    }

    /// Lanes of a tile.
    fn lanes(&self, tile: usize) -> usize {
        (self.rows - tile * self.most).next_multiple_of(self.vector).min(self.most)
    }

    /// Lanes of some tiles.
    fn all(&self, tiles: &Range<usize>) -> usize {
        (tiles.end * self.most).min(self.rows.next_multiple_of(self.vector)) - tiles.start * self.most
    }
}

/// Counts the lanes of a vector, and the registers.
struct Vectors;

impl WithSimd for Vectors {
    type Output = (usize, usize);

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> (usize, usize) {
        (S::F32_LANES, S::REGISTER_COUNT)
    }
}

/// Who reads a matrix where it is.
#[derive(PartialEq)]
enum InPlace {
    /// All tiles of a task: what one has read is in a cache for the next.
    Several,
    /// A single tile: runs of weights would push each other out of the caches before the next.
    Single,
    /// None: its elements are packed as f32.
    No,
}

impl InPlace {
    fn of<W: Weights>(matrix: &W) -> Self {
        let Some((_, stride)) = matrix.in_place() else { return Self::No };
        let contiguous = stride == matrix.inputs() && stride <= DEEP;
        match contiguous || !(stride * size_of::<f32>()).is_multiple_of(PAGE) {
            true => Self::Several,
            false => Self::Single,
        }
    }
}

/// The same for rows that are all packed at once, into those of the output from `first_row` on.
fn packed<W: Weights>(problem: &Product<'_, W>, outputs: &Range<usize>, (output, first_row): (&Places<'_>, usize)) {
    let inputs = problem.matrix.inputs();
    let tiling = Tiling::new(problem.input.len() / inputs);
    let tiles = tiling.tiles();
    let single = tiling.many_registers && InPlace::of(&problem.matrix) == InPlace::Single;
    let parts = if single { tiles } else { tiles.div_ceil(MOST_ROWS / tiling.most) };
    let each_tiles = tiles.div_ceil(parts);
    let threads = rayon::current_num_threads();
    let tasks = if threads == 1 { 1 } else { (4 * threads).div_ceil(parts) };
    let fair = outputs.len().div_ceil(tasks).next_multiple_of(MOST_GROUP);
    let each = fair.min(WIDTH);
    with_scratch(tiling.all(&(0..tiles)) * inputs, |packed| {
        let all = Disjoint::new(packed);
        let chunks = inputs.div_ceil(DEPTH);
        threads::each(tiles * chunks, |task| {
            let (tile, first) = (task / chunks, task % chunks * DEPTH);
            let features = first..inputs.min(first + DEPTH);
            let lanes = tiling.lanes(tile);
            // SAFETY: no other task has these features of this tile.
            let packed =
                unsafe { all.part(tile * tiling.most * inputs + features.start * lanes, features.len() * lanes) };
            Arch::new().dispatch(Pack { input: problem.input, inputs, first: tile * tiling.most, features, packed });
        });
        // Neighbouring tasks share their weights.
        threads::each(outputs.len().div_ceil(each) * parts, |task| {
            let first = outputs.start + task / parts * each;
            let outputs = first..outputs.end.min(first + each);
            let tiles = task % parts * each_tiles..tiles.min((task % parts + 1) * each_tiles);
            if tiles.is_empty() {
                return;
            }
            let own = tiling.all(&tiles);
            let sums = own * outputs.len().next_multiple_of(MOST_GROUP);
            with_scratch(sums + WIDTH * DEPTH, |scratch| {
                let (sums, weights) = scratch.split_at_mut(sums);
                let packed = &packed[tiles.start * tiling.most * inputs..][..own * inputs];
                let taker = output.taker();
                let output = Output { places: output, taker: &taker, first_row };
                Arch::new().dispatch(Task { problem, tiling, packed, tiles, outputs, sums, weights, output });
            });
        });
    });
}

/// Packs some features of the rows from `first` on into lanes.
struct Pack<'a> {
    input: &'a [f32],
    inputs: usize,
    first: usize,
    features: Range<usize>,
    packed: &'a mut [f32],
}

impl WithSimd for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        // The last row is repeated up to a whole vector, and the copies are not read.
        let last = self.input.len() / self.inputs - 1;
        let features = &self.features;
        let row =
            |lane: usize| &self.input[(self.first + lane).min(last) * self.inputs..][features.start..features.end];
        into_lanes(row, self.packed.len() / features.len(), self.packed);
    }
}

/// Some outputs of some tiles.
struct Task<'a, W> {
    problem: &'a Product<'a, W>,
    tiling: Tiling,
    /// Contiguous tiles, each `[inputs, lanes]`.
    packed: &'a [f32],
    tiles: Range<usize>,
    outputs: Range<usize>,
    /// Scratch for contiguous tiles, each `[outputs, lanes]`, with outputs in whole groups.
    sums: &'a mut [f32],
    /// Scratch for a block of weights.
    weights: &'a mut [f32],
    output: Output<'a>,
}

/// Where the sums go.
struct Output<'a> {
    places: &'a Places<'a>,
    taker: &'a Taker<'a>,
    /// The row of the first row of the first tile.
    first_row: usize,
}

impl<W: Weights> WithSimd for Task<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let matrix = &self.problem.matrix;
        let deep = self.deep();
        let depth = if deep { DEEP } else { DEPTH };
        for start in (0..matrix.inputs()).step_by(depth) {
            let features = start..matrix.inputs().min(start + depth);
            if matrix.layout() == Layout::Across {
                matrix.pack(&self.outputs, &features, depth, self.weights);
            }
            for tile in self.tiles.clone() {
                match (self.tiling.lanes(tile) / S::F32_LANES, S::REGISTER_COUNT >= 32) {
                    // Not 24 runs of features, which would not stay in the first-level cache if their distance is a power of two.
                    (1, true) if deep => self.tile::<S, 1, 12, DEEP>(simd, tile, &features),
                    (2, true) if deep => self.tile::<S, 2, 12, DEEP>(simd, tile, &features),
                    (3, true) if deep => self.tile::<S, 3, 8, DEEP>(simd, tile, &features),
                    (_, true) if deep => self.tile::<S, 4, 6, DEEP>(simd, tile, &features),
                    (_, false) if deep => self.tile::<S, 2, 6, DEEP>(simd, tile, &features),
                    (1, true) => self.tile::<S, 1, 24, DEPTH>(simd, tile, &features),
                    (2, true) => self.tile::<S, 2, 12, DEPTH>(simd, tile, &features),
                    (3, true) => self.tile::<S, 3, 8, DEPTH>(simd, tile, &features),
                    (_, true) => self.tile::<S, 4, 6, DEPTH>(simd, tile, &features),
                    (1, false) => self.tile::<S, 1, 12, DEPTH>(simd, tile, &features),
                    (_, false) => self.tile::<S, 2, 6, DEPTH>(simd, tile, &features),
                }
                if features.end == matrix.inputs() {
                    self.write(tile);
                }
            }
        }
    }
}

/// The weights after those of a group.
struct Next<'a, W> {
    matrix: &'a W,
    own: Range<usize>,
    block: &'a Range<usize>,
    features: &'a Range<usize>,
    at: usize,
    /// Whether the group is of the first tile.
    first: bool,
}

impl<W: Weights> Ahead for Next<'_, W> {
    #[inline(always)]
    fn prefetch(&self, part: usize) {
        if self.first {
            self.matrix.fetch(&self.own, self.block, self.features, self.at, part);
        }
    }
}

impl<W: Weights> Task<'_, W> {
    /// Whether [`DEEP`] features are multiplied at a time: by a single tile, and by several that read the matrix where it is.
    fn deep(&self) -> bool {
        let Self { problem, tiling, tiles, .. } = self;
        let whole = tiling.lanes(tiles.start) == tiling.most;
        let several = || tiling.many_registers && InPlace::of(&problem.matrix) == InPlace::Several;
        problem.matrix.layout() == Layout::Along && (tiling.many_registers || whole) && (tiles.len() == 1 || several())
    }

    /// Adds the products of at most `D` features of a tile, in `V` vectors, to its sums, `N` outputs at a time.
    #[inline(always)]
    fn tile<S: Simd, const V: usize, const N: usize, const D: usize>(
        &mut self,
        simd: S,
        tile: usize,
        features: &Range<usize>,
    ) {
        let Self { problem, tiling, packed, tiles, outputs, sums, weights, output } = self;
        let matrix = &problem.matrix;
        let (inputs, lanes) = (matrix.inputs(), V * S::F32_LANES);
        let (first_row, ends) = (tile * tiling.most, features.end == inputs);
        let own_rows = lanes.min(tiling.rows - first_row);
        let before = (tile - tiles.start) * tiling.most;
        let rows = &packed[before * inputs..][features.start * lanes..features.end * lanes];
        let rows = S::as_simd_f32s(rows).0.as_chunks::<V>().0;
        let padded = outputs.len().next_multiple_of(MOST_GROUP);
        let sums = S::as_mut_simd_f32s(&mut sums[before * padded..][..lanes * padded]).0.as_chunks_mut::<V>().0;
        let fresh = features.start == 0;

        // The first tile takes the weights from memory, and the others from the caches.
        let first = tile == tiles.start;
        let in_place = if D == DEEP { matrix.in_place() } else { None };
        let groups = outputs.len().div_ceil(N);
        for (at, sums) in sums.as_chunks_mut::<N>().0[..groups].iter_mut().enumerate() {
            let own = outputs.start + at * N..outputs.end.min(outputs.start + (at + 1) * N);
            if ends {
                for row in first_row + at * own_rows / groups..first_row + (at + 1) * own_rows / groups {
                    // SAFETY: no other task has these places, and this one has not taken them.
                    unsafe {
                        output.places.prefetch_far(problem.place(output.first_row + row, outputs.start), outputs.len())
                    };
                }
            }
            let ahead = Next { matrix, own: own.clone(), block: outputs, features, at, first };
            if let Some((elements, stride)) = in_place {
                let run = |n: usize| &elements[(own.start + n).min(own.end - 1) * stride..][features.clone()];
                let runs: [&[f32]; N] = std::array::from_fn(run);
                runs_of_features(simd, rows, runs, sums, fresh, ahead);
            } else if matrix.layout() == Layout::Across {
                packed_across(simd, rows, &weights[at * N..], sums, fresh, ahead);
            } else {
                // Other tiles find the weights where the first has packed them.
                let place = if D == DEEP { 0 } else { at * N * D };
                let weights = &mut weights[place..][..N * D];
                if first {
                    matrix.pack(&own, features, D, weights);
                    // The rest of the last group is computed, and not read.
                    weights[own.len() * D..].fill(0.0);
                }
                packed_along::<S, V, N, D>(simd, rows, weights, sums, fresh, ahead);
            }
        }
    }

    /// Writes the sums of a tile, with the bias, to the output.
    #[inline(always)]
    fn write(&mut self, tile: usize) {
        let Self { problem, tiling, tiles, outputs, sums, output, .. } = self;
        let padded = outputs.len().next_multiple_of(MOST_GROUP);
        let lanes = tiling.lanes(tile);
        let sums = &mut sums[(tile - tiles.start) * tiling.most * padded..][..outputs.len() * lanes];
        if let Some(bias) = problem.bias {
            for (sums, bias) in sums.chunks_exact_mut(lanes).zip(&bias[outputs.clone()]) {
                sums.iter_mut().for_each(|sum| *sum += bias);
            }
        }
        let first_row = tile * tiling.most;
        // SAFETY: no other task has these features of these rows, and no other lane this row.
        let place = |lane| unsafe {
            output.taker.part(problem.place(output.first_row + first_row + lane, outputs.start), outputs.len())
        };
        out_of_lanes(sums, lanes, (tiling.rows - first_row).min(lanes), place);
    }
}
