//! What a group of lanes holds, and which of its scores each lane works on.

use cubecl::prelude::*;

use crate::cube::lanes::{Fold, divide, lanes_sum};

/// What is compiled into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    pub units: u32,
    /// Units that share one key.
    pub lanes: u32,
    /// Vectors of a key that a lane holds.
    pub per_lane: u32,
    /// Vectors of a value that a lane holds.
    pub value_per_lane: u32,
    /// Vectors of a key.
    pub vectors: u32,
    /// Vectors of a value.
    pub value_vectors: u32,
    /// Queries of a cube, all of one key head.
    pub rows: u32,
    /// Keys that a group of lanes has in flight.
    pub unroll: u32,
    /// Whether these keys follow each other; if not, neighbouring groups read neighbouring keys.
    pub runs: bool,
    /// Whether the result is whole, or one split of several.
    pub whole: bool,
    /// Whether the queries may see different keys.
    pub select: bool,
    pub int8_keys: bool,
    pub int8_values: bool,
    pub planes: bool,
}

/// How the scores of a step are divided over the lanes of a group: score `r · unroll + u` is that of row `r` and key `u`.
///
/// A lane that computed what every lane computes would do most of its work in vain. With plane operations each lane finishes
/// the sums of a part of the scores, and its part of the softmax; without, every lane has all of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shares {
    /// All scores of a step.
    pub scores: u32,
    /// Parts that they are divided into.
    pub parts: u32,
    /// Lanes that work on the same part.
    pub spread: u32,
    /// Scores of a part: `rows` rows of `keys` neighbouring keys.
    pub held: u32,
    pub rows: u32,
    pub keys: u32,
}

impl Tile {
    pub fn shares(self) -> Shares {
        let scores = self.rows * self.unroll;
        let parts = if self.planes { self.lanes.min(scores) } else { 1 };
        let held = scores / parts;
        let keys = held.min(self.unroll);
        Shares { scores, parts, spread: self.lanes / parts, held, rows: held / keys, keys }
    }
}

/// Which key of a step is the `u`th of a group.
///
/// A lane reads scales and masks of several keys of its group, so it is best if they follow each other. But if a key ends inside of a
/// sector of memory, the lanes that read the rest of it should be in the same plane.
#[cube]
pub(super) fn key_of(u: u32, group: u32, #[comptime] tile: Tile) -> u32 {
    if comptime!(tile.runs) { group * tile.unroll + u } else { u * comptime!(tile.units / tile.lanes) + group }
}

/// Adds each of the scores over the lanes of a group. The first [`Shares::held`] of `scores` are afterwards the sums of the part
/// that is this lane's.
#[cube]
pub(super) fn divide_sums(
    scores: &mut Array<f32>,
    lane: u32,
    exchange: &mut SharedMemory<f32>,
    #[comptime] tile: Tile,
) {
    let shares = comptime!(tile.shares());
    if comptime!(tile.planes) {
        divide(scores, lane, shares.scores, shares.parts, tile.lanes, Fold::Sum);
        #[unroll]
        for at in 0..comptime!(shares.held as usize) {
            scores[at] = lanes_sum(scores[at], exchange, shares.spread, true);
        }
    } else {
        #[unroll]
        for at in 0..comptime!(shares.scores as usize) {
            scores[at] = lanes_sum(scores[at], exchange, tile.lanes, false);
        }
    }
}

/// The sum of `value` over the lanes that hold other keys of the same rows.
#[cube]
pub(super) fn row_sum(value: f32, #[comptime] tile: Tile) -> f32 {
    let shares = comptime!(tile.shares());
    let mut sum = value;
    #[unroll]
    for step in 0..comptime!((tile.unroll / shares.keys).trailing_zeros()) {
        sum += plane_shuffle_xor(sum, comptime!(shares.spread << step));
    }
    sum
}

/// The maximum of `value`, as [`row_sum`].
#[cube]
pub(super) fn row_max(value: f32, #[comptime] tile: Tile) -> f32 {
    let shares = comptime!(tile.shares());
    let mut largest = value;
    #[unroll]
    for step in 0..comptime!((tile.unroll / shares.keys).trailing_zeros()) {
        largest = max(largest, plane_shuffle_xor(largest, comptime!(shares.spread << step)));
    }
    largest
}

/// The value of a lane that holds a part, in every lane of the group.
#[cube]
pub(super) fn of_part(value: f32, lane: u32, #[comptime] part: u32, #[comptime] tile: Tile) -> f32 {
    let shares = comptime!(tile.shares());
    let mut found = value;
    if comptime!(shares.parts > 1) {
        found = plane_shuffle(value, UNIT_POS_PLANE - lane + comptime!(part * shares.spread));
    }
    found
}
