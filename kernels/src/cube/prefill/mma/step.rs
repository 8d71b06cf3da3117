//! What a plane does with the keys and values of a step.

use cubecl::prelude::*;

use super::tile::{Scoring, Tile, register};
use crate::cube::exponential::exponential;
use crate::cube::fragment::{Order, Pair, as_left, load, mma, zeros};
use crate::cube::lanes::{lanes_max, lanes_sum};
use crate::cube::masks::HIDDEN;

/// How far scores may exceed the running maximum before it is updated. Probabilities are up to `exp` of this, which f16 holds.
pub(super) const SLACK: f32 = 5.0;

/// What a unit has of the context of its rows, unless divided by the sums.
#[derive(CubeType)]
pub(super) struct Sums {
    pub result: Array<Vector<f32, Pair>>,
    /// The score above which a row counts its exponents from another one. [`HIDDEN`] before it sees a key.
    limit: Array<f32>,
    /// What a row counts its exponents from, as multiples of [`exponent`](crate::cube::exponential::exponent): its maximum, or up to [`SLACK`]
    /// less; 0 before it sees a key.
    pub reference: Array<f32>,
    /// Sums of the probabilities of the keys of this unit.
    added: Array<f32>,
    /// The same of all keys, in both columns, if they are products.
    multiplied: Array<Vector<f32, Pair>>,
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
        let mut limit = Array::<f32>::new(comptime!(tile.unit_rows()));
        let mut reference = Array::<f32>::new(comptime!(tile.unit_rows()));
        let mut added = Array::<f32>::new(comptime!(tile.unit_rows()));
        let mut multiplied = Array::<Vector<f32, Pair>>::new(comptime!(tile.unit_rows()));
        #[unroll(unroll)]
        for r in 0..comptime!(tile.unit_rows()) {
            limit[r] = HIDDEN;
            reference[r] = 0.0f32;
            added[r] = 0.0f32;
            multiplied[r] = Vector::<f32, Pair>::new(0.0f32);
        }
        Sums { result, limit, reference, added, multiplied }
    }

    /// The sum of the probabilities of row `r`.
    pub fn total(&self, r: usize, scratch: &mut SharedMemory<f32>, #[comptime] tile: Tile) -> f32 {
        if comptime!(tile.multiplies_sums()) {
            self.multiplied[r][0]
        } else {
            lanes_sum(self.added[r], scratch, 4u32, comptime!(!tile.emulate))
        }
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

/// `P = exp(S - reference)`; earlier sums are rescaled where scores exceed their limit. Differences are multiplied by `factor`, and `slack` is
/// [`SLACK`] in scores. With ALiBi, `shifts` are what the scores of each row lack.
#[cube]
pub(super) fn probabilities(
    scores: &mut Array<Vector<f32, Pair>>,
    shifts: &Array<f32>,
    sums: &mut Sums,
    scratch: &mut SharedMemory<f32>,
    factor: f32,
    slack: f32,
    #[comptime] tile: Tile,
) {
    // Tensor cores are CUDA's.
    let fast = comptime!(!tile.emulate);
    let unroll = comptime!(!tile.emulate);
    let eights = comptime!(tile.keys as usize / 8);
    let shifted = comptime!(tile.scoring == Scoring::Slopes);

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
        if comptime!(shifted) {
            // That of a hidden key does not change by so little.
            own += shifts[r];
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
            sums.count_from(r, new, factor, slack, tile);
        }
    }
    #[unroll(unroll)]
    for r in 0..comptime!(tile.unit_rows()) {
        let mut reference = sums.reference[r];
        if comptime!(shifted) {
            reference -= shifts[r] * factor;
        }
        let mut added = sums.added[r];
        #[unroll(unroll)]
        for eight in 0..eights {
            let at = register(r, eight, eights);
            let mut pair = scores[at];
            pair[0] = exponential(fma(pair[0], factor, -reference), fast);
            pair[1] = exponential(fma(pair[1], factor, -reference), fast);
            if comptime!(!tile.multiplies_sums()) {
                added += pair[0] + pair[1];
            }
            scores[at] = pair;
        }
        sums.added[r] = added;
    }
}

#[cube]
impl Sums {
    /// Counts the exponents of row `r` from its new maximum, if it is above the limit.
    fn count_from(&mut self, r: usize, new: f32, factor: f32, slack: f32, #[comptime] tile: Tile) {
        let exceeds = new > self.limit[r];
        let before = self.reference[r];
        let reference = select(exceeds, new * factor, before);
        // The sums of a row that has seen no key are 0, and its new reference may be far below.
        let shrink = exponential(min(before - reference, 0.0f32), comptime!(!tile.emulate));
        self.reference[r] = reference;
        self.limit[r] = select(exceeds, new + slack, self.limit[r]);
        if comptime!(tile.multiplies_sums()) {
            self.multiplied[r] = self.multiplied[r] * Vector::<f32, Pair>::new(shrink);
        } else {
            self.added[r] = self.added[r] * shrink;
        }
        let columns = comptime!(tile.columns() as usize);
        #[unroll(!tile.emulate)]
        for column in 0..columns {
            let at = register(r, column, columns);
            self.result[at] = self.result[at] * Vector::<f32, Pair>::new(shrink);
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
