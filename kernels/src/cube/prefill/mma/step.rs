//! What a plane does with the keys and values of a step.

use cubecl::prelude::*;

use super::sums::Sums;
use super::tile::{Scoring, Tile, register};
use crate::cube::exponential::{exponent, exponential};
use crate::cube::fragment::{Order, Pair, as_left, load, mma, zeros};
use crate::cube::lanes::lanes_max;

/// What the products of each row begin with, so that `offsets` are added to scores. `reach` is [`Tile::reach`] in products; ALiBi adds `shifts`.
#[cube]
pub(super) fn initial_products(
    offsets: &Array<f32>,
    shifts: &Array<f32>,
    reach: f32,
    #[comptime] tile: Tile,
) -> Array<f32> {
    let mut initial = Array::<f32>::new(comptime!(tile.unit_rows()));
    #[unroll(!tile.emulate)]
    for r in 0..comptime!(tile.unit_rows()) {
        let mut first = offsets[r];
        if comptime!(tile.distances && matches!(tile.scoring, Scoring::Masked { .. })) {
            first *= reach * comptime!(1.0 / tile.reach());
        }
        if comptime!(tile.scoring == Scoring::Slopes) {
            first += shifts[r];
        }
        initial[r] = first;
    }
    initial
}

/// `S = Q Kᵀ`, added to the `initial` number of each row.
#[cube]
pub(super) fn products<F: Float, N: Size>(
    stage: &SharedMemory<Vector<F, N>>,
    origin: usize,
    query_origin: usize,
    queries: &mut Array<Vector<F, Pair>>,
    initial: &Array<f32>,
    scores: &mut Array<Vector<f32, Pair>>,
    scratch: &mut SharedMemory<f32>,
    #[comptime] tile: Tile,
) {
    let unroll = comptime!(!tile.emulate);
    let eights = comptime!(tile.keys as usize / 8);
    #[unroll(unroll)]
    for r in 0..comptime!(tile.unit_rows()) {
        #[unroll(unroll)]
        for eight in 0..eights {
            scores[register(r, eight, eights)] = Vector::<f32, Pair>::new(initial[r]);
        }
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

/// `P` of a step that [is near](Sums::are_near): `scores` are distances from the middle of their rows.
#[cube]
pub(super) fn near_probabilities(scores: &mut Array<Vector<f32, Pair>>, factor: f32, #[comptime] tile: Tile) {
    let middle = comptime!(tile.reach() * exponent(true));
    #[unroll]
    for at in 0..comptime!(tile.score_registers()) {
        let mut pair = scores[at];
        #[unroll]
        for e in 0..2usize {
            // No less than 0, but for rounding.
            pair[e] = exponential(fma(pair[e], factor, middle).abs(), true);
        }
        scores[at] = pair;
    }
}

/// `P` of any step. A row whose scores exceed its limit gets another middle, and its earlier sums are rescaled. Exponents are scores times `factor`,
/// and `reach` is [`Tile::reach`] in scores. `offsets` were added to the scores of each row.
#[cube]
pub(super) fn probabilities(
    scores: &mut Array<Vector<f32, Pair>>,
    offsets: &Array<f32>,
    sums: &mut Sums,
    scratch: &mut SharedMemory<f32>,
    factor: f32,
    reach: f32,
    #[comptime] tile: Tile,
) {
    // Tensor cores are CUDA's.
    let fast = comptime!(!tile.emulate);
    let unroll = comptime!(!tile.emulate);
    let eights = comptime!(tile.keys as usize / 8);

    let mut largest = Array::<f32>::new(comptime!(tile.unit_rows()));
    let mut exceeds = false.runtime();
    #[unroll(unroll)]
    for r in 0..comptime!(tile.unit_rows()) {
        let first = scores[register(r, 0usize, eights)];
        let mut own = max(first[0], first[1]);
        #[unroll(unroll)]
        for eight in 1..eights {
            let pair = scores[register(r, eight, eights)];
            own = max(own, max(pair[0], pair[1]));
        }
        if comptime!(tile.distances) {
            // That of a hidden key does not change by so little.
            own -= offsets[r];
        }
        if comptime!(tile.emulate) {
            own = lanes_max(own, scratch, 4u32, false);
        }
        largest[r] = own;
        exceeds = exceeds || own > sums.limit[r];
    }
    // The lanes of a row exchange their maxima only then: smaller differences cancel at the end.
    if comptime!(!tile.emulate) {
        exceeds = plane_any(exceeds);
    }
    if exceeds {
        #[unroll(unroll)]
        for r in 0..comptime!(tile.unit_rows()) {
            let new = if comptime!(tile.emulate) { largest[r] } else { lanes_max(largest[r], scratch, 4u32, true) };
            sums.move_to(r, new, factor, reach, tile);
        }
    }
    #[unroll(unroll)]
    for r in 0..comptime!(tile.unit_rows()) {
        let mut moved = sums.negative_middle[r];
        if comptime!(tile.distances) {
            moved -= offsets[r];
        }
        let offset = fma(moved, factor, comptime!(tile.reach() * exponent(!tile.emulate)));
        #[unroll(unroll)]
        for eight in 0..eights {
            let at = register(r, eight, eights);
            let mut pair = scores[at];
            pair[0] = exponential(fma(pair[0], factor, offset), fast);
            pair[1] = exponential(fma(pair[1], factor, offset), fast);
            scores[at] = pair;
        }
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

/// `O += P V`, for values at vector `origin`, and the sums of `P`.
#[cube]
pub(super) fn accumulate<F: Float, N: Size>(
    stage: &SharedMemory<Vector<F, N>>,
    origin: usize,
    left: &Array<Vector<F, Pair>>,
    sums: &mut Sums,
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
                    mma::<F>(left, from, &right, half * 2, &mut sums.result, to, scratch, tile.emulate);
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
                mma::<F>(left, from, &right, 0u32, &mut sums.result, to, scratch, tile.emulate);
            }
        }
        if comptime!(tile.multiplies_sums()) {
            let mut ones = Array::<Vector<F, Pair>>::new(2usize);
            #[unroll]
            for i in 0..2usize {
                ones[i] = Vector::new(F::cast_from(1.0f32));
            }
            #[unroll(unroll)]
            for piece in 0..pieces {
                let from = (piece * blocks + block) * 4;
                mma::<F>(left, from, &ones, 0u32, &mut sums.multiplied, piece * 2, scratch, tile.emulate);
            }
        }
    }
}
