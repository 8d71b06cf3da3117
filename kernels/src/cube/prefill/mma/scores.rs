//! From products to scores.

use cubecl::prelude::*;

use super::tile::{Scoring, Sizes, Tile, register, tile_and_head};
use crate::cube::fragment::Pair;
use crate::cube::masks::{HIDDEN, Masks, Query};

/// The first key that a unit has of every 16.
#[cube]
fn lane_key(#[comptime] tile: Tile) -> u32 {
    UNIT_POS % 4 * if comptime!(tile.quads) { 4u32 } else { 2u32 }
}

/// From there to its key `e` of an eight.
#[cube]
fn key_offset(eight: u32, #[comptime] e: u32, #[comptime] tile: Tile) -> u32 {
    if comptime!(tile.quads) { eight / 2 * 16 + eight % 2 * 2 + e } else { eight * 8 + e }
}

/// The row of a plane's queries, of which this unit has a part, as a query of its head.
#[cube]
pub(super) fn query_of(row: u32, start: u32, sizes: &Sizes, #[comptime] tile: Tile) -> Query {
    let (_, kv_head) = tile_and_head(tile);
    let (token, member) = sizes.by_group.div_mod(row);
    Query { batch: CUBE_POS_Z, head: kv_head * sizes.group + member, token, slot: start + token }
}

/// What the scores of a row need in every step.
#[derive(CubeType)]
pub(super) struct Rows {
    /// Slots of the queries.
    slots: Array<f32>,
    /// Slopes of ALiBi, in units of the products where these are not scaled.
    slopes: Array<f32>,
    /// Where their biases begin.
    biases: Array<u32>,
}

/// That of the rows of this unit, of which the first is `own_row`.
#[cube]
pub(super) fn rows<M: Int, E: Float>(
    masks: &Masks<M, E>,
    own_row: u32,
    start: u32,
    sizes: &Sizes,
    #[comptime] tile: Tile,
) -> Rows {
    let mut slots = Array::<f32>::new(comptime!(tile.unit_rows()));
    let mut slopes = Array::<f32>::new(comptime!(tile.unit_rows()));
    let mut biases = Array::<u32>::new(comptime!(tile.unit_rows()));
    if comptime!(matches!(tile.scoring, Scoring::Slopes | Scoring::Masked { interior: true })) {
        #[unroll(!tile.emulate)]
        for r in 0..comptime!(tile.unit_rows()) {
            // Those after the last one are read, and not written.
            let row = min(own_row + r as u32 * 8, sizes.group * sizes.tokens - 1);
            let query = query_of(row, start, sizes, tile);
            slots[r] = f32::cast_from(query.slot);
            let slope = masks.slope(query.head);
            slopes[r] = if comptime!(tile.scoring == Scoring::Slopes) { slope / sizes.scale } else { slope };
            biases[r] = masks.bias_place(query);
        }
    }
    Rows { slots, slopes, biases }
}

/// What ALiBi makes of the distance of each row from the first key that this unit has.
#[cube]
pub(super) fn shifts(rows: &Rows, first_key: u32, #[comptime] tile: Tile) -> Array<f32> {
    let mut shifts = Array::<f32>::new(comptime!(tile.unit_rows()));
    if comptime!(tile.scoring == Scoring::Slopes) {
        let key = f32::cast_from(first_key + lane_key(tile));
        #[unroll(!tile.emulate)]
        for r in 0..comptime!(tile.unit_rows()) {
            shifts[r] = rows.slopes[r] * (key - rows.slots[r]);
        }
    }
    shifts
}

/// Adds to products what ALiBi makes of the distance from there to each key. [`shifts`] are the rest, which all products of a row have in common.
#[cube]
pub(super) fn add_slopes(scores: &mut Array<Vector<f32, Pair>>, rows: &Rows, #[comptime] tile: Tile) {
    let eights = comptime!(tile.keys / 8);
    #[unroll(!tile.emulate)]
    for r in 0..comptime!(tile.unit_rows()) {
        let slope = rows.slopes[r];
        #[unroll(!tile.emulate)]
        for eight in 0..eights {
            let at = register(r, eight as usize, comptime!(eights as usize));
            let mut pair = scores[at];
            #[unroll]
            for e in 0..2u32 {
                pair[e as usize] = fma(slope, f32::cast_from(key_offset(eight, e, tile)), pair[e as usize]);
            }
            scores[at] = pair;
        }
    }
}

/// Scales and adds, where no key is hidden.
#[cube]
pub(super) fn add_all<M: Int, E: Float>(
    scores: &mut Array<Vector<f32, Pair>>,
    masks: &Masks<M, E>,
    rows: &Rows,
    first_key: u32,
    sizes: &Sizes,
    #[comptime] tile: Tile,
) {
    let eights = comptime!(tile.keys / 8);
    #[unroll(!tile.emulate)]
    for r in 0..comptime!(tile.unit_rows() as u32) {
        let slope = rows.slopes[r as usize];
        let key = first_key + lane_key(tile);
        let distance = f32::cast_from(key) - rows.slots[r as usize];
        #[unroll(!tile.emulate)]
        for sixteen in 0..comptime!(eights / 2) {
            let biases = masks.biases(rows.biases[r as usize], key, sixteen * 16, tile.quads);
            #[unroll]
            for half in 0..2u32 {
                let eight = sixteen * 2 + half;
                let at = register(r as usize, eight as usize, comptime!(eights as usize));
                let mut pair = scores[at];
                #[unroll]
                for e in 0..2u32 {
                    let bias = biases[comptime!((half * 2 + e) as usize)];
                    let distance = distance + f32::cast_from(key_offset(eight, e, tile));
                    let mut score = masks.add(pair[e as usize] * sizes.scale, slope, distance, bias);
                    if comptime!(tile.emulate) {
                        score = select(score < HIDDEN, HIDDEN, score);
                    }
                    pair[e as usize] = score;
                }
                scores[at] = pair;
            }
        }
    }
}

/// Hides the keys outside the range of each row, with [`HIDDEN`] for their scores or 0 for their probabilities.
#[cube]
pub(super) fn hide_range<M: Int, E: Float>(
    scores: &mut Array<Vector<f32, Pair>>,
    #[comptime] hidden: f32,
    masks: &Masks<M, E>,
    own_row: u32,
    first_key: u32,
    start: u32,
    end: u32,
    sizes: &Sizes,
    #[comptime] tile: Tile,
) {
    let eights = comptime!(tile.keys / 8);
    #[unroll(!tile.emulate)]
    for r in 0..comptime!(tile.unit_rows() as u32) {
        let slot = start + sizes.by_group.div(own_row + r * 8);
        // Counted from the first key of the unit, so that those of its keys are constants.
        let key = first_key + lane_key(tile);
        let from = max(masks.first(slot), key) - key;
        let to = max(masks.last_end(slot, end), key) - key;
        #[unroll(!tile.emulate)]
        for eight in 0..eights {
            let place = register(r as usize, eight as usize, comptime!(eights as usize));
            let mut pair = scores[place];
            #[unroll]
            for e in 0..2u32 {
                let at = key_offset(eight, e, tile);
                pair[e as usize] = select(at >= from && at < to, pair[e as usize], hidden);
            }
            scores[place] = pair;
        }
    }
}

/// Scales, adds and hides.
#[cube]
pub(super) fn score<M: Int, E: Float>(
    scores: &mut Array<Vector<f32, Pair>>,
    masks: &Masks<M, E>,
    own_row: u32,
    first_key: u32,
    start: u32,
    end: u32,
    sizes: &Sizes,
    #[comptime] tile: Tile,
) {
    let eights = comptime!(tile.keys / 8);
    #[unroll(!tile.emulate)]
    for eight in 0..eights {
        #[unroll]
        for e in 0..2u32 {
            let at = first_key + lane_key(tile) + key_offset(eight, e, tile);
            let mut seen = at < end;
            if seen {
                seen = !masks.hides_key(CUBE_POS_Z, at);
            }
            #[unroll(!tile.emulate)]
            for r in 0..comptime!(tile.unit_rows() as u32) {
                let place = register(r as usize, eight as usize, comptime!(eights as usize));
                let query = query_of(own_row + r * 8, start, sizes, tile);
                let mut pair = scores[place];
                let raw = pair[e as usize] * sizes.scale;
                let mut score = HIDDEN.runtime();
                let in_range = at >= masks.first(query.slot) && at < masks.last_end(query.slot, end);
                if seen && query.token < sizes.tokens && in_range {
                    score = masks.score(raw, query, at);
                }
                pair[e as usize] = score;
                scores[place] = pair;
            }
        }
    }
}
