//! What a plane does with the keys and values of a step.

use cubecl::prelude::*;

use super::tile::{Scoring, Tile, register};
use crate::cube::exponential::{exponent, exponential};
use crate::cube::fragment::{Order, Pair, as_left, load, mma, zeros};
use crate::cube::lanes::{lanes_max, lanes_sum};
use crate::cube::masks::HIDDEN;

/// How far scores may exceed the maximum that a row counts its exponents from before it counts from another one.
pub(super) const SLACK: f32 = 5.0;

/// One step of this many is tried at least. With ALiBi and some heads most steps have scores that are far.
const UNTRIED_STEPS: u32 = 16;

/// What a unit has of the context of its rows, unless divided by the sums.
///
/// The middle of a row is the score whose exponent is [`Tile::reach`]. Scores that are not further from it than this have exponents that are not
/// negative.
#[derive(CubeType)]
pub(super) struct Sums {
    pub result: Array<Vector<f32, Pair>>,
    /// The score above which a row gets another middle: the end of its reach. [`HIDDEN`] before it sees a key.
    limit: Array<f32>,
    /// The middle of a row, with the other sign. 0 before it sees a key.
    start: Array<f32>,
    /// Sums of the probabilities of the keys of this unit.
    added: Array<f32>,
    /// The same of all keys, in both columns, if they are products.
    multiplied: Array<Vector<f32, Pair>>,
    /// Steps that have one of these bits are not tried: more of them while some score is far in those that are.
    untried: u32,
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
        let mut start = Array::<f32>::new(comptime!(tile.unit_rows()));
        let mut added = Array::<f32>::new(comptime!(tile.unit_rows()));
        let mut multiplied = Array::<Vector<f32, Pair>>::new(comptime!(tile.unit_rows()));
        #[unroll(unroll)]
        for r in 0..comptime!(tile.unit_rows()) {
            limit[r] = HIDDEN;
            start[r] = 0.0f32;
            added[r] = 0.0f32;
            multiplied[r] = Vector::<f32, Pair>::new(0.0f32);
        }
        Sums { result, limit, start, added, multiplied, untried: 0u32.runtime() }
    }

    /// The sum of the probabilities of row `r`.
    pub fn total(&self, r: usize, scratch: &mut SharedMemory<f32>, #[comptime] tile: Tile) -> f32 {
        if comptime!(tile.multiplies_sums()) {
            self.multiplied[r][0]
        } else {
            lanes_sum(self.added[r], scratch, 4u32, comptime!(!tile.emulate))
        }
    }

    /// What the exponents of row `r` are more than its scores times `factor`.
    pub fn offset(&self, r: usize, factor: f32, #[comptime] tile: Tile) -> f32 {
        fma(self.start[r], factor, comptime!(tile.reach() * exponent(!tile.emulate)))
    }

    /// What is added to the scores of each row: the middle of the row with the other sign, if scores are distances from it, or nothing.
    pub fn begun(&self, #[comptime] tile: Tile) -> Array<f32> {
        let mut begun = Array::<f32>::new(comptime!(tile.unit_rows()));
        #[unroll(!tile.emulate)]
        for r in 0..comptime!(tile.unit_rows()) {
            begun[r] = 0.0f32;
            if comptime!(tile.has_distances()) {
                begun[r] = self.start[r];
            }
        }
        begun
    }
}

/// `S = Q Kᵀ`, and what `begun` and `shifts` have for each row.
#[cube]
pub(super) fn products<F: Float, N: Size>(
    stage: &SharedMemory<Vector<F, N>>,
    origin: usize,
    query_origin: usize,
    queries: &mut Array<Vector<F, Pair>>,
    begun: &Array<f32>,
    shifts: &Array<f32>,
    scores: &mut Array<Vector<f32, Pair>>,
    scratch: &mut SharedMemory<f32>,
    #[comptime] tile: Tile,
) {
    let unroll = comptime!(!tile.emulate);
    let eights = comptime!(tile.keys as usize / 8);
    #[unroll(unroll)]
    for r in 0..comptime!(tile.unit_rows()) {
        let mut first = begun[r];
        if comptime!(tile.scoring == Scoring::Slopes) {
            first += shifts[r];
        }
        #[unroll(unroll)]
        for eight in 0..eights {
            scores[register(r, eight, eights)] = Vector::<f32, Pair>::new(first);
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

/// `P = exp(S)` of distances that [are near](Sums::are_near). One instruction takes the exponential of a number that has no sign; others may have a
/// result below the normal numbers, for which the device has four.
#[cube]
pub(super) fn near_probabilities(scores: &mut Array<Vector<f32, Pair>>, factor: f32, #[comptime] tile: Tile) {
    let middle = comptime!(tile.reach() * exponent(true));
    #[unroll]
    for at in 0..comptime!(tile.score_registers()) {
        let mut pair = scores[at];
        #[unroll]
        for e in 0..2usize {
            // It is below 0 by what is rounded at most.
            pair[e] = exponential(fma(pair[e], factor, middle).abs(), true);
        }
        scores[at] = pair;
    }
}

/// `P = exp(S)`, where exponents count from the middle of a row. A row whose scores exceed its limit gets another middle, and its earlier sums are rescaled.
/// Scores are multiplied by `factor`, and `reach` is [`Tile::reach`] in scores. `begun` is what the scores of each row are too much.
#[cube]
pub(super) fn probabilities(
    scores: &mut Array<Vector<f32, Pair>>,
    begun: &Array<f32>,
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
        if comptime!(tile.has_distances()) {
            // That of a hidden key does not change by so little.
            own -= begun[r];
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
        let mut moved = sums.start[r];
        if comptime!(tile.has_distances()) {
            moved -= begun[r];
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

#[cube]
impl Sums {
    /// Whether no score of a step is further from the middle of its row than exponents reach: `scores` are distances from it, and `reach` is
    /// [`Tile::reach`] in scores. A NaN is not. The whole plane agrees. After a step that has a score that is far, some are not tried.
    pub fn are_near(
        &mut self,
        scores: &Array<Vector<f32, Pair>>,
        step: u32,
        reach: f32,
        #[comptime] tile: Tile,
    ) -> bool {
        let eights = comptime!(tile.keys as usize / 8);
        let tries = step & self.untried == 0;
        let mut near = false.runtime();
        if tries {
            let mut far = false.runtime();
            #[unroll]
            for r in 0..comptime!(tile.unit_rows()) {
                let mut farthest = 0.0f32.runtime();
                #[unroll]
                for eight in 0..eights {
                    let pair = scores[register(r, eight, eights)];
                    farthest = max(farthest, pair[0].abs());
                    farthest = max(farthest, pair[1].abs());
                }
                far = far || farthest > reach;
            }
            near = !plane_any(far);
            self.untried = select(near, 0u32, (self.untried * 2 + 1) % UNTRIED_STEPS);
        }
        near
    }

    /// Row `r` sees `some` keys of a step whose scores are near: its middle stays where it is.
    pub fn see(&mut self, r: usize, some: bool, reach: f32) {
        self.limit[r] = select(some, reach - self.start[r], self.limit[r]);
    }

    /// The same for all rows.
    pub fn see_all(&mut self, reach: f32, #[comptime] tile: Tile) {
        #[unroll]
        for r in 0..comptime!(tile.unit_rows()) {
            self.limit[r] = reach - self.start[r];
        }
    }

    /// Moves the middle of row `r` so that its new maximum is [`SLACK`] below the end of its reach, if it is above this end.
    fn move_to(&mut self, r: usize, new: f32, factor: f32, reach: f32, #[comptime] tile: Tile) {
        let exceeds = new > self.limit[r];
        let limit = new + reach * comptime!(SLACK / tile.reach());
        let before = self.start[r];
        let start = select(exceeds, reach - limit, before);
        // The sums of a row that has seen no key are 0, and its new middle may be far below.
        let shrink = exponential(min((start - before) * factor, 0.0f32), comptime!(!tile.emulate));
        self.start[r] = start;
        self.limit[r] = select(exceeds, limit, self.limit[r]);
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

    /// Adds up the probabilities of a step, unless their sums are products.
    pub fn add(&mut self, probabilities: &Array<Vector<f32, Pair>>, #[comptime] tile: Tile) {
        let eights = comptime!(tile.keys as usize / 8);
        if comptime!(!tile.multiplies_sums()) {
            #[unroll(!tile.emulate)]
            for r in 0..comptime!(tile.unit_rows()) {
                let mut added = self.added[r];
                #[unroll(!tile.emulate)]
                for eight in 0..eights {
                    let pair = probabilities[register(r, eight, eights)];
                    added += pair[0] + pair[1];
                }
                self.added[r] = added;
            }
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
