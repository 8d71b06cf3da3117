//! From products of a query and some keys to weights: one definition for every attention kernel.

use std::f32::consts::LOG2_E;

use pulp::Simd;

use super::masks::Masks;
use super::simd::{exp2, tanh};

/// Running maximum and sum of one query (arXiv:1805.02867). Weights are powers of two, `2^(score · log2 e - max)`: an `exp2`
/// needs no rounding of its argument.
#[derive(Clone, Copy)]
pub(super) struct Running {
    /// Of the scores times log2 e.
    pub max: f32,
    pub sum: f32,
}

impl Running {
    pub const NOTHING: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };
}

/// What the sum of weighted values is multiplied by at the end, from the sum of the weights. Nothing visible gives zeros; a
/// NaN compares unequal and shows.
pub(super) fn share(sum: f32) -> f32 {
    if sum == 0.0 { 0.0 } else { 1.0 / sum }
}

/// `cap · tanh(score / cap)`.
#[inline(always)]
pub(super) fn capped<S: Simd>(simd: S, score: S::f32s, cap: f32) -> S::f32s {
    simd.mul_f32s(simd.splat_f32s(cap), tanh(simd, simd.mul_f32s(score, simd.splat_f32s(1.0 / cap))))
}

/// The slots of the keys at hand, in ascending order.
#[derive(Clone, Copy)]
pub(super) enum Slots<'a> {
    /// All from the first on.
    From { first: usize, count: usize },
    /// These.
    Kept(&'a [usize]),
}

impl Slots<'_> {
    pub fn count(self) -> usize {
        match self {
            Self::From { count, .. } => count,
            Self::Kept(slots) => slots.len(),
        }
    }

    /// The slot of a key.
    pub fn slot(self, key: usize) -> usize {
        match self {
            Self::From { first, .. } => first + key,
            Self::Kept(slots) => slots[key],
        }
    }

    /// Keys that lie in front of a slot.
    pub fn before(self, slot: usize) -> usize {
        match self {
            Self::From { first, count } => slot.saturating_sub(first).min(count),
            Self::Kept(slots) => slots.partition_point(|kept| *kept < slot),
        }
    }
}

/// The scores of one query. They, and the positions, go on to the end of the last vector.
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
    /// What comes behind the product: softcap, slopes, bias, hidden pairs. Scores outside the range may become anything.
    #[inline(always)]
    pub fn adjust(&self, (from, to): (usize, usize), scores: &mut [f32]) {
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
                *score = simd.mul_add_e_f32s(slope, simd.sub_f32s(*position, own), *score);
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

/// Scores in the range, which holds at least one key, to weights relative to the new maximum; 0 in the rest of its vectors.
/// Returns by what everything from earlier keys shrinks.
#[inline(always)]
pub(super) fn soften<S: Simd>(simd: S, scores: &mut [f32], (from, to): (usize, usize), state: &mut Running) -> f32 {
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
    // Of hidden scores alone the weights are 2^(-inf - 0).
    let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
    // Nothing before has no weight; most rows of short problems are of this kind.
    let factor = if state.max == f32::NEG_INFINITY { 0.0 } else { (state.max - base).exp2() };
    let (log2_e, base) = (simd.splat_f32s(LOG2_E), simd.splat_f32s(-base));
    let mut sum = simd.splat_f32s(0.0);
    for score in scores {
        *score = exp2(simd, simd.mul_add_e_f32s(*score, log2_e, base));
        sum = simd.add_f32s(sum, *score);
    }
    *state = Running { max, sum: state.sum * factor + simd.reduce_sum_f32s(sum) };
    factor
}
