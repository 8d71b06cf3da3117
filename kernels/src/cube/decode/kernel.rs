//! One split of the keys, and the sum of the splits.

use cubecl::prelude::*;

use crate::cube::cached::Cached;
use crate::cube::lanes::{lanes_sum, vector_sum};
use crate::cube::masks::{HIDDEN, Masks, Query};
use crate::cube::tensors::HeadStrides;

/// What is compiled into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    pub units: u32,
    /// Units that share one key.
    pub lanes: u32,
    /// Vectors of a key that a lane holds.
    pub per_lane: u32,
    /// Vectors of a key.
    pub vectors: u32,
    /// Queries of a cube, all of one key head.
    pub rows: u32,
    /// Keys that a group of lanes has in flight.
    pub unroll: u32,
    /// Whether the result is whole, or one split of several.
    pub whole: bool,
    /// Whether the queries may see different keys.
    pub select: bool,
    pub int8_keys: bool,
    pub int8_values: bool,
    pub planes: bool,
}

/// Scalar sizes. Strides count vectors, those of the context elements.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Sizes {
    pub tokens: u32,
    pub group: u32,
    pub splits: u32,
    pub scale: f32,
    pub query: HeadStrides,
    pub context: HeadStrides,
}

/// One split of the keys of one key head, for a few of its queries.
///
/// Tile: the cube's units form groups of `lanes`; a group reads whole keys, a vector to a lane, `unroll` of them ahead.
/// Neighbouring groups read neighbouring keys. Queries, running maxima, sums and results stay in registers; the results of the
/// groups are added in shared memory only at the end. Keys and values of int8 become f32 in registers; the scale of a key
/// multiplies its score, that of a value its weight. The launch has `splits · tiles` cubes along x, the key heads along y, the batch
/// along z. Row `r` of a key head is token `r / group` of its query head `r % group`.
#[cube(launch_unchecked)]
pub(super) fn decode<F: Float, K: Numeric, V: Numeric, O: Float, M: Int, E: Float, N: Size>(
    query: &Array<Vector<F, N>>,
    key: &Cached<K, N>,
    value: &Cached<V, N>,
    masks: &Masks<M, E>,
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
    let unroll = comptime!(tile.unroll as usize);
    let slots = comptime!(tile.units / tile.lanes);
    let vector = query[0].size();
    let head_dim = comptime!(tile.vectors * vector as u32);

    let split = CUBE_POS_X % sizes.splits;
    let first_row = CUBE_POS_X / sizes.splits * tile.rows;
    let kv_head = CUBE_POS_Y;
    let batch = CUBE_POS_Z;
    let lane = UNIT_POS % tile.lanes;
    let slot = UNIT_POS / tile.lanes;
    let all_rows = sizes.group * sizes.tokens;

    let mut exchange = SharedMemory::<f32>::new(comptime!(tile.units as usize));

    // The queries, their ranges, and the range of all.
    let start = masks.start(batch);
    let end = masks.end(batch);
    let mut queries = Array::<Vector<f32, N>>::new(comptime!(rows * per_lane));
    let mut result = Array::<Vector<f32, N>>::new(comptime!(rows * per_lane));
    let mut largest = Array::<f32>::new(rows);
    let mut total = Array::<f32>::new(rows);
    let mut from = Array::<u32>::new(rows);
    let mut to = Array::<u32>::new(rows);
    let mut all_from = u32::MAX.runtime();
    let mut all_to = 0u32.runtime();
    #[unroll]
    for r in 0..rows {
        let row = first_row + r as u32;
        let token = min(row, all_rows - 1) / sizes.group;
        let head = kv_head * sizes.group + min(row, all_rows - 1) % sizes.group;
        from[r] = masks.first(start + token);
        to[r] = select(row < all_rows, masks.last_end(start + token, end), 0u32);
        all_from = min(all_from, from[r]);
        all_to = max(all_to, to[r]);
        largest[r] = HIDDEN;
        total[r] = 0.0f32;
        let base = sizes.query.head(batch, head) + token * sizes.query.token;
        #[unroll]
        for p in 0..per_lane {
            let at = lane + p as u32 * tile.lanes;
            let mut part = Vector::<f32, N>::new(0.0f32);
            if at < tile.vectors {
                part = Vector::cast_from(query[(base + at) as usize]);
            }
            queries[r * per_lane + p] = part * Vector::<f32, N>::new(sizes.scale);
            result[r * per_lane + p] = Vector::<f32, N>::new(0.0f32);
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
    let mut keys = Array::<Vector<K, N>>::new(comptime!(unroll * per_lane));
    let mut values = Array::<Vector<V, N>>::new(comptime!(unroll * per_lane));
    let mut key_scales = Array::<f32>::new(unroll);
    let mut value_scales = Array::<f32>::new(unroll);
    let mut scores = Array::<f32>::new(comptime!(unroll * rows));
    let mut kept = Array::<u32>::new(unroll);

    for base in range_stepped(begin, stop, step) {
        // All loads first, so that they are in flight together. Hidden keys are not read.
        #[unroll]
        for u in 0..unroll {
            let at = base + u as u32 * slots + slot;
            let mut keep = at < stop;
            if keep {
                keep = !masks.hides_key(batch, at);
            }
            kept[u] = u32::cast_from(keep);
            key_scales[u] = 0.0f32;
            value_scales[u] = 0.0f32;
            if keep {
                if comptime!(tile.int8_keys) {
                    key_scales[u] = key.scale(key_head, at);
                }
                if comptime!(tile.int8_values) {
                    value_scales[u] = value.scale(value_head, at);
                }
            }
            #[unroll]
            for p in 0..per_lane {
                let part = lane + p as u32 * tile.lanes;
                keys[u * per_lane + p] = Vector::<K, N>::new(K::from_int(0));
                values[u * per_lane + p] = Vector::<V, N>::new(V::from_int(0));
                if keep && part < tile.vectors {
                    keys[u * per_lane + p] = key.part(key_head, at, part);
                    values[u * per_lane + p] = value.part(value_head, at, part);
                }
            }
        }
        #[unroll]
        for u in 0..unroll {
            let at = base + u as u32 * slots + slot;
            #[unroll]
            for r in 0..rows {
                let mut product = Vector::<f32, N>::new(0.0f32);
                #[unroll]
                for p in 0..per_lane {
                    product += queries[r * per_lane + p] * Vector::<f32, N>::cast_from(keys[u * per_lane + p]);
                }
                let mut raw = lanes_sum(vector_sum::<N>(product), &mut exchange, tile.lanes, tile.planes);
                if comptime!(tile.int8_keys) {
                    raw *= key_scales[u];
                }
                let mut score = HIDDEN.runtime();
                if kept[u] != 0 && at >= from[r] && at < to[r] {
                    let row = first_row + r as u32;
                    let token = row / sizes.group;
                    let head = kv_head * sizes.group + row % sizes.group;
                    score = masks.score(raw, Query { batch, head, token, slot: start + token }, at);
                }
                scores[u * rows + r] = score;
            }
        }
        #[unroll]
        for r in 0..rows {
            let mut new_largest = largest[r];
            #[unroll]
            for u in 0..unroll {
                new_largest = max(new_largest, scores[u * rows + r]);
            }
            let shrink = (largest[r] - new_largest).exp();
            largest[r] = new_largest;
            let mut sum = total[r] * shrink;
            #[unroll]
            for p in 0..per_lane {
                result[r * per_lane + p] = result[r * per_lane + p] * Vector::<f32, N>::new(shrink);
            }
            #[unroll]
            for u in 0..unroll {
                let score = scores[u * rows + r];
                // A NaN compares unequal, so it is not hidden and reaches the result.
                let probability = select(score == HIDDEN, 0.0f32, (score - new_largest).exp());
                sum += probability;
                let mut weight = probability;
                if comptime!(tile.int8_values) {
                    // Selected again, since the scale of a key that this query does not see may be NaN.
                    weight = select(score == HIDDEN, 0.0f32, probability * value_scales[u]);
                }
                if comptime!(tile.select) {
                    // A value that this query does not see may be anything: it is left out, not multiplied by 0.
                    if score != HIDDEN {
                        #[unroll]
                        for p in 0..per_lane {
                            result[r * per_lane + p] +=
                                Vector::<f32, N>::new(weight) * Vector::<f32, N>::cast_from(values[u * per_lane + p]);
                        }
                    }
                } else {
                    #[unroll]
                    for p in 0..per_lane {
                        result[r * per_lane + p] +=
                            Vector::<f32, N>::new(weight) * Vector::<f32, N>::cast_from(values[u * per_lane + p]);
                    }
                }
            }
            total[r] = sum;
        }
    }

    // The results of the groups are added.
    let mut group_largest = SharedMemory::<f32>::new(comptime!(slots as usize * rows));
    let mut group_total = SharedMemory::<f32>::new(comptime!(slots as usize * rows));
    let mut group_result = SharedMemory::<f32>::new(comptime!((slots * head_dim) as usize));
    if lane == 0 {
        #[unroll]
        for r in 0..rows {
            group_largest[slot as usize * rows + r] = largest[r];
            group_total[slot as usize * rows + r] = total[r];
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
        let factor = (largest[r] - cube_largest).exp();
        #[unroll]
        for p in 0..per_lane {
            let part = lane + p as u32 * tile.lanes;
            if part < tile.vectors {
                let scaled = result[r * per_lane + p] * Vector::<f32, N>::new(factor);
                #[unroll]
                for e in 0..vector {
                    group_result[(slot * head_dim + part * vector as u32) as usize + e] = scaled[e];
                }
            }
        }
        sync_cube();
        let row = first_row + r as u32;
        if row < all_rows {
            let head = kv_head * sizes.group + row % sizes.group;
            let token = row / sizes.group;
            for feature in range_stepped(UNIT_POS, head_dim, tile.units) {
                let mut sum = 0.0f32.runtime();
                for s in 0..slots {
                    sum += group_result[(s * head_dim + feature) as usize];
                }
                if comptime!(tile.whole) {
                    // Nothing visible gives zeros.
                    let context = select(cube_total == 0.0f32, 0.0f32, sum / cube_total);
                    let at = sizes.context.head(batch, head) + token * sizes.context.token + feature;
                    output[at as usize] = O::cast_from(context);
                } else {
                    let at = ((batch * CUBE_COUNT_Y + kv_head) * all_rows + row) * sizes.splits + split;
                    output[(at * head_dim + feature) as usize] = O::cast_from(sum);
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

/// Scalar sizes of [`combine`].
#[derive(CubeType, CubeLaunch)]
pub(super) struct CombineSizes {
    pub rows: u32,
    pub kv_heads: u32,
    pub group: u32,
    pub tokens: u32,
    pub splits: u32,
    pub context: HeadStrides,
}

/// The sum of the splits of each row, weighted by their maxima. A unit sums one feature of one row.
#[cube(launch_unchecked)]
pub(super) fn combine<F: Float>(
    partial: &Array<f32>,
    stats: &Array<f32>,
    context: &mut Array<F>,
    sizes: &CombineSizes,
    #[comptime] head_dim: u32,
    #[define(F)] _elements: StorageType,
) {
    let width = comptime!(head_dim.next_power_of_two());
    let row = CUBE_POS_X * (CUBE_DIM / width) + UNIT_POS / width;
    let feature = UNIT_POS % width;
    if row < sizes.rows && feature < head_dim {
        let first = row * sizes.splits;
        let mut largest = HIDDEN.runtime();
        for split in 0..sizes.splits {
            largest = max(largest, stats[((first + split) * 2) as usize]);
        }
        let mut total = 0.0f32.runtime();
        let mut sum = 0.0f32.runtime();
        for split in 0..sizes.splits {
            let at = first + split;
            let weight = (stats[(at * 2) as usize] - largest).exp();
            total += weight * stats[(at * 2 + 1) as usize];
            sum += weight * partial[(at * head_dim + feature) as usize];
        }
        let group_rows = sizes.group * sizes.tokens;
        let batch = row / (sizes.kv_heads * group_rows);
        let kv_head = row / group_rows % sizes.kv_heads;
        let head = kv_head * sizes.group + row % group_rows % sizes.group;
        let token = row % group_rows / sizes.group;
        let at = sizes.context.head(batch, head) + token * sizes.context.token + feature;
        context[at as usize] = F::cast_from(select(total == 0.0f32, 0.0f32, sum / total));
    }
}
