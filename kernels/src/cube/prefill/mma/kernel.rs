//! The kernel.

use cubecl::prelude::barrier::Barrier;
use cubecl::prelude::*;

use super::stage::{pad, stage_keys, stage_queries};
use super::tile::{Sizes, Tile};
use crate::cube::cached::Cached;
use crate::cube::fragment::{LANES, Order, Pair, as_left, exponential, load, mma};
use crate::cube::lanes::{lanes_max, lanes_sum};
use crate::cube::masks::{HIDDEN, Masks, Query};

/// How far scores may exceed the running maximum before it is updated. Probabilities are up to `exp` of this, which f16 holds.
const SLACK: f32 = 5.0;

/// A tile of queries of one key head against all keys that they see.
///
/// ```text
///                  keys of the step, shared by all planes, two steps in shared memory
///                  ├ 8 ┼ 8 ┼ ..           ┤
///    plane 0  ┬    ┌───┬───┬──────────────┐     ┌───────────────┐
///    16 rows  │    │ S │ S │ S = Q Kᵀ     │     │ O += P V      │
///    plane 1  ┼    ├───┼───┼──────────────┤     ├───────────────┤   S, P, O, maxima and sums stay in registers:
///    16 rows  │    │   │   │              │     │               │   lane l has rows l / 4 and l / 4 + 8 of its
///       ..    ┴    └───┴───┴──────────────┘     └───────────────┘   plane, and two columns of every 8
/// ```
///
/// Every plane computes its 16 rows alone; the cube only shares the tiles of keys and values, in which int8 is scaled. `P`, the
/// exponentials of `S`, is the left operand of the second product without leaving its registers. Maxima are taken over the four lanes
/// of a row at each step, sums at the end.
///
/// The launch has tiles of rows along x, those with most keys first; key heads along y, the batch along z. Row `r` of a
/// key head is token `r / group` of its query head `r % group`.
#[cube(launch_unchecked)]
pub(super) fn attend<F: Float, K: Numeric, V: Numeric, M: Int, E: Float, N: Size, C: Size>(
    query: &Array<Vector<F, N>>,
    key: &Cached<K, N>,
    value: &Cached<V, N>,
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
    let depths = comptime!(tile.padded() / 16);
    let features = comptime!(tile.head_dim / 8);
    let keys = comptime!(tile.keys);
    let batch = CUBE_POS_Z;
    let lane = UNIT_POS % LANES;
    let plane = UNIT_POS / LANES;
    let all_rows = sizes.group * sizes.tokens;
    let first_row = (sizes.tiles - 1 - CUBE_POS_X) * comptime!(tile.rows());
    let own_row = first_row + plane * 16 + lane / 4;
    let last_row = min(first_row + comptime!(tile.rows()), all_rows) - 1;

    // The keys that some row sees, and those that every row sees.
    let start = masks.start(batch);
    let end = masks.end(batch);
    let first_slot = start + first_row / sizes.group;
    let last_slot = start + last_row / sizes.group;
    let begin = masks.first(first_slot) / keys;
    let stop = masks.last_end(last_slot, end).div_ceil(keys);
    let all_from = masks.first(last_slot);
    let all_to = masks.last_end(first_slot, end);

    let mut stage = SharedMemory::<Vector<F, N>>::new_aligned(comptime!(tile.stage_vectors() as usize), 128usize);
    let mut scratch = SharedMemory::<f32>::new(comptime!(tile.scratch() as usize));
    let half = comptime!(2 * tile.keys * layout.width);

    // The first keys are copied while the queries go to registers.
    let mut barriers = Sequence::<Shared<Barrier>>::new();
    if comptime!(tile.asynchronous) {
        barriers.push(Barrier::shared(CUBE_DIM, UNIT_POS == 0));
    }
    pad::<F, N>(&mut stage, tile);
    if begin < stop {
        let first_key = begin * keys;
        if comptime!(tile.stages == 2) {
            stage_keys::<F, K, V, M, E, N>(key, value, masks, &mut stage, 0u32.runtime(), first_key, end, tile);
            signal(&barriers, tile);
        }
    }
    stage_queries::<F, N>(query, &mut stage, first_row, sizes, tile);
    sync_cube();
    let query_origin = comptime!(tile.query_origin()) + plane * comptime!(16 * layout.width);
    let mut queries = Array::<Vector<F, Pair>>::new(comptime!(tile.query_registers()));
    if comptime!(tile.resident) {
        #[unroll(unroll)]
        for depth in 0..depths {
            let left = load::<F, N>(&stage, query_origin, depth * 2 * layout.chunk, Order::Rows, false, layout);
            #[unroll]
            for i in 0..4usize {
                queries[depth as usize * 4 + i] = left[i];
            }
        }
        sync_cube();
    }

    let mut largest = Array::<f32>::new(2usize);
    let mut total = Array::<f32>::new(2usize);
    #[unroll(unroll)]
    for i in 0..2usize {
        largest[i] = HIDDEN;
        total[i] = 0.0f32;
    }
    let mut result = Array::<Vector<f32, Pair>>::new(comptime!(tile.result_registers()));
    #[unroll(unroll)]
    for at in 0..comptime!(tile.result_registers()) {
        result[at] = Vector::<f32, Pair>::new(0.0f32);
    }
    // Scores of plain problems stay unscaled until the exponential.
    let mut factor = 1.0f32.runtime();
    if comptime!(tile.plain) {
        factor = sizes.scale;
    }

    for step in begin..stop {
        let first_key = step * keys;
        let mut origin = 0u32.runtime();
        if comptime!(tile.stages == 2) {
            let odd = (step - begin) % 2;
            origin = odd * half;
            if step + 1 < stop {
                let next = first_key + keys;
                stage_keys::<F, K, V, M, E, N>(key, value, masks, &mut stage, half - origin, next, end, tile);
            }
            if comptime!(tile.asynchronous) {
                barriers.index(0usize).wait_parity(odd);
            } else {
                sync_cube();
            }
        } else {
            sync_cube();
            stage_keys::<F, K, V, M, E, N>(key, value, masks, &mut stage, origin, first_key, end, tile);
            sync_cube();
        }

        // S = Q Kᵀ
        let mut scores = Array::<Vector<f32, Pair>>::new(comptime!(keys as usize / 4));
        #[unroll(unroll)]
        for at in 0..comptime!(keys as usize / 4) {
            scores[at] = Vector::<f32, Pair>::new(0.0f32);
        }
        #[unroll(unroll)]
        for depth in 0..depths {
            let offset = depth * 2 * layout.chunk;
            if comptime!(!tile.resident) {
                let left = load::<F, N>(&stage, query_origin, offset, Order::Rows, false, layout);
                #[unroll]
                for i in 0..4usize {
                    queries[i] = left[i];
                }
            }
            let left = if comptime!(tile.resident) { depth * 4 } else { 0u32.runtime() };
            #[unroll(unroll)]
            for block in 0..comptime!(keys / 16) {
                let offset = offset + block * 16 * layout.width;
                let right = load::<F, N>(&stage, origin, offset, Order::Features, false, layout);
                #[unroll(unroll)]
                for half in 0..2u32 {
                    let to = block * 4 + half * 2;
                    mma::<F>(&queries, left, &right, half * 2, &mut scores, to, &mut scratch, emulate);
                }
            }
        }

        let whole = first_key >= all_from && first_key + keys <= all_to;
        if comptime!(tile.plain) {
            if !whole {
                hide_range::<M, E>(&mut scores, masks, own_row, first_key, start, end, sizes, tile);
            }
        } else {
            score::<M, E>(&mut scores, masks, own_row, first_key, start, end, sizes, tile);
        }

        // P = exp(S - maximum); earlier sums are rescaled to the new maximum.
        #[unroll(unroll)]
        for i in 0..2usize {
            let mut new_largest = largest[i];
            #[unroll(unroll)]
            for block in 0..comptime!(keys as usize / 8) {
                let pair = scores[block * 2 + i];
                new_largest = max(new_largest, max(pair[0], pair[1]));
            }
            new_largest = lanes_max(new_largest, &mut scratch, 4u32, comptime!(!tile.emulate));
            // Earlier sums are rescaled only if a maximum grows by much; smaller differences cancel at the end.
            let mut grows = new_largest * factor > largest[i] * factor + SLACK;
            if comptime!(!tile.emulate) {
                grows = plane_any(grows);
            }
            if grows {
                let shrink = exponential((largest[i] - new_largest) * factor, emulate);
                largest[i] = new_largest;
                total[i] = total[i] * shrink;
                #[unroll(unroll)]
                for block in 0..comptime!(features as usize) {
                    result[block * 2 + i] = result[block * 2 + i] * Vector::<f32, Pair>::new(shrink);
                }
            }
            // Where nothing was visible yet, hidden scores must not come out as exp(0).
            let reference = select(largest[i] == HIDDEN, 0.0f32, largest[i] * factor);
            let mut sum = total[i];
            #[unroll(unroll)]
            for block in 0..comptime!(keys as usize / 8) {
                let mut pair = scores[block * 2 + i];
                pair[0] = exponential(fma(pair[0], factor, -reference), emulate);
                pair[1] = exponential(fma(pair[1], factor, -reference), emulate);
                sum += pair[0] + pair[1];
                scores[block * 2 + i] = pair;
            }
            total[i] = sum;
        }

        // O += P V
        #[unroll(unroll)]
        for depth in 0..comptime!(keys / 16) {
            let left = as_left::<F>(&scores, depth * 4);
            #[unroll(unroll)]
            for block in 0..depths {
                let offset = (depth * 16 + keys) * layout.width + block * 2 * layout.chunk;
                let right = load::<F, N>(&stage, origin, offset, Order::Rows, true, layout);
                #[unroll(unroll)]
                for half in 0..2u32 {
                    // The last columns may be nothing but padding.
                    if block * 2 + half < features {
                        let to = block * 4 + half * 2;
                        mma::<F>(&left, 0u32, &right, half * 2, &mut result, to, &mut scratch, emulate);
                    }
                }
            }
        }

        if comptime!(tile.stages == 2) {
            sync_cube();
            if step + 1 < stop {
                signal(&barriers, tile);
            }
        }
    }

    #[unroll(unroll)]
    for i in 0..2usize {
        let sum = lanes_sum(total[i], &mut scratch, 4u32, comptime!(!tile.emulate));
        // Nothing visible gives zeros.
        let inverse = select(sum == 0.0f32, 0.0f32, 1.0f32 / sum);
        let row = own_row + i as u32 * 8;
        if row < all_rows {
            let head = CUBE_POS_Y * sizes.group + row % sizes.group;
            let token = row / sizes.group;
            let base = sizes.context.head(batch, head) + token * sizes.context.token;
            #[unroll(unroll)]
            for block in 0..features {
                let pair = result[block as usize * 2 + i] * Vector::<f32, Pair>::new(inverse);
                let feature = lane % 4 * 2 + block * 8;
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

/// Hides the keys outside the range of each row.
#[cube]
fn hide_range<M: Int, E: Float>(
    scores: &mut Array<Vector<f32, Pair>>,
    masks: &Masks<M, E>,
    own_row: u32,
    first_key: u32,
    start: u32,
    end: u32,
    sizes: &Sizes,
    #[comptime] tile: Tile,
) {
    #[unroll(!tile.emulate)]
    for i in 0..2usize {
        let slot = start + (own_row + i as u32 * 8) / sizes.group;
        let from = masks.first(slot);
        let to = masks.last_end(slot, end);
        #[unroll(!tile.emulate)]
        for block in 0..comptime!(tile.keys / 8) {
            let mut pair = scores[block as usize * 2 + i];
            #[unroll]
            for e in 0..2usize {
                let at = first_key + UNIT_POS % 4 * 2 + block * 8 + comptime!(e as u32);
                pair[e] = select(at >= from && at < to, pair[e], HIDDEN);
            }
            scores[block as usize * 2 + i] = pair;
        }
    }
}

/// Scales, adds and hides.
#[cube]
fn score<M: Int, E: Float>(
    scores: &mut Array<Vector<f32, Pair>>,
    masks: &Masks<M, E>,
    own_row: u32,
    first_key: u32,
    start: u32,
    end: u32,
    sizes: &Sizes,
    #[comptime] tile: Tile,
) {
    #[unroll(!tile.emulate)]
    for block in 0..comptime!(tile.keys / 8) {
        #[unroll]
        for e in 0..2usize {
            let at = first_key + UNIT_POS % 4 * 2 + block * 8 + comptime!(e as u32);
            let mut seen = at < end;
            if seen {
                seen = !masks.hides_key(CUBE_POS_Z, at);
            }
            #[unroll(!tile.emulate)]
            for i in 0..2usize {
                let row = own_row + i as u32 * 8;
                let (token, head) = (row / sizes.group, CUBE_POS_Y * sizes.group + row % sizes.group);
                let slot = start + token;
                let mut pair = scores[block as usize * 2 + i];
                let raw = pair[e] * sizes.scale;
                let mut score = HIDDEN.runtime();
                if seen && token < sizes.tokens && at >= masks.first(slot) && at < masks.last_end(slot, end) {
                    score = masks.score(raw, Query { batch: CUBE_POS_Z, head, token, slot }, at);
                }
                pair[e] = score;
                scores[block as usize * 2 + i] = pair;
            }
        }
    }
}
