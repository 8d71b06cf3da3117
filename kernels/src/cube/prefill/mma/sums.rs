//! What a plane keeps from step to step: context, sums, and what exponents count from.
//!
//! Exponents are differences from a reference near the maximum of a row, which cancels in the division by the sum. An exponential whose result may be
//! below the normal numbers takes a CUDA device four instructions, and one whose argument is an absolute value takes one. So the reference is further
//! below the maximum than most scores are. Then the exponents of most steps are not negative, and their absolute values are they themselves:
//!
//! ```text
//!    reference              middle      maximum      limit
//!    ├──────── reach ─────────┼──────────────┼─ SLACK ─┤     scores
//!    0                      reach                2 · reach   exponents, in natural units
//! ```
//!
//! Products begin at the middle with the other sign, which costs nothing, so scores are distances from it. One comparison of the largest
//! absolute value with the reach shows that a step is near. If a score exceeds the limit, the row gets another middle.

use cubecl::prelude::*;

use super::tile::{SLACK, Scoring, Tile, register};
use crate::cube::exponential::{exponent, exponential};
use crate::cube::fragment::Pair;
use crate::cube::lanes::lanes_sum;
use crate::cube::masks::HIDDEN;

/// At least one step of this many is compared with the reach. With ALiBi most steps of some heads have scores that are further away.
const UNTRIED_STEPS: u32 = 16;

/// What a unit has of the context of its rows, not yet divided by the sums.
#[derive(CubeType)]
pub(super) struct Sums {
    pub result: Array<Vector<f32, Pair>>,
    /// The score above which a row gets another middle. [`HIDDEN`] before it sees a key.
    pub limit: Array<f32>,
    /// The middle of a row, with the other sign. 0 before it sees a key.
    pub negative_middle: Array<f32>,
    /// Sums of the probabilities of the keys of this unit.
    added: Array<f32>,
    /// The same of all keys, in both columns, if they are products.
    pub multiplied: Array<Vector<f32, Pair>>,
    /// Steps whose number has one of these bits are not compared with the reach: all at first, and then more of them after each that has a
    /// score further away.
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
        let mut negative_middle = Array::<f32>::new(comptime!(tile.unit_rows()));
        let mut added = Array::<f32>::new(comptime!(tile.unit_rows()));
        let mut multiplied = Array::<Vector<f32, Pair>>::new(comptime!(tile.unit_rows()));
        #[unroll(unroll)]
        for r in 0..comptime!(tile.unit_rows()) {
            limit[r] = HIDDEN;
            negative_middle[r] = 0.0f32;
            added[r] = 0.0f32;
            multiplied[r] = Vector::<f32, Pair>::new(0.0f32);
        }
        Sums { result, limit, negative_middle, added, multiplied, untried: u32::MAX.runtime() }
    }

    /// The sum of the probabilities of row `r`.
    pub fn total(&self, r: usize, scratch: &mut SharedMemory<f32>, #[comptime] tile: Tile) -> f32 {
        if comptime!(tile.multiplies_sums()) {
            self.multiplied[r][0]
        } else {
            lanes_sum(self.added[r], scratch, 4u32, comptime!(!tile.emulate))
        }
    }

    /// The exponent of a score of 0 in row `r`. Those of others are this and their scores times `factor`.
    pub fn exponent_offset(&self, r: usize, factor: f32, #[comptime] tile: Tile) -> f32 {
        fma(self.negative_middle[r], factor, comptime!(tile.reach() * exponent(!tile.emulate)))
    }

    /// What is added to the scores of each row of a step: the middle of the row with the other sign, or nothing. Steps that a mask does not show
    /// `whole` have scores.
    pub fn offsets(&self, whole: bool, #[comptime] tile: Tile) -> Array<f32> {
        let mut offsets = Array::<f32>::new(comptime!(tile.unit_rows()));
        #[unroll(!tile.emulate)]
        for r in 0..comptime!(tile.unit_rows()) {
            offsets[r] = 0.0f32;
            if comptime!(tile.distances && matches!(tile.scoring, Scoring::Masked { .. })) {
                offsets[r] = select(whole, self.negative_middle[r], 0.0f32);
            } else if comptime!(tile.distances) {
                offsets[r] = self.negative_middle[r];
            }
        }
        offsets
    }

    /// Whether no score of a step is further than `reach` from the middle of its row: `scores` are distances from it. A NaN is not further.
    /// False for steps that are not compared, and before every row has seen a key, so that the middle of a row depends on what it sees alone. The whole
    /// plane must call this, and has one answer.
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
                far = far || farthest > reach || self.limit[r] == HIDDEN;
            }
            near = !plane_any(far);
            self.untried = select(near, 0u32, (self.untried * 2 + 1) % UNTRIED_STEPS);
        }
        near
    }

    /// The plane saw a step that was not near: the next one may be, if it was the first.
    pub fn saw_step(&mut self) {
        self.untried = select(self.untried == u32::MAX, 0u32, self.untried);
    }

    /// Gives row `r` another middle if its new maximum is above its limit, and rescales its sums.
    pub fn move_to(&mut self, r: usize, new: f32, factor: f32, reach: f32, #[comptime] tile: Tile) {
        let exceeds = new > self.limit[r];
        let limit = new + reach * comptime!(SLACK / tile.reach());
        let before = self.negative_middle[r];
        let after = select(exceeds, reach - limit, before);
        // The sums of a row that has seen no key are 0, and its new middle may be far below.
        let shrink = exponential(min((after - before) * factor, 0.0f32), comptime!(!tile.emulate));
        self.negative_middle[r] = after;
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
