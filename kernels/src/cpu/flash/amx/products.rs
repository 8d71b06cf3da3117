//! The products of a tile of queries and a block.

use std::f32::consts::LOG2_E;
use std::ops::Range;

use super::block::Packed;
use super::queries::PackedTile;
use super::weights::{self, Softmax, soften};
use super::{Groups, HALF, LANES, SIDE, Shape, Tile, multiply};
use crate::cpu::attention::Attention;
use crate::cpu::flash::queries::{Queries, Row};
use crate::cpu::interval::Interval;
use crate::cpu::product::amx::Tiles;

/// A tile of queries and a block.
#[derive(Clone, Copy)]
pub(in crate::cpu::flash) struct Products<'a> {
    pub tiles: &'a Tiles,
    pub query: PackedTile<'a>,
    pub block: Packed<'a>,
}

/// Memory for packed weights.
#[derive(Default)]
pub(in crate::cpu::flash) struct WeightBuffer(Vec<Tile>);

/// The whole steps that some keys are in.
fn steps(keys: Interval) -> Interval {
    Interval::new(keys.start / SIDE * SIDE, keys.end.next_multiple_of(SIDE))
}

/// The place of keys among rows of whole steps.
fn place(keys: Interval) -> Range<usize> {
    let first = steps(keys).start;
    (keys.start - first) * LANES..(keys.end - first) * LANES
}

impl Products<'_> {
    /// What the products of queries and keys are multiplied by before anything else is done to them, and what the softmax multiplies them by beside
    /// log2 e: one is the scale.
    fn scales(queries: &Queries<'_>) -> [f32; 2] {
        let Attention { masks, scale, .. } = *queries.problem;
        let is_first = masks.softcap.is_some() || masks.slopes.is_some() || masks.bias.is_some();
        // Minus infinity, a hidden score, stays so with a positive factor only.
        let softens = !is_first && scale > 0.0 && (scale * LOG2_E).is_finite();
        if softens { [1.0, scale] } else { [scale, 1.0] }
    }

    /// The scores of some keys and of those that share steps with them, `[keys, LANES]`, perhaps without the scale. Returns the place of the former.
    #[inline(always)]
    pub fn score(&self, keys: Interval, queries: &Queries<'_>, rows: &[Row], scores: &mut [f32]) -> Range<usize> {
        let all = steps(keys);
        let (head_dim, [scale, _]) = (queries.problem.head_dim, Self::scales(queries));
        let stride = head_dim.div_ceil(SIDE);
        let shape = Shape { steps: stride, parts: self.query.parts, fresh: true };
        for (at, scores) in scores.chunks_exact_mut(SIDE * LANES).take(all.len() / SIDE).enumerate() {
            let rows = Groups { tiles: self.block.keys((all.start + at * SIDE) / HALF), stride };
            for column in (0..LANES).step_by(SIDE) {
                let (tiles, stride) = self.query.columns(column / HALF);
                multiply(self.tiles, rows, Groups { tiles, stride }, shape, &mut scores[column..]);
            }
            if scale != 1.0 {
                scores.iter_mut().for_each(|score| *score *= scale);
            }
        }
        let at = |key: usize, lane: usize| (key - all.start) * LANES + lane;
        let product = |query: &[f32], key: &[f32]| scale * query.iter().zip(key).map(|(a, b)| a * b).sum::<f32>();
        for (key, own) in self.block.extreme_keys().filter(|(key, _)| keys.slots().contains(key)) {
            for (lane, row) in rows.iter().enumerate() {
                scores[at(key, lane)] = product(queries.query(*row), own);
            }
        }
        for lane in (0..LANES).filter(|lane| self.query.extreme >> lane & 1 == 1) {
            for key in keys.slots() {
                let own = self.block.key(key);
                scores[at(key, lane)] = product(queries.query(rows[lane]), &own);
            }
        }
        place(keys)
    }

    /// Makes weights of the scores of some keys, scales the contexts, `[features, LANES]` with features in whole steps, and adds the weighted values.
    /// `scores` is `[keys, LANES]`, for whole steps, and overwritten; `running` are the maxima and sums of the lanes.
    #[inline(always)]
    pub fn add(
        &self,
        (keys, queries): (Interval, &Queries<'_>),
        scores: &mut [f32],
        WeightBuffer(packed): &mut WeightBuffer,
        running: &mut [f32],
        contexts: &mut [f32],
    ) {
        let (all, place) = (steps(keys), place(keys));
        let (count, weights) = (all.len() / SIDE, &mut scores[..all.len() * LANES]);
        weights[..place.start].fill(f32::NEG_INFINITY);
        weights[place.end..].fill(f32::NEG_INFINITY);
        packed.resize(LANES / HALF * weights::PARTS * count, Tile::default());
        let [_, scale] = Self::scales(queries);
        let (maxima, sums) = running.split_at_mut(LANES);
        let (Some(maxima), Some(sums)) = (maxima.first_chunk_mut(), sums.first_chunk_mut()) else {
            unreachable!("maxima and sums of the lanes");
        };
        let softmax = Softmax { factor: scale * LOG2_E, keeps_weights: self.block.extreme_values().next().is_some() };
        assert!(weights::is_available(), "the processor has no AVX512-BF16");
        // SAFETY: the processor has the instructions.
        let factors = unsafe { soften(softmax, weights, [maxima, sums], packed) };
        if factors.iter().any(|factor| *factor != 1.0) {
            for context in contexts.as_chunks_mut::<LANES>().0 {
                context.iter_mut().zip(&factors).for_each(|(context, factor)| *context *= factor);
            }
        }
        let shape = Shape { steps: count, parts: weights::PARTS, fresh: false };
        let columns = weights::PARTS * count;
        for (at, contexts) in contexts.chunks_exact_mut(SIDE * LANES).enumerate() {
            let (tiles, stride) = self.block.values(2 * at, all.start / SIDE);
            for column in (0..LANES).step_by(SIDE) {
                let weights = Groups { tiles: &packed[column / HALF * columns..], stride: columns };
                multiply(self.tiles, Groups { tiles, stride }, weights, shape, &mut contexts[column..]);
            }
        }
        for (key, value) in self.block.extreme_values().filter(|(key, _)| keys.slots().contains(key)) {
            let weights = &weights[(key - all.start) * LANES..][..LANES];
            let contexts = contexts.as_chunks_mut::<LANES>().0.iter_mut().zip(value);
            for (contexts, value) in contexts.filter(|(_, value)| !value.is_finite()) {
                for (context, weight) in contexts.iter_mut().zip(weights).filter(|(_, weight)| **weight != 0.0) {
                    *context += weight * value;
                }
            }
        }
    }
}
