//! The kernel.

use cubecl::prelude::*;

use super::loads::{eighth, kept, load_keys, load_values, queries, sharer, value_fragments};
use super::tile::{KEYS, RESULT_STRIDE, ROWS, SHARERS, Tile, VALUE_CHUNK};
use super::weights::{HALVES, OWN, Scales, Sums, over_keys, turned, weigh};
use crate::cube::cached::Cached;
use crate::cube::decode::Sizes;
use crate::cube::direct::{Quad, left};
use crate::cube::fragment::{LANES, Pair, mma};
use crate::cube::masks::{HIDDEN, Masks};
use crate::cube::sinks::Sinks;

/// What bytes are put into; see [`raised`](crate::cube::direct::raised).
#[derive(CubeType, CubeLaunch)]
pub(super) struct Raised {
    pub keys: u32,
    pub values: u32,
}

/// One split of the keys of one key head, for up to 8 of its queries.
///
/// ```text
///               queries                                        queries
///               ├ 8  ┤                      keys               ├ 8  ┤
///  keys    ┬   ┌─────┐           features   ├ 16 ┤             ┌─────┐
///  16      │   │  S  │  S = K Qᵀ   ┬        ┌────┐             │  P  │
///   ..     ┴   └─────┘             16       │ Vᵀ │  Oᵀ += Vᵀ P └─────┘
///                                  ┴        └────┘
/// ```
///
/// Keys and values are left operands, and go from memory to registers: four lanes read 64 bytes of a key, eight lanes 64 features of a
/// value. A plane takes 16 keys in a step, and has sums of its own; the planes are added through shared memory at the end. A lane has
/// the scores of two queries with two keys, so that no part of the softmax is computed twice. Their weights then change lanes, since the
/// second product needs those of two neighbouring keys in one register.
///
/// The launch has `splits · tiles` cubes along x, the key heads along y, the batch along z. Row `r` of a key head is token `r / group` of its
/// query head `r % group`.
#[cube(launch_unchecked)]
pub(super) fn decode_mma<F: Float, P: Float, O: Float, M: Int, E: Float, N: Size>(
    query: &Array<Vector<u32, Quad>>,
    key: &Cached<u32, Quad>,
    value: &Cached<u32, N>,
    masks: &Masks<M, E>,
    sinks: &Sinks,
    output: &mut Array<O>,
    stats: &mut Array<f32>,
    sizes: &Sizes,
    raised: &Raised,
    #[comptime] tile: Tile,
    #[define(F)] _elements: StorageType,
    #[define(P)] _weights: StorageType,
    #[define(O)] _output_type: StorageType,
    #[define(M)] _mask_type: StorageType,
    #[define(E)] _bias_type: StorageType,
) {
    // Registers can only be indexed by constants; emulated ones need not, and a rolled kernel compiles in time.
    let unroll = comptime!(!tile.emulate);
    let key_chunks = comptime!(tile.key_chunks());
    let value_chunks = comptime!(tile.value_chunks());
    let plane = UNIT_POS / LANES;
    let split = CUBE_POS_X % sizes.splits;
    let first_row = CUBE_POS_X / sizes.splits * ROWS;
    let start = masks.start(CUBE_POS_Z);
    let end = masks.end(CUBE_POS_Z);

    let mut scratch = SharedMemory::<f32>::new(comptime!(tile.scratch() as usize));
    let mut exchange = SharedMemory::<f32>::new(comptime!(tile.exchanged() as usize));
    let mut moved = SharedMemory::<u32>::new(comptime!(tile.exchanged() as usize));

    // The part of this split, in whole steps of the cube.
    let last_row = min(first_row + ROWS, sizes.group * sizes.tokens) - 1;
    let all_from = masks.first(start + first_row / sizes.group);
    let all_to = masks.last_end(start + last_row / sizes.group, end);
    let step = comptime!(tile.planes * KEYS);
    let span = max(all_to, all_from) - all_from;
    let chunk = span.div_ceil(sizes.splits * step) * step;
    let begin = all_from + split * chunk;
    let stop = min(begin + chunk, all_to);

    let queries = queries::<F>(query, first_row, sizes, tile);
    let mut sums = Sums::new::<M, E>(masks, first_row, start, end, stop, sizes, tile);
    let key_head = key.head(CUBE_POS_Z, CUBE_POS_Y);
    let value_head = value.head(CUBE_POS_Z, CUBE_POS_Y);
    let mut keys = Array::<Vector<u32, Quad>>::new(comptime!(HALVES * key_chunks as usize));
    let mut values = Array::<Vector<u32, N>>::new(comptime!((KEYS / SHARERS * value_chunks) as usize));
    let mut scores = Array::<Vector<f32, Pair>>::new(HALVES);
    let mut scales =
        Scales { keys: Array::<f32>::new(HALVES), values: Array::<f32>::new(HALVES), kept: Array::<bool>::new(HALVES) };

    for base in range_stepped(begin, stop, step) {
        let first = base + plane * KEYS;
        // All loads first, so that they are in flight together.
        load_keys::<M, E>(&mut keys, key, key_head, masks, first, stop, tile);
        if comptime!(tile.ahead()) {
            load_values::<M, E, N>(&mut values, value, value_head, masks, first, stop, tile);
        }
        #[unroll]
        for half in 0..HALVES {
            let slot = first + half as u32 * 8 + eighth();
            let keep = kept::<M, E>(masks, slot, stop);
            if comptime!(tile.guarded) {
                scales.kept[half] = keep;
            }
            scales.keys[half] = 0.0f32;
            scales.values[half] = 0.0f32;
            if keep {
                if comptime!(tile.int8_keys) {
                    scales.keys[half] = key.scale(key_head, slot);
                }
                if comptime!(tile.int8_values) {
                    scales.values[half] = value.scale(value_head, slot);
                }
            }
            scores[half] = Vector::<f32, Pair>::new(0.0f32);
        }

        #[unroll(unroll)]
        for chunk in 0..key_chunks {
            let (upper, lower) = (keys[chunk as usize], keys[(key_chunks + chunk) as usize]);
            #[unroll(unroll)]
            for part in 0..comptime!(tile.key_parts()) {
                let left = left::<F, Quad>(upper, lower, part, raised.keys, tile.int8_keys, tile.brain);
                let right = (chunk * comptime!(tile.key_parts()) + part) * 2;
                mma::<F>(&left, 0u32, &queries, right, &mut scores, 0u32, &mut scratch, tile.emulate);
            }
        }
        weigh::<M, E>(&mut scores, &mut sums, &scales, masks, first, first_row, start, &mut exchange, sizes, tile);
        if comptime!(!tile.ahead()) {
            load_values::<M, E, N>(&mut values, value, value_head, masks, first, stop, tile);
        }
        let right = turned::<P>(&scores, &mut moved, tile);
        #[unroll(unroll)]
        for chunk in 0..value_chunks {
            #[unroll(unroll)]
            for pair in 0..2u32 {
                let left = value_fragments::<P, N>(&values, chunk, pair, raised.values, tile);
                #[unroll(unroll)]
                for i in 0..2u32 {
                    let to = ((chunk * 2 + pair) * 2 + i) * 2;
                    mma::<P>(&left, i * 4, &right, 0u32, &mut sums.result, to, &mut scratch, tile.emulate);
                }
            }
        }
    }
    add_planes::<O>(&mut sums, sinks, first_row, split, output, stats, &mut exchange, sizes, tile);
}

/// Adds the results of the planes, and writes them.
#[cube]
fn add_planes<O: Float>(
    sums: &mut Sums,
    sinks: &Sinks,
    first_row: u32,
    split: u32,
    output: &mut Array<O>,
    stats: &mut Array<f32>,
    exchange: &mut SharedMemory<f32>,
    sizes: &Sizes,
    #[comptime] tile: Tile,
) {
    let unroll = comptime!(!tile.emulate);
    let row_floats = comptime!(tile.result_row());
    let plane = UNIT_POS / LANES;
    let all_rows = sizes.group * sizes.tokens;
    let mut all_largest = SharedMemory::<f32>::new(comptime!(tile.stats() as usize));
    let mut all_total = SharedMemory::<f32>::new(comptime!(tile.stats() as usize));
    let mut results = SharedMemory::<f32>::new(comptime!(tile.results() as usize));
    #[unroll]
    for r in 0..OWN {
        let total = over_keys(sums.total[r], exchange, false, tile);
        if eighth() == 0 {
            let at = (plane * ROWS + sharer() * 2 + r as u32) as usize;
            all_largest[at] = sums.largest[r];
            all_total[at] = total;
        }
    }
    #[unroll]
    for r in 0..OWN {
        // Half of the rows at a time: those of the first query of each lane, then those of the second.
        sync_cube();
        let row = sharer() * 2 + r as u32;
        let mut largest = HIDDEN.runtime();
        for p in 0..tile.planes {
            largest = max(largest, all_largest[(p * ROWS + row) as usize]);
        }
        let factor = (sums.largest[r] - largest).exp();
        let to = (plane * comptime!(ROWS / 2) + sharer()) * row_floats;
        #[unroll(unroll)]
        for at in 0..comptime!(tile.result_registers() as u32) {
            // Feature `at % 8` of the lane's vector of chunk `at / 8`.
            let place = at / 8 * comptime!(8 * RESULT_STRIDE) + at % 8 * RESULT_STRIDE + eighth();
            let pair = sums.result[at as usize];
            results[(to + place) as usize] = pair[r] * factor;
        }
        sync_cube();
        for at in range_stepped(UNIT_POS, comptime!(ROWS / 2 * tile.head_dim), comptime!(tile.units())) {
            let (of_row, feature) = (at / tile.head_dim, at % tile.head_dim);
            let within = of_row * 2 + r as u32;
            let row = first_row + within;
            if row < all_rows {
                let lane = feature % comptime!(VALUE_CHUNK as u32) / 8;
                let chunk = feature / comptime!(VALUE_CHUNK as u32) * comptime!(8 * RESULT_STRIDE);
                let place = chunk + feature % 8 * RESULT_STRIDE + lane;
                let mut sum = 0.0f32.runtime();
                for p in 0..tile.planes {
                    sum += results[((p * comptime!(ROWS / 2) + of_row) * row_floats + place) as usize];
                }
                let mut largest = HIDDEN.runtime();
                for p in 0..tile.planes {
                    largest = max(largest, all_largest[(p * ROWS + within) as usize]);
                }
                let mut total = 0.0f32.runtime();
                for p in 0..tile.planes {
                    let at = (p * ROWS + within) as usize;
                    total += all_total[at] * (all_largest[at] - largest).exp();
                }
                let part = ((CUBE_POS_Z * CUBE_COUNT_Y + CUBE_POS_Y) * all_rows + row) * sizes.splits + split;
                if comptime!(tile.whole) {
                    let head = CUBE_POS_Y * sizes.group + row % sizes.group;
                    let token = row / sizes.group;
                    let at = sizes.context.head(CUBE_POS_Z, head) + token * sizes.context.token + feature;
                    let divisor = sinks.join(total, head, largest, false);
                    // Nothing visible gives zeros.
                    output[at as usize] = O::cast_from(select(divisor == 0.0f32, 0.0f32, sum / divisor));
                } else {
                    output[(part * tile.head_dim + feature) as usize] = O::cast_from(sum);
                }
                if feature == 0 {
                    stats[(part * 2) as usize] = largest;
                    stats[(part * 2 + 1) as usize] = total;
                }
            }
        }
    }
}
