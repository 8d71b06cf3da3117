//! From products to weights, and from the lanes that have them to those that multiply with them.

use cubecl::prelude::*;

use super::loads::{eighth, sharer};
use super::tile::Tile;
use crate::cube::decode::Sizes;
use crate::cube::exponential::{exponent, exponential};
use crate::cube::fragment::{LANES, Pair};
use crate::cube::masks::{HIDDEN, Masks, Query};

/// Queries whose scores a lane has.
pub(super) const OWN: usize = 2;
/// Keys of a step whose scores a lane has, 8 apart.
pub(super) const HALVES: usize = 2;

/// What a lane has of the context of its two queries, unless divided by the totals.
#[derive(CubeType)]
pub(super) struct Sums {
    pub result: Array<Vector<f32, Pair>>,
    /// What the exponents are counted from.
    pub largest: Array<f32>,
    /// Sums of the probabilities, of the keys of this lane.
    pub total: Array<f32>,
    /// The keys of this split that each query sees.
    from: Array<u32>,
    to: Array<u32>,
}

#[cube]
impl Sums {
    /// Nothing is visible yet.
    pub fn new<M: Int, E: Float>(
        masks: &Masks<M, E>,
        first_row: u32,
        start: u32,
        end: u32,
        stop: u32,
        sizes: &Sizes,
        #[comptime] tile: Tile,
    ) -> Self {
        let mut result = Array::<Vector<f32, Pair>>::new(comptime!(tile.result_registers()));
        #[unroll(!tile.emulate)]
        for at in 0..comptime!(tile.result_registers()) {
            result[at] = Vector::<f32, Pair>::new(0.0f32);
        }
        let mut largest = Array::<f32>::new(OWN);
        let mut total = Array::<f32>::new(OWN);
        let mut from = Array::<u32>::new(OWN);
        let mut to = Array::<u32>::new(OWN);
        let all_rows = sizes.group * sizes.tokens;
        #[unroll]
        for r in 0..OWN {
            let row = first_row + sharer() * 2 + r as u32;
            let token = min(row, all_rows - 1) / sizes.group;
            from[r] = masks.first(start + token);
            to[r] = select(row < all_rows, min(masks.last_end(start + token, end), stop), 0u32);
            largest[r] = HIDDEN;
            total[r] = 0.0f32;
        }
        Sums { result, largest, total, from, to }
    }
}

/// The scales of a lane's keys and values, and, where keys may be hidden from all queries, which are not.
#[derive(CubeType)]
pub(super) struct Scales {
    pub keys: Array<f32>,
    pub values: Array<f32>,
    pub kept: Array<bool>,
}

/// Makes weights of the products of a step: exponentials, times the scale of the value. Earlier sums are rescaled to the new maximum.
#[cube]
pub(super) fn weigh<M: Int, E: Float>(
    scores: &mut Array<Vector<f32, Pair>>,
    sums: &mut Sums,
    scales: &Scales,
    masks: &Masks<M, E>,
    first: u32,
    first_row: u32,
    start: u32,
    exchange: &mut SharedMemory<f32>,
    sizes: &Sizes,
    #[comptime] tile: Tile,
) {
    // Tensor cores are CUDA's.
    let fast = comptime!(!tile.emulate);
    let factor = comptime!(exponent(!tile.emulate)).runtime();
    let mut new_largest = Array::<f32>::new(OWN);
    let mut grows = false.runtime();
    #[unroll]
    for r in 0..OWN {
        let row = first_row + sharer() * 2 + r as u32;
        let token = row / sizes.group;
        let head = CUBE_POS_Y * sizes.group + row % sizes.group;
        let query = Query { batch: CUBE_POS_Z, head, token, slot: start + token };
        let mut new = sums.largest[r];
        #[unroll]
        for half in 0..HALVES {
            let at = first + half as u32 * 8 + eighth();
            let mut pair = scores[half];
            let mut raw = pair[r] * sizes.scale;
            if comptime!(tile.int8_keys) {
                raw *= scales.keys[half];
            }
            let mut score = HIDDEN.runtime();
            let mut sees = at >= sums.from[r] && at < sums.to[r];
            if comptime!(tile.guarded) {
                sees = sees && scales.kept[half];
            }
            if sees {
                score = masks.score(raw, query, at);
            }
            pair[r] = score;
            scores[half] = pair;
            new = max(new, score);
        }
        new_largest[r] = over_keys(new, exchange, true, tile);
        grows = grows || new_largest[r] > sums.largest[r];
    }
    // The results shrink where a maximum grew, which happens less and less.
    if comptime!(!tile.emulate) {
        grows = plane_any(grows);
    }
    if grows {
        let mut shrink = Vector::<f32, Pair>::empty();
        #[unroll]
        for r in 0..OWN {
            shrink[r] = exponential((sums.largest[r] - new_largest[r]) * factor, fast);
            sums.largest[r] = new_largest[r];
            sums.total[r] = sums.total[r] * shrink[r];
        }
        #[unroll(!tile.emulate)]
        for at in 0..comptime!(tile.result_registers()) {
            sums.result[at] = sums.result[at] * shrink;
        }
    }
    #[unroll]
    for r in 0..OWN {
        // Where nothing was visible yet, hidden scores must not come out as exp(0).
        let reference = select(sums.largest[r] == HIDDEN, 0.0f32, sums.largest[r] * factor);
        let mut sum = sums.total[r];
        #[unroll]
        for half in 0..HALVES {
            let mut pair = scores[half];
            let probability = exponential(fma(pair[r], factor, -reference), fast);
            sum += probability;
            if comptime!(tile.int8_values) {
                // Selected, since the scale of a value that this query does not see may be NaN.
                pair[r] = select(pair[r] == HIDDEN, 0.0f32, probability * scales.values[half]);
            } else {
                pair[r] = probability;
            }
            scores[half] = pair;
        }
        sums.total[r] = sum;
    }
}

/// The maximum or the sum over the lanes that have other keys of the same queries.
#[cube]
pub(super) fn over_keys(
    value: f32,
    exchange: &mut SharedMemory<f32>,
    #[comptime] maximum: bool,
    #[comptime] tile: Tile,
) -> f32 {
    let mut all = value;
    if comptime!(tile.emulate) {
        exchange[UNIT_POS as usize] = value;
        sync_cube();
        let first = UNIT_POS / LANES * LANES + sharer();
        all = exchange[first as usize];
        for lane in 1..8u32 {
            let other = exchange[(first + lane * 4) as usize];
            all = if comptime!(maximum) { max(all, other) } else { all + other };
        }
        sync_cube();
    } else {
        #[unroll]
        for step in 2..5u32 {
            let other = plane_shuffle_xor(all, comptime!(1u32 << step));
            all = if comptime!(maximum) { max(all, other) } else { all + other };
        }
    }
    all
}

/// The weights of a step as a B: two registers, each with the weights of two neighbouring keys for query `l / 4`.
#[cube]
pub(super) fn turned<P: Float>(
    weights: &Array<Vector<f32, Pair>>,
    exchange: &mut SharedMemory<u32>,
    #[comptime] tile: Tile,
) -> Array<Vector<P, Pair>> {
    let mut right = Array::<Vector<P, Pair>>::new(2usize);
    // Of two neighbouring keys, lanes that are 4 apart have the weights: of the queries `2t` and `2t + 1` lane `t`.
    let from = sharer() * 8 + eighth() / 2;
    #[unroll(!tile.emulate)]
    for half in 0..HALVES {
        let own = u32::reinterpret(Vector::<P, Pair>::cast_from(weights[half]));
        let (first, second) = if comptime!(tile.emulate) {
            let base = UNIT_POS / LANES * LANES + from;
            exchange[UNIT_POS as usize] = own;
            sync_cube();
            let first = exchange[base as usize];
            let second = exchange[(base + 4) as usize];
            sync_cube();
            (first, second)
        } else {
            (plane_shuffle(own, from), plane_shuffle(own, from + 4))
        };
        let odd = eighth() % 2 == 1;
        let lower = (first & 0xffffu32) | (second << 16u32);
        let upper = (first >> 16u32) | (second & 0xffff_0000u32);
        right[half] = Vector::reinterpret(select(odd, upper, lower));
    }
    right
}
