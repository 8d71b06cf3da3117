//! The steps of a cube: keys and values of the next one are copied while those of this one are multiplied.

use cubecl::prelude::barrier::Barrier;
use cubecl::prelude::*;

use super::scores::{Rows, add_all, add_slopes, hide_range, score, shifts};
use super::stage::stage_step;
use super::step::{accumulate, initial_products, near_probabilities, packed, probabilities, products};
use super::sums::Sums;
use super::tile::{Scoring, Sizes, Tile};
use crate::cube::cached::Cached;
use crate::cube::fragment::{LANES, Pair};
use crate::cube::masks::{HIDDEN, Masks};

/// Which keys the rows of a cube and of a plane see.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Seen {
    /// The slot of the first query.
    pub start: u32,
    /// The end of the keys.
    pub end: u32,
    /// The steps whose keys some row of the cube sees.
    pub begin: u32,
    pub stop: u32,
    /// The first row of the unit.
    pub own_row: u32,
    /// The keys that some row of the plane sees, and those that all of them see.
    some_from: u32,
    some_to: u32,
    all_from: u32,
    all_to: u32,
}

#[cube]
impl Seen {
    /// For a cube whose rows begin at `first_row`.
    pub fn new<M: Int, E: Float>(masks: &Masks<M, E>, first_row: u32, sizes: &Sizes, #[comptime] tile: Tile) -> Self {
        let all_rows = sizes.group * sizes.tokens;
        let last_row = min(first_row + comptime!(tile.rows()), all_rows) - 1;
        let plane_row = first_row + UNIT_POS / LANES * comptime!(tile.plane_rows());
        let start = masks.start(CUBE_POS_Z);
        let end = masks.end(CUBE_POS_Z);
        let first_slot = start + sizes.by_group.div(min(plane_row, last_row));
        let last_slot = start + sizes.by_group.div(min(plane_row + comptime!(tile.plane_rows() - 1), last_row));
        Seen {
            start,
            end,
            begin: masks.first(start + sizes.by_group.div(first_row)) / tile.keys,
            stop: masks.last_end(start + sizes.by_group.div(last_row), end).div_ceil(tile.keys),
            own_row: plane_row + UNIT_POS % LANES / 4,
            some_from: masks.first(first_slot),
            some_to: select(plane_row < all_rows, masks.last_end(last_slot, end), 0u32),
            all_from: masks.first(last_slot),
            all_to: masks.last_end(first_slot, end),
        }
    }

    /// Whether some row of the plane sees a key of the step from `first_key` on. Emulated planes meet in every product.
    fn some(&self, first_key: u32, #[comptime] tile: Tile) -> bool {
        let mut some = true.runtime();
        if comptime!(!tile.emulate) {
            // Where keys have no first one, the compiler knows that nothing is below it.
            some = first_key < self.some_to && first_key + comptime!(tile.keys - 1) >= self.some_from;
        }
        some
    }

    /// Whether all rows of the plane see all keys of the step.
    fn all(&self, first_key: u32, #[comptime] tile: Tile) -> bool {
        first_key >= self.all_from && first_key + tile.keys <= self.all_to
    }
}

/// All steps: products, probabilities, and products again, in each plane by itself.
#[cube]
pub(super) fn attend_steps<F: Float, K: Numeric, V: Numeric, M: Int, E: Float, N: Size, KN: Size, VN: Size>(
    key: &Cached<K, KN>,
    value: &Cached<V, VN>,
    masks: &Masks<M, E>,
    stage: &mut SharedMemory<Vector<F, N>>,
    barriers: &Sequence<Shared<Barrier>>,
    queries: &mut Array<Vector<F, Pair>>,
    query_origin: usize,
    sums: &mut Sums,
    scratch: &mut SharedMemory<f32>,
    own: &Rows,
    seen: &Seen,
    factor: f32,
    reach: f32,
    sizes: &Sizes,
    #[comptime] tile: Tile,
) {
    let keys = comptime!(tile.keys);
    // Two steps take turns with two places.
    let mut own_place = 0u32.runtime();
    for at in seen.begin..seen.stop {
        // The last keys first: with ALiBi these have the largest scores of most rows, so that later steps move no middle.
        let step = seen.begin + (seen.stop - 1 - at);
        let first_key = step * keys;
        let origin = own_place as usize;
        if comptime!(tile.stages == 2) {
            if step > seen.begin {
                let to = (sizes.step_vectors - own_place) as usize;
                stage_step::<F, K, V, M, E, N, KN, VN>(key, value, masks, stage, to, first_key - keys, seen.end, tile);
            }
            if comptime!(tile.asynchronous) {
                barriers.index(0usize).wait_parity((at - seen.begin) % 2);
            } else {
                sync_cube();
            }
        } else {
            sync_cube();
            stage_step::<F, K, V, M, E, N, KN, VN>(key, value, masks, stage, origin, first_key, seen.end, tile);
            sync_cube();
        }

        if seen.some(first_key, tile) {
            let shifts = shifts(own, first_key, tile);
            let whole = seen.all(first_key, tile);
            let offsets = sums.offsets(whole, tile);
            let initial = initial_products(&offsets, &shifts, sizes.reach, tile);
            let mut scores = Array::<Vector<f32, Pair>>::new(comptime!(tile.score_registers()));
            products::<F, N>(stage, origin, query_origin, queries, &initial, &mut scores, scratch, tile);
            weigh::<M, E>(
                &mut scores,
                &offsets,
                whole,
                sums,
                scratch,
                masks,
                own,
                seen,
                step,
                factor,
                reach,
                sizes,
                tile,
            );
            sums.add(&scores, tile);
            let mut left = Array::<Vector<F, Pair>>::new(comptime!(tile.left_registers()));
            packed::<F>(&scores, &mut left, tile);
            let origin = origin + comptime!(tile.keys_vectors() as usize);
            accumulate::<F, N>(stage, origin, &left, sums, scratch, tile);
        }

        if comptime!(tile.stages == 2) {
            sync_cube();
            if step > seen.begin {
                signal(barriers, tile);
            }
            own_place = sizes.step_vectors - own_place;
        }
    }
}

/// Probabilities of the keys of a step, from products. `offsets` were added to the scores of each row.
#[cube]
fn weigh<M: Int, E: Float>(
    scores: &mut Array<Vector<f32, Pair>>,
    offsets: &Array<f32>,
    whole: bool,
    sums: &mut Sums,
    scratch: &mut SharedMemory<f32>,
    masks: &Masks<M, E>,
    own: &Rows,
    seen: &Seen,
    step: u32,
    factor: f32,
    reach: f32,
    sizes: &Sizes,
    #[comptime] tile: Tile,
) {
    let first_key = step * tile.keys;
    match comptime!(tile.scoring) {
        Scoring::Range => {}
        Scoring::Slopes => add_slopes(scores, own, tile),
        Scoring::Masked { interior } => {
            if comptime!(interior) && whole {
                add_all::<M, E>(scores, masks, own, first_key, sizes, tile);
            } else {
                score::<M, E>(scores, masks, seen.own_row, first_key, seen.start, seen.end, sizes, tile);
            }
        }
    }
    // Keys outside of the range of a row are hidden here; other rules hide them with the scores.
    let ranges = comptime!(!matches!(tile.scoring, Scoring::Masked { .. }));
    let comparable = if comptime!(ranges) { true.runtime() } else { whole };
    if comptime!(tile.distances) && comparable && sums.are_near(scores, step, reach, tile) {
        near_probabilities(scores, factor, tile);
        if comptime!(ranges) && !whole {
            hide_range::<M, E>(scores, 0.0, masks, seen.own_row, first_key, seen.start, seen.end, sizes, tile);
        }
    } else {
        if comptime!(ranges) && !whole {
            hide_range::<M, E>(scores, HIDDEN, masks, seen.own_row, first_key, seen.start, seen.end, sizes, tile);
        }
        probabilities(scores, offsets, sums, scratch, factor, reach, tile);
        if comptime!(tile.distances) {
            sums.saw_step();
        }
    }
}

/// The barrier's next phase ends when every unit has called this and its copies have arrived.
#[cube]
pub(super) fn signal(barriers: &Sequence<Shared<Barrier>>, #[comptime] tile: Tile) {
    if comptime!(tile.asynchronous) {
        barriers.index(0usize).commit_copy_async();
        barriers.index(0usize).arrive();
    }
}
