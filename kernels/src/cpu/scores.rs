//! From products of queries and keys to weights: one definition of the arithmetic for every attention kernel.
//!
//! [`Row`] and [`soften`] apply it to one query whose keys fill the lanes of vectors; a tile of [`flash`](super::flash) has one
//! query to a lane.

use std::f32::consts::LOG2_E;

use pulp::Simd;

use super::masks::Masks;
use super::simd::{exp2, tanh};
use crate::cpu::interval::Interval;

/// Running maximum and sum of one query (arXiv:1805.02867). Weights are powers of two, `2^(score · log2 e - max)`: `exp2`
/// needs no reduction by ln 2.
#[derive(Clone, Copy)]
pub(super) struct Running {
    /// Of the scores times log2 e.
    pub max: f32,
    pub sum: f32,
}

impl Running {
    pub const NOTHING: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };
}

/// The final factor of the sum of weighted values, from the sum of the weights. A query that sees nothing gives zeros; a NaN
/// compares unequal and stays visible.
pub(super) fn share(sum: f32) -> f32 {
    if sum == 0.0 { 0.0 } else { 1.0 / sum }
}

/// The sum of the weights of a query, with that of its sink. A sink far above all scores leaves nothing for them.
pub(super) fn with_sink(Running { max, sum }: Running, sink: Option<f32>) -> f32 {
    let Some(sink) = sink else { return sum };
    // The maximum may be -inf, and the difference of two infinities is NaN.
    let sink = (sink * LOG2_E).clamp(f32::MIN, f32::MAX);
    sum + (sink - max).exp2()
}

/// `cap · tanh(score / cap)`.
#[inline(always)]
pub(super) fn capped<S: Simd>(simd: S, score: S::f32s, cap: f32) -> S::f32s {
    simd.mul_f32s(simd.splat_f32s(cap), tanh(simd, simd.mul_f32s(score, simd.splat_f32s(1.0 / cap))))
}

/// `score + slope · (key position - query position)`.
#[inline(always)]
pub(super) fn sloped<S: Simd>(simd: S, score: S::f32s, slope: S::f32s, key: S::f32s, query: S::f32s) -> S::f32s {
    simd.mul_add_e_f32s(slope, simd.sub_f32s(key, query), score)
}

/// The weight of a score, from minus the maximum.
#[inline(always)]
pub(super) fn weight<S: Simd>(simd: S, score: S::f32s, minus_max: S::f32s) -> S::f32s {
    exp2(simd, simd.mul_add_e_f32s(score, simd.splat_f32s(LOG2_E), minus_max))
}

/// The slots of the keys of a block, in ascending order.
#[derive(Clone, Copy)]
pub(super) enum Slots<'a> {
    /// Every slot of an interval.
    All(Interval),
    /// These.
    Kept(&'a [usize]),
}

impl Slots<'_> {
    pub fn count(self) -> usize {
        match self {
            Self::All(all) => all.len(),
            Self::Kept(slots) => slots.len(),
        }
    }

    /// The slot of a key.
    pub fn slot(self, key: usize) -> usize {
        match self {
            Self::All(all) => all.start + key,
            Self::Kept(slots) => slots[key],
        }
    }

    /// Keys before a slot.
    pub fn before(self, slot: usize) -> usize {
        match self {
            Self::All(all) => slot.saturating_sub(all.start).min(all.len()),
            Self::Kept(slots) => slots.partition_point(|kept| *kept < slot),
        }
    }

    /// The keys in an interval of slots.
    pub fn keys(self, slots: Interval) -> Interval {
        Interval::new(self.before(slots.start), self.before(slots.end))
    }
}

/// The scores of one query. They, and the positions, extend to the end of the last vector.
pub(super) struct Row<'a, S> {
    pub simd: S,
    pub masks: &'a Masks<'a>,
    pub batch: usize,
    pub head: usize,
    pub token: usize,
    pub slots: Slots<'a>,
    /// The position of each key, for the slopes.
    pub positions: &'a [f32],
}

impl<S: Simd> Row<'_, S> {
    /// Applies softcap, slopes, bias and hidden pairs to the products, in this order. Scores of other keys are unspecified.
    #[inline(always)]
    pub fn adjust(&self, keys: Interval, scores: &mut [f32]) {
        let (from, to) = (keys.start, keys.end);
        let masks = self.masks;
        if masks.softcap.is_none() && masks.slopes.is_none() && masks.bias.is_none() && masks.pairs.is_none() {
            return;
        }
        let simd = self.simd;
        let whole = from / S::F32_LANES * S::F32_LANES..to.next_multiple_of(S::F32_LANES);
        if let Some(cap) = masks.softcap {
            for score in S::as_mut_simd_f32s(&mut scores[whole.clone()]).0 {
                *score = capped(simd, *score, cap);
            }
        }
        if let Some(slopes) = masks.slopes {
            let slope = simd.splat_f32s(slopes[self.head]);
            let own = simd.splat_f32s(masks.position(self.batch, masks.starts[self.batch] + self.token));
            let positions = S::as_simd_f32s(&self.positions[whole.clone()]).0;
            for (score, position) in S::as_mut_simd_f32s(&mut scores[whole]).0.iter_mut().zip(positions) {
                *score = sloped(simd, *score, slope, *position, own);
            }
        }
        if let Some(bias) = &masks.bias {
            let bias = bias.keys(self.batch, self.head, self.token);
            for (key, score) in (from..to).zip(&mut scores[from..to]) {
                *score += bias[self.slots.slot(key) % bias.len()];
            }
        }
        if let Some(pairs) = &masks.pairs {
            let pairs = pairs.keys(self.batch, self.head, self.token);
            for (key, score) in (from..to).zip(&mut scores[from..to]) {
                if pairs[self.slots.slot(key) % pairs.len()] {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// Replaces the scores of some keys, at least one, by weights relative to the new maximum, and by 0 in the rest of their vectors.
/// Returns the factor for the sums of earlier keys.
#[inline(always)]
pub(super) fn soften<S: Simd>(simd: S, scores: &mut [f32], keys: Interval, state: &mut Running) -> f32 {
    let (from, to) = (keys.start, keys.end);
    let lanes = S::F32_LANES;
    let hidden = simd.splat_f32s(f32::NEG_INFINITY);
    let scores = S::as_mut_simd_f32s(&mut scores[from / lanes * lanes..to.next_multiple_of(lanes)]).0;

    // Only the vectors at both ends hold scores outside the range.
    let edges = [(0, from % lanes, lanes), (scores.len() - 1, 0, (to - 1) % lanes + 1)];
    for (vector, from, to) in edges {
        let elements: &mut [f32] = bytemuck::cast_slice_mut(&mut scores[vector..=vector]);
        elements[..from].fill(f32::NEG_INFINITY);
        elements[to..].fill(f32::NEG_INFINITY);
    }
    let mut largest = hidden;
    for score in &*scores {
        largest = simd.max_f32s(largest, *score);
    }
    let max = state.max.max(simd.reduce_max_f32s(largest) * LOG2_E);
    // If all scores are hidden, the weights are 2^(-inf - 0).
    let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
    // Without earlier keys there is nothing to scale; most rows of short problems are of this kind.
    let factor = if state.max == f32::NEG_INFINITY { 0.0 } else { (state.max - base).exp2() };
    let minus_max = simd.splat_f32s(-base);
    let mut sum = simd.splat_f32s(0.0);
    for score in scores {
        *score = weight(simd, *score, minus_max);
        sum = simd.add_f32s(sum, *score);
    }
    *state = Running { max, sum: state.sum * factor + simd.reduce_sum_f32s(sum) };
    factor
}
