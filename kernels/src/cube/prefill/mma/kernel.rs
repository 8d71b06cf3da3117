//! The kernel.

use cubecl::prelude::barrier::Barrier;
use cubecl::prelude::*;

use super::scores::{add_all, add_slopes, hide_range, query_of, rows, score};
use super::stage::{stage_keys, stage_queries};
use super::step::{accumulate, load_queries, probabilities, products};
use super::tile::{Scoring, Sizes, Tile, register, tile_and_head};
use crate::cube::cached::Cached;
use crate::cube::exponential::exponent;
use crate::cube::fragment::{LANES, Pair};
use crate::cube::lanes::lanes_sum;
use crate::cube::masks::{HIDDEN, Masks};

/// A tile of queries of one key head against all keys that they see.
///
/// ```text
///                  keys of the step, shared by all planes, two steps in shared memory
///                  ├ 8 ┼ 8 ┼ ..           ┤
///    plane 0  ┬    ┌───┬───┬──────────────┐     ┌───────────────┐
///    16 rows  │    │ S │ S │ S = Q Kᵀ     │     │ O += P V      │
///    16 more  │    │ S │ S │              │     │               │
///    plane 1  ┼    ├───┼───┼──────────────┤     ├───────────────┤   S, P, O, maxima and sums stay in registers:
///    16 rows  │    │   │   │              │     │               │   lane l has rows l / 4 and l / 4 + 8 of every 16,
///       ..    ┴    └───┴───┴──────────────┘     └───────────────┘   and two columns of every 8
/// ```
///
/// Every plane computes its 16 or 32 rows alone; the cube only shares the tiles of keys and values, in which int8 is scaled. `P`, the
/// exponentials of `S`, is the left operand of the second product without leaving its registers. Maxima are taken over the four lanes
/// of a row at each step, sums at the end. With 32 rows, each fragment of keys and values that is read serves two products.
///
/// The launch has as many cubes along x as tiles of rows, as many along y as key heads, and the batch along z. Row `r` of a
/// key head is token `r / group` of its query head `r % group`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn attend<F: Float, K: Numeric, V: Numeric, M: Int, E: Float, N: Size, KN: Size, VN: Size, C: Size>(
    query: &Array<Vector<F, N>>,
    key: &Cached<K, KN>,
    value: &Cached<V, VN>,
    masks: &Masks<M, E>,
    context: &mut Array<Vector<F, C>>,
    sizes: &Sizes,
    #[comptime] tile: Tile,
    #[define(F)] _elements: StorageType,
    #[define(K)] _key_type: StorageType,
    #[define(V)] _value_type: StorageType,
    #[define(M)] _mask: StorageType,
    #[define(E)] _bias: StorageType,
) {
    let layout = comptime!(tile.layout());
    let emulate = comptime!(tile.emulate);
    // Registers can only be indexed by constants; emulated ones need not, and a rolled kernel compiles in time.
    let unroll = comptime!(!tile.emulate);
    let keys = comptime!(tile.keys);
    let batch = CUBE_POS_Z;
    let lane = UNIT_POS % LANES;
    let plane = UNIT_POS / LANES;
    let all_rows = sizes.group * sizes.tokens;
    let (tile_at, _) = tile_and_head(tile);
    let first_row = (sizes.tiles - 1 - tile_at) * comptime!(tile.rows());
    let last_row = min(first_row + comptime!(tile.rows()), all_rows) - 1;
    let plane_row = first_row + plane * comptime!(tile.plane_rows());
    let own_row = plane_row + lane / 4;

    // The keys that some row of the cube sees, those that some row of the plane sees, and those that all of them see.
    let start = masks.start(batch);
    let end = masks.end(batch);
    let begin = masks.first(start + first_row / sizes.group) / keys;
    let stop = masks.last_end(start + last_row / sizes.group, end).div_ceil(keys);
    let first_slot = start + min(plane_row, last_row) / sizes.group;
    let last_slot = start + min(plane_row + comptime!(tile.plane_rows() - 1), last_row) / sizes.group;
    let some_from = masks.first(first_slot);
    let some_to = select(plane_row < all_rows, masks.last_end(last_slot, end), 0u32);
    let all_from = masks.first(last_slot);
    let all_to = masks.last_end(first_slot, end);

    let mut stage = SharedMemory::<Vector<F, N>>::new_aligned(comptime!(tile.stage_vectors() as usize), 128usize);
    let mut scratch = SharedMemory::<f32>::new(comptime!(tile.scratch() as usize));

    let mut barriers = Sequence::<Shared<Barrier>>::new();
    if comptime!(tile.asynchronous) {
        barriers.push(Barrier::shared(CUBE_DIM, UNIT_POS == 0));
    }
    let query_origin = (comptime!(tile.query_origin()) + plane * comptime!(tile.plane_rows() * layout.width)) as usize;
    let mut queries = Array::<Vector<F, Pair>>::new(comptime!(tile.query_registers()));
    if begin < stop {
        stage_queries::<F, N>(query, &mut stage, first_row, sizes, tile);
        if comptime!(tile.stages == 2) {
            let (to, first_key) = (0u32.runtime() as usize, begin * keys);
            stage_keys::<F, K, V, M, E, N, KN, VN>(key, value, masks, &mut stage, to, first_key, end, false, tile);
            signal(&barriers, tile);
        }
        if comptime!(tile.resident) {
            // The queries make room for keys.
            if comptime!(tile.asynchronous) {
                barriers.index(0usize).wait_parity(0u32);
            } else {
                sync_cube();
            }
            #[unroll(unroll)]
            for depth in 0..comptime!(tile.head_dim / 16) {
                load_queries::<F, N>(&stage, query_origin, depth, depth, &mut queries, true, tile);
            }
            if comptime!(tile.odd()) {
                let depth = comptime!(tile.head_dim / 16).runtime();
                load_queries::<F, N>(&stage, query_origin, depth, depth, &mut queries, false, tile);
            }
            sync_cube();
        }
    }

    let mut largest = Array::<f32>::new(comptime!(tile.unit_rows()));
    let mut total = Array::<f32>::new(comptime!(tile.unit_rows()));
    #[unroll(unroll)]
    for r in 0..comptime!(tile.unit_rows()) {
        largest[r] = HIDDEN;
        total[r] = 0.0f32;
    }
    let mut result = Array::<Vector<f32, Pair>>::new(comptime!(tile.result_registers()));
    #[unroll(unroll)]
    for at in 0..comptime!(tile.result_registers()) {
        result[at] = Vector::<f32, Pair>::new(0.0f32);
    }
    let own = rows::<M, E>(masks, own_row, start, sizes, tile);
    // Scores that are nothing but products, or products and ALiBi, stay unscaled until the exponential.
    let mut factor = comptime!(exponent(!tile.emulate)).runtime();
    if comptime!(!matches!(tile.scoring, Scoring::Masked { .. })) {
        factor *= sizes.scale;
    }

    for step in begin..stop {
        let first_key = step * keys;
        let mut origin = 0u32.runtime() as usize;
        if comptime!(tile.stages == 2) {
            let odd = (step - begin) % 2;
            origin = (odd * sizes.step_vectors) as usize;
            if step + 1 < stop {
                let next = first_key + keys;
                let to = ((1 - odd) * sizes.step_vectors) as usize;
                if comptime!(tile.asynchronous && !matches!(tile.scoring, Scoring::Masked { interior: false })) {
                    if next + keys <= end {
                        stage_keys::<F, K, V, M, E, N, KN, VN>(key, value, masks, &mut stage, to, next, end, true, tile);
                    } else {
                        stage_keys::<F, K, V, M, E, N, KN, VN>(key, value, masks, &mut stage, to, next, end, false, tile);
                    }
                } else {
                    stage_keys::<F, K, V, M, E, N, KN, VN>(key, value, masks, &mut stage, to, next, end, false, tile);
                }
            }
            if comptime!(tile.asynchronous) {
                barriers.index(0usize).wait_parity(odd);
            } else {
                sync_cube();
            }
        } else {
            sync_cube();
            stage_keys::<F, K, V, M, E, N, KN, VN>(key, value, masks, &mut stage, origin, first_key, end, false, tile);
            sync_cube();
        }

        // Emulated planes meet in every product.
        let mut needed = true.runtime();
        if comptime!(!emulate) {
            needed = first_key < some_to && first_key + keys > some_from;
        }
        if needed {
            let mut scores = Array::<Vector<f32, Pair>>::new(comptime!(tile.score_registers()));
            products::<F, N>(&stage, origin, query_origin, &mut queries, &mut scores, &mut scratch, tile);

            let mut shifts = Array::<f32>::new(comptime!(tile.unit_rows()));
            let whole = first_key >= all_from && first_key + keys <= all_to;
            if comptime!(matches!(tile.scoring, Scoring::Masked { .. })) {
                if comptime!(matches!(tile.scoring, Scoring::Masked { interior: true })) {
                    if whole {
                        add_all::<M, E>(&mut scores, masks, &own, first_key, sizes, tile);
                    } else {
                        score::<M, E>(&mut scores, masks, own_row, first_key, start, end, sizes, tile);
                    }
                } else {
                    score::<M, E>(&mut scores, masks, own_row, first_key, start, end, sizes, tile);
                }
            } else {
                if comptime!(tile.scoring == Scoring::Slopes) {
                    add_slopes(&mut scores, &mut shifts, &own, first_key, tile);
                }
                if !whole {
                    hide_range::<M, E>(&mut scores, masks, own_row, first_key, start, end, sizes, tile);
                }
            }

            probabilities(&mut scores, &shifts, &mut result, &mut largest, &mut total, &mut scratch, factor, tile);
            accumulate::<F, N>(&stage, origin, &scores, &mut result, &mut scratch, tile);
        }

        if comptime!(tile.stages == 2) {
            sync_cube();
            if step + 1 < stop {
                signal(&barriers, tile);
            }
        }
    }

    #[unroll(unroll)]
    for r in 0..comptime!(tile.unit_rows()) {
        let sum = lanes_sum(total[r], &mut scratch, 4u32, comptime!(!tile.emulate));
        // Nothing visible gives zeros.
        let inverse = select(sum == 0.0f32, 0.0f32, 1.0f32 / sum);
        let row = own_row + r as u32 * 8;
        if row < all_rows {
            let query = query_of(row, start, sizes, tile);
            let base = sizes.context.head(batch, query.head) + query.token * sizes.context.token;
            #[unroll(unroll)]
            for column in 0..comptime!(tile.columns()) {
                let at = register(r, column as usize, comptime!(tile.columns() as usize));
                let pair = result[at] * Vector::<f32, Pair>::new(inverse);
                let feature = lane % 4 * 2 + column * 8;
                if comptime!(tile.pairs) {
                    context[(base + feature / 2) as usize] = Vector::cast_from(pair);
                } else {
                    context[(base + feature) as usize] = Vector::cast_from(pair[0]);
                    context[(base + feature + 1) as usize] = Vector::cast_from(pair[1]);
                }
            }
        }
    }
}

/// The barrier's next phase ends when every unit has called this and its copies have arrived.
#[cube]
fn signal(barriers: &Sequence<Shared<Barrier>>, #[comptime] tile: Tile) {
    if comptime!(tile.asynchronous) {
        barriers.index(0usize).commit_copy_async();
        barriers.index(0usize).arrive();
    }
}
