//! What a plane does with the keys and values of a step.

use cubecl::prelude::*;

use super::tile::{Scoring, Tile, register};
use crate::cube::exponential::{exponent, exponential};
use crate::cube::fragment::{Order, Pair, as_left, load, mma, zeros};
use crate::cube::lanes::lanes_max;
use crate::cube::masks::HIDDEN;

/// How far scores may exceed the running maximum before it is updated. Probabilities are up to `exp` of this, which f16 holds.
const SLACK: f32 = 5.0;

/// What a unit has of the context of its rows, unless divided by the sums.
#[derive(CubeType)]
pub(super) struct Sums {
    pub result: Array<Vector<f32, Pair>>,
    /// What the exponents are counted from: the maximum, or a little less.
    pub largest: Array<f32>,
    /// Sums of the probabilities, of the keys of this unit.
    pub total: Array<f32>,
}

#[cube]
impl Sums {
    /// Nothing is visible yet.
    pub fn new(#[comptime] tile: Tile) -> Self {
        let unroll = comptime!(!tile.emulate);
        let mut result = Array::<Vector<f32, Pair>>::new(comptime!(tile.result_registers()));
        #[unroll(unroll)]
        for at in 0..comptime!(tile.result_registers()) {
            result[at] = Vector::<f32, Pair>::new(0.0f32);
        }
        let mut largest = Array::<f32>::new(comptime!(tile.unit_rows()));
        let mut total = Array::<f32>::new(comptime!(tile.unit_rows()));
        #[unroll(unroll)]
        for r in 0..comptime!(tile.unit_rows()) {
            largest[r] = HIDDEN;
            total[r] = 0.0f32;
        }
        Sums { result, largest, total }
    }
}

/// `S = Q Kᵀ`.
#[cube]
pub(super) fn products<F: Float, N: Size>(
    stage: &SharedMemory<Vector<F, N>>,
    origin: usize,
    query_origin: usize,
    queries: &mut Array<Vector<F, Pair>>,
    scores: &mut Array<Vector<f32, Pair>>,
    scratch: &mut SharedMemory<f32>,
    #[comptime] tile: Tile,
) {
    let unroll = comptime!(!tile.emulate);
    #[unroll(unroll)]
    for at in 0..comptime!(tile.score_registers()) {
        scores[at] = Vector::<f32, Pair>::new(0.0f32);
    }
    #[unroll(unroll)]
    for depth in 0..comptime!(tile.head_dim / 16) {
        products_of::<F, N>(stage, origin, query_origin, depth, queries, scores, scratch, true, tile);
    }
    if comptime!(tile.odd()) {
        let depth = comptime!(tile.head_dim / 16).runtime();
        products_of::<F, N>(stage, origin, query_origin, depth, queries, scores, scratch, false, tile);
    }
}

/// The part of 16 features, or of the last 8 if not `whole`.
#[cube]
fn products_of<F: Float, N: Size>(
    stage: &SharedMemory<Vector<F, N>>,
    origin: usize,
    query_origin: usize,
    depth: u32,
    queries: &mut Array<Vector<F, Pair>>,
    scores: &mut Array<Vector<f32, Pair>>,
    scratch: &mut SharedMemory<f32>,
    #[comptime] whole: bool,
    #[comptime] tile: Tile,
) {
    let unroll = comptime!(!tile.emulate);
    let layout = comptime!(tile.layout());
    let blocks = comptime!(tile.keys / 16);
    if comptime!(!tile.resident) {
        load_queries::<F, N>(stage, query_origin, depth, 0u32, queries, whole, tile);
    }
    #[unroll(unroll)]
    for block in 0..blocks {
        let matrices = if comptime!(whole) { 4u32 } else { 2u32 };
        let order = comptime!(if whole { tile.key_order() } else { Order::Rows });
        let found = load::<F, N>(stage, origin, block * 16, depth * 2, matrices, order, false, layout);
        // Keys 0 to 7 and 8 to 15, each with its first features and those 8 on.
        let (next_keys, next_features) = comptime!(if order == Order::Rows { (1usize, 2usize) } else { (2, 1) });
        let mut right = Array::<Vector<F, Pair>>::new(4usize);
        #[unroll]
        for half in 0..2usize {
            right[half * 2] = found[half * next_keys];
            right[half * 2 + 1] =
                if comptime!(whole) { found[half * next_keys + next_features] } else { zeros::<F, Pair>() };
        }
        #[unroll(unroll)]
        for half in 0..2u32 {
            #[unroll(unroll)]
            for piece in 0..comptime!(tile.pieces) {
                let left = query_register(piece, depth, tile);
                let to = ((piece * blocks + block) * 2 + half) * 2;
                mma::<F>(queries, left, &right, half * 2, scores, to, scratch, tile.emulate);
            }
        }
    }
}

/// The first register of the queries of a piece at a depth.
#[cube]
fn query_register(piece: u32, depth: u32, #[comptime] tile: Tile) -> u32 {
    if comptime!(tile.resident) { (piece * comptime!(tile.depths()) + depth) * 4 } else { piece * 4 }
}

/// The queries of a depth, to the registers of depth `to`.
#[cube]
pub(super) fn load_queries<F: Float, N: Size>(
    stage: &SharedMemory<Vector<F, N>>,
    query_origin: usize,
    depth: u32,
    to: u32,
    queries: &mut Array<Vector<F, Pair>>,
    #[comptime] whole: bool,
    #[comptime] tile: Tile,
) {
    let layout = comptime!(tile.layout());
    let matrices = if comptime!(whole) { 4u32 } else { 2u32 };
    #[unroll(!tile.emulate)]
    for piece in 0..comptime!(tile.pieces) {
        let left = load::<F, N>(stage, query_origin, piece * 16, depth * 2, matrices, Order::Rows, false, layout);
        let register = query_register(piece, to, tile);
        #[unroll]
        for i in 0..4u32 {
            queries[(register + i) as usize] =
                if comptime!(i < matrices) { left[i as usize] } else { zeros::<F, Pair>() };
        }
    }
}

/// `P = exp(S - maximum)`; earlier sums are rescaled to the new maximum. Differences are multiplied by `factor`.
/// With ALiBi, `shifts` are what the scores of each row lack.
#[cube]
pub(super) fn probabilities(
    scores: &mut Array<Vector<f32, Pair>>,
    shifts: &Array<f32>,
    sums: &mut Sums,
    scratch: &mut SharedMemory<f32>,
    factor: f32,
    #[comptime] tile: Tile,
) {
    // Tensor cores are CUDA's.
    let fast = comptime!(!tile.emulate);
    let unroll = comptime!(!tile.emulate);
    let eights = comptime!(tile.keys as usize / 8);
    let columns = comptime!(tile.columns() as usize);
    let shifted = comptime!(tile.scoring == Scoring::Slopes);
    let slack = comptime!(SLACK * exponent(!tile.emulate));

    let mut new_largest = Array::<f32>::new(comptime!(tile.unit_rows()));
    let mut grows = false.runtime();
    #[unroll(unroll)]
    for r in 0..comptime!(tile.unit_rows()) {
        let mut new = if comptime!(shifted) { HIDDEN.runtime() } else { sums.largest[r] };
        #[unroll(unroll)]
        for eight in 0..eights {
            let pair = scores[register(r, eight, eights)];
            new = max(new, max(pair[0], pair[1]));
        }
        if comptime!(shifted) {
            // That of a hidden key does not change by so little.
            new = max(sums.largest[r], new + shifts[r]);
        }
        new = lanes_max(new, scratch, 4u32, comptime!(!tile.emulate));
        new_largest[r] = new;
        // Earlier sums are rescaled only if a maximum grows by much; smaller differences cancel at the end.
        grows = grows || (new - sums.largest[r]) * factor > slack;
    }
    if comptime!(!tile.emulate) {
        grows = plane_any(grows);
    }
    if grows {
        #[unroll(unroll)]
        for r in 0..comptime!(tile.unit_rows()) {
            let shrink = exponential((sums.largest[r] - new_largest[r]) * factor, fast);
            sums.largest[r] = new_largest[r];
            sums.total[r] = sums.total[r] * shrink;
            #[unroll(unroll)]
            for column in 0..columns {
                let at = register(r, column, columns);
                sums.result[at] = sums.result[at] * Vector::<f32, Pair>::new(shrink);
            }
        }
    }
    #[unroll(unroll)]
    for r in 0..comptime!(tile.unit_rows()) {
        // Where nothing was visible yet, hidden scores must not come out as exp(0).
        let mut reference = select(sums.largest[r] == HIDDEN, 0.0f32, sums.largest[r] * factor);
        if comptime!(shifted) {
            reference -= shifts[r] * factor;
        }
        let mut sum = sums.total[r];
        #[unroll(unroll)]
        for eight in 0..eights {
            let at = register(r, eight, eights);
            let mut pair = scores[at];
            pair[0] = exponential(fma(pair[0], factor, -reference), fast);
            pair[1] = exponential(fma(pair[1], factor, -reference), fast);
            sum += pair[0] + pair[1];
            scores[at] = pair;
        }
        sums.total[r] = sum;
    }
}

/// `P` as the left operand of a product.
#[cube]
pub(super) fn packed<F: Float>(
    scores: &Array<Vector<f32, Pair>>,
    left: &mut Array<Vector<F, Pair>>,
    #[comptime] tile: Tile,
) {
    #[unroll(!tile.emulate)]
    for at in 0..comptime!(tile.pieces * tile.keys / 16) {
        as_left::<F>(scores, at * 4, left, at * 4);
    }
}

/// `O += P V`, for values at vector `origin`.
#[cube]
pub(super) fn accumulate<F: Float, N: Size>(
    stage: &SharedMemory<Vector<F, N>>,
    origin: usize,
    left: &Array<Vector<F, Pair>>,
    result: &mut Array<Vector<f32, Pair>>,
    scratch: &mut SharedMemory<f32>,
    #[comptime] tile: Tile,
) {
    let unroll = comptime!(!tile.emulate);
    let layout = comptime!(tile.layout());
    let columns = comptime!(tile.columns());
    let pieces = comptime!(tile.pieces);
    let blocks = comptime!(tile.keys / 16);
    #[unroll(unroll)]
    for block in 0..blocks {
        #[unroll(unroll)]
        for sixteen in 0..comptime!(columns / 2) {
            let right = load::<F, N>(stage, origin, block * 16, sixteen * 2, 4u32, Order::Rows, true, layout);
            #[unroll(unroll)]
            for half in 0..2u32 {
                #[unroll(unroll)]
                for piece in 0..pieces {
                    let from = (piece * blocks + block) * 4;
                    let to = (piece * columns + sixteen * 2 + half) * 2;
                    mma::<F>(left, from, &right, half * 2, result, to, scratch, tile.emulate);
                }
            }
        }
        if comptime!(tile.odd()) {
            let chunk = comptime!(columns - 1).runtime();
            let right = load::<F, N>(stage, origin, block * 16, chunk, 2u32, Order::Rows, true, layout);
            #[unroll(unroll)]
            for piece in 0..pieces {
                let from = (piece * blocks + block) * 4;
                let to = (piece * columns + comptime!(columns - 1)) * 2;
                mma::<F>(left, from, &right, 0u32, result, to, scratch, tile.emulate);
            }
        }
    }
}
