//! One split of the keys.

use cubecl::prelude::*;

use super::tile::{Tile, divide_sums, key_of, of_part, row_max, row_sum};
use crate::cube::cached::Cached;
use crate::cube::decode::Sizes;
use crate::cube::masks::{HIDDEN, Masks, Query};
use crate::cube::sinks::Sinks;

/// The weight of a value that a query does not see; those of others are not negative.
const UNSEEN: f32 = -1.0;

/// Banks of shared memory, of which each holds an f32.
const BANKS: u32 = 32;

/// One split of the keys of one key head, for a few of its queries.
///
/// Tile: the cube's units form groups of `lanes`; a group reads whole keys, a vector to a lane, `unroll` of them ahead.
/// Queries and results stay in registers, and the scores of a step are divided over the
/// lanes of the group ([`Shares`](super::tile::Shares)), with the running maxima and sums; the results of the groups are added in
/// shared memory only at the end. Keys and values of int8 become f32 in registers; the scale of a key multiplies its score, that of a
/// value its weight. The launch has `splits · tiles` cubes along x, the key heads along y, the batch along z. Row `r` of a key head is
/// token `r / group` of its query head `r % group`.
#[cube(launch_unchecked)]
pub(super) fn decode<F: Float, K: Numeric, V: Numeric, O: Float, M: Int, E: Float, N: Size, KN: Size, VN: Size>(
    query: &Array<Vector<F, N>>,
    key: &Cached<K, KN>,
    value: &Cached<V, VN>,
    masks: &Masks<M, E>,
    sinks: &Sinks,
    output: &mut Array<O>,
    stats: &mut Array<f32>,
    sizes: &Sizes,
    #[comptime] tile: Tile,
    #[define(F)] _elements: StorageType,
    #[define(K)] _key_type: StorageType,
    #[define(V)] _value_type: StorageType,
    #[define(O)] _output_type: StorageType,
    #[define(M)] _mask_type: StorageType,
    #[define(E)] _bias_type: StorageType,
) {
    let rows = comptime!(tile.rows as usize);
    let per_lane = comptime!(tile.per_lane as usize);
    let value_per_lane = comptime!(tile.value_per_lane as usize);
    let unroll = comptime!(tile.unroll as usize);
    let slots = comptime!(tile.units / tile.lanes);
    let vector = query[0].size();
    let width = comptime!(vector as u32);
    let value_dim = comptime!(tile.value_vectors * width);

    let split = CUBE_POS_X % sizes.splits;
    let first_row = CUBE_POS_X / sizes.splits * tile.rows;
    let kv_head = CUBE_POS_Y;
    let batch = CUBE_POS_Z;
    let lane = UNIT_POS % tile.lanes;
    let slot = UNIT_POS / tile.lanes;
    let all_rows = sizes.group * sizes.tokens;

    let mut exchange = SharedMemory::<f32>::new(comptime!(tile.units as usize));

    // This lane's part of the scores: from which row and key on.
    let shares = comptime!(tile.shares());
    let part = lane / shares.spread;
    let held_row = part * shares.held / tile.unroll;
    let held_key = part * shares.held % tile.unroll;

    let start = masks.start(batch);
    let end = masks.end(batch);
    let mut from = Array::<u32>::new(comptime!(shares.rows as usize));
    let mut to = Array::<u32>::new(comptime!(shares.rows as usize));
    let mut largest = Array::<f32>::new(comptime!(shares.rows as usize));
    let mut total = Array::<f32>::new(comptime!(shares.rows as usize));
    #[unroll]
    for r in 0..comptime!(shares.rows as usize) {
        let row = first_row + held_row + r as u32;
        let token = min(row, all_rows - 1) / sizes.group;
        from[r] = masks.first(start + token);
        to[r] = select(row < all_rows, masks.last_end(start + token, end), 0u32);
        largest[r] = HIDDEN;
        total[r] = 0.0f32;
    }

    // The queries, and the range of all.
    let mut queries = Array::<Vector<f32, N>>::new(comptime!(rows * per_lane));
    let mut result = Array::<Vector<f32, N>>::new(comptime!(rows * value_per_lane));
    let mut all_from = u32::MAX.runtime();
    let mut all_to = 0u32.runtime();
    #[unroll]
    for r in 0..rows {
        let row = first_row + r as u32;
        let token = min(row, all_rows - 1) / sizes.group;
        let head = kv_head * sizes.group + min(row, all_rows - 1) % sizes.group;
        all_from = min(all_from, masks.first(start + token));
        all_to = max(all_to, select(row < all_rows, masks.last_end(start + token, end), 0u32));
        let base = sizes.query.head(batch, head) + token * sizes.query.token;
        #[unroll]
        for p in 0..per_lane {
            let at = lane + p as u32 * tile.lanes;
            let mut part = Vector::<f32, N>::new(0.0f32);
            if at < tile.vectors {
                part = Vector::cast_from(query[(base + at) as usize]);
            }
            queries[r * per_lane + p] = part * Vector::<f32, N>::new(sizes.scale);
        }
        #[unroll]
        for p in 0..value_per_lane {
            result[r * value_per_lane + p] = Vector::<f32, N>::new(0.0f32);
        }
    }

    // The part of this split, in whole steps of the cube.
    let step = comptime!(slots * tile.unroll);
    let span = max(all_to, all_from) - all_from;
    let chunk = span.div_ceil(sizes.splits * step) * step;
    let begin = all_from + split * chunk;
    let stop = min(begin + chunk, all_to);

    let key_head = key.head(batch, kv_head);
    let value_head = value.head(batch, kv_head);
    let mut keys = Array::<Vector<K, KN>>::new(comptime!(unroll * per_lane));
    let mut values = Array::<Vector<V, VN>>::new(comptime!(unroll * value_per_lane));
    let mut key_scales = Array::<f32>::new(comptime!(shares.keys as usize));
    let mut value_scales = Array::<f32>::new(comptime!(shares.keys as usize));
    let mut kept = Array::<u32>::new(comptime!(shares.keys as usize));
    let mut scores = Array::<f32>::new(comptime!(shares.scores as usize));
    let mut weights = Array::<f32>::new(rows);

    for base in range_stepped(begin, stop, step) {
        // All loads first, so that they are in flight together. Hidden keys are not read.
        #[unroll]
        for u in 0..unroll {
            let at = base + key_of(u as u32, slot, tile);
            let mut keep = at < stop;
            if keep {
                keep = !masks.hides_key(batch, at);
            }
            if comptime!(tile.vectors == tile.value_vectors) {
                #[unroll]
                for p in 0..per_lane {
                    let part = lane + p as u32 * tile.lanes;
                    keys[u * per_lane + p] = Vector::<K, KN>::new(K::from_int(0));
                    values[u * per_lane + p] = Vector::<V, VN>::new(V::from_int(0));
                    if keep && part < tile.vectors {
                        keys[u * per_lane + p] = key.part(key_head, at, part);
                        values[u * per_lane + p] = value.part(value_head, at, part);
                    }
                }
            } else {
                #[unroll]
                for p in 0..per_lane {
                    let part = lane + p as u32 * tile.lanes;
                    keys[u * per_lane + p] = Vector::<K, KN>::new(K::from_int(0));
                    if keep && part < tile.vectors {
                        keys[u * per_lane + p] = key.part(key_head, at, part);
                    }
                }
                #[unroll]
                for p in 0..value_per_lane {
                    let part = lane + p as u32 * tile.lanes;
                    values[u * value_per_lane + p] = Vector::<V, VN>::new(V::from_int(0));
                    if keep && part < tile.value_vectors {
                        values[u * value_per_lane + p] = value.part(value_head, at, part);
                    }
                }
            }
        }
        #[unroll]
        for k in 0..comptime!(shares.keys as usize) {
            let at = base + key_of(held_key + k as u32, slot, tile);
            let mut keep = at < stop;
            if keep {
                keep = !masks.hides_key(batch, at);
            }
            kept[k] = u32::cast_from(keep);
            key_scales[k] = 0.0f32;
            value_scales[k] = 0.0f32;
            if keep {
                if comptime!(tile.int8_keys) {
                    key_scales[k] = key.scale(key_head, at);
                }
                if comptime!(tile.int8_values) {
                    value_scales[k] = value.scale(value_head, at);
                }
            }
        }

        #[unroll]
        for u in 0..unroll {
            #[unroll]
            for r in 0..rows {
                scores[r * unroll + u] = 0.0f32;
            }
            #[unroll]
            for p in 0..per_lane {
                let features = key.widen::<N>(keys[u * per_lane + p]);
                #[unroll]
                for r in 0..rows {
                    let query = queries[r * per_lane + p];
                    let mut sum = scores[r * unroll + u];
                    #[unroll]
                    for e in 0..vector {
                        sum += query[e] * features[e];
                    }
                    scores[r * unroll + u] = sum;
                }
            }
        }
        divide_sums(&mut scores, lane, &mut exchange, tile);

        // The softmax of this lane's part.
        let mut shrink = Array::<f32>::new(comptime!(shares.rows as usize));
        let mut grows = false.runtime();
        #[unroll]
        for r in 0..comptime!(shares.rows as usize) {
            let row = first_row + held_row + r as u32;
            let token = row / sizes.group;
            let head = kv_head * sizes.group + row % sizes.group;
            let query = Query { batch, head, token, slot: start + token };
            let mut new_largest = largest[r];
            #[unroll]
            for k in 0..comptime!(shares.keys as usize) {
                let at = base + key_of(held_key + k as u32, slot, tile);
                let mut raw = scores[r * comptime!(shares.keys as usize) + k];
                if comptime!(tile.int8_keys) {
                    raw *= key_scales[k];
                }
                let mut score = HIDDEN.runtime();
                if kept[k] != 0 && at >= from[r] && at < to[r] {
                    score = masks.score(raw, query, at);
                }
                scores[r * comptime!(shares.keys as usize) + k] = score;
                new_largest = max(new_largest, score);
            }
            new_largest = row_max(new_largest, tile);
            grows = grows || new_largest > largest[r];
            shrink[r] = (largest[r] - new_largest).exp();
            largest[r] = new_largest;
            let mut sum = total[r] * shrink[r];
            #[unroll]
            for k in 0..comptime!(shares.keys as usize) {
                let at = r * comptime!(shares.keys as usize) + k;
                // A NaN compares unequal, so it is not hidden and reaches the result.
                let hidden = scores[at] == HIDDEN;
                let probability = select(hidden, 0.0f32, (scores[at] - new_largest).exp());
                sum += probability;
                let mut weight = probability;
                if comptime!(tile.int8_values) {
                    // Selected again, since the scale of a key that this query does not see may be NaN.
                    weight = select(hidden, 0.0f32, probability * value_scales[k]);
                }
                if comptime!(tile.select) {
                    weight = select(hidden, UNSEEN, weight);
                }
                scores[at] = weight;
            }
            total[r] = sum;
        }

        // The results shrink where a maximum grew, which happens less and less.
        if comptime!(tile.planes) {
            grows = plane_any(grows);
        }
        if grows {
            #[unroll]
            for r in 0..rows {
                let holder = comptime!(r as u32 * tile.unroll / shares.held);
                let factor = of_part(shrink[comptime!(r % shares.rows as usize)], lane, holder, tile);
                #[unroll]
                for p in 0..value_per_lane {
                    result[r * value_per_lane + p] = result[r * value_per_lane + p] * Vector::<f32, N>::new(factor);
                }
            }
        }
        #[unroll]
        for u in 0..unroll {
            #[unroll]
            for r in 0..rows {
                let at = comptime!(r as u32 * tile.unroll + u as u32);
                let weight = scores[comptime!((at % shares.held) as usize)];
                weights[r] = of_part(weight, lane, comptime!(at / shares.held), tile);
            }
            #[unroll]
            for p in 0..value_per_lane {
                let features = value.widen::<N>(values[u * value_per_lane + p]);
                #[unroll]
                for r in 0..rows {
                    if comptime!(tile.select) {
                        // A value that this query does not see may be anything: it is left out, not multiplied by 0.
                        if weights[r] != UNSEEN {
                            result[r * value_per_lane + p] += Vector::<f32, N>::new(weights[r]) * features;
                        }
                    } else {
                        result[r * value_per_lane + p] += Vector::<f32, N>::new(weights[r]) * features;
                    }
                }
            }
        }
    }

    // The results of the groups are added.
    let mut group_largest = SharedMemory::<f32>::new(comptime!(slots as usize * rows));
    let mut group_total = SharedMemory::<f32>::new(comptime!(slots as usize * rows));
    let mut group_result = SharedMemory::<f32>::new(comptime!((slots * value_dim) as usize));
    #[unroll]
    for r in 0..comptime!(shares.rows as usize) {
        total[r] = row_sum(total[r], tile);
        if held_key == 0 && part * shares.spread == lane {
            let at = slot as usize * rows + held_row as usize + r;
            group_largest[at] = largest[r];
            group_total[at] = total[r];
        }
    }
    sync_cube();
    #[unroll]
    for r in 0..rows {
        let mut cube_largest = HIDDEN.runtime();
        for s in 0..slots {
            cube_largest = max(cube_largest, group_largest[s as usize * rows + r]);
        }
        let mut cube_total = 0.0f32.runtime();
        for s in 0..slots {
            let at = s as usize * rows + r;
            cube_total += group_total[at] * (group_largest[at] - cube_largest).exp();
        }
        let factor = (group_largest[slot as usize * rows + r] - cube_largest).exp();
        #[unroll]
        for p in 0..value_per_lane {
            let part = lane + p as u32 * tile.lanes;
            if part < tile.value_vectors {
                let scaled = result[r * value_per_lane + p] * Vector::<f32, N>::new(factor);
                #[unroll]
                for e in 0..vector {
                    group_result[place(slot * tile.value_vectors + part, e as u32, width) as usize] = scaled[e];
                }
            }
        }
        sync_cube();
        let row = first_row + r as u32;
        if row < all_rows {
            let head = kv_head * sizes.group + row % sizes.group;
            let token = row / sizes.group;
            let divisor = sinks.join(cube_total, head, cube_largest, false);
            for feature in range_stepped(UNIT_POS, value_dim, tile.units) {
                let mut sum = 0.0f32.runtime();
                for s in 0..slots {
                    let part = s * tile.value_vectors + feature / width;
                    sum += group_result[place(part, feature % width, width) as usize];
                }
                if comptime!(tile.whole) {
                    // Nothing visible gives zeros.
                    let context = select(divisor == 0.0f32, 0.0f32, sum / divisor);
                    let at = sizes.context.head(batch, head) + token * sizes.context.token + feature;
                    output[at as usize] = O::cast_from(context);
                } else {
                    let at = ((batch * CUBE_COUNT_Y + kv_head) * all_rows + row) * sizes.splits + split;
                    output[(at * value_dim + feature) as usize] = O::cast_from(sum);
                }
            }
            if UNIT_POS == 0 {
                let at = ((batch * CUBE_COUNT_Y + kv_head) * all_rows + row) * sizes.splits + split;
                stats[(at * 2) as usize] = cube_largest;
                stats[(at * 2 + 1) as usize] = cube_total;
            }
        }
        sync_cube();
    }
}

/// Where element `e` of a vector of results is in shared memory. Elements of a vector change places, differently every `BANKS` elements,
/// so that neighbouring lanes use different banks when each writes the same element of its vector.
#[cube]
fn place(vector: u32, e: u32, #[comptime] size: u32) -> u32 {
    vector * size + (e ^ (vector / comptime!(BANKS / size) % size))
}
