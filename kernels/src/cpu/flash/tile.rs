//! A tile of queries and a block of keys: scores, softmax, weighted values, one query to a lane.

use std::f32::consts::LOG2_E;

use pulp::Simd;

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::block::{Block, WideRows};
use super::queries::{Queries, Row};
use crate::cpu::interval::Interval;
use crate::cpu::lanes::{MOST_LANES, dot};
use crate::cpu::scores::{Slots, capped, sloped, weight};
use crate::cpu::simd::exp2;
use crate::cpu::transpose::into_lanes;

/// A query for each lane of `V` vectors of `S`, and a block of keys.
pub(super) struct Tile<'a, S, const V: usize> {
    pub simd: S,
    pub queries: &'a Queries<'a>,
    /// The query of each lane.
    pub rows: &'a [Row],
    pub block: &'a Block<'a>,
    pub products: Products<'a>,
    /// Keys whose scores are computed before their values are added.
    pub part: usize,
}

/// How queries are multiplied by keys, and weights by values.
#[derive(Clone, Copy)]
pub(super) enum Products<'a> {
    F32 {
        /// `[head_dim, lanes]`, scaled.
        query: &'a [f32],
        block: WideRows<'a>,
    },
    #[cfg(target_arch = "x86_64")]
    Amx(amx::Products<'a>),
}

/// Memory for a tile, each `[part, lanes]`.
#[derive(Default)]
pub(super) struct TileBuffer {
    scores: Vec<f32>,
    bias: Vec<f32>,
    #[cfg(target_arch = "x86_64")]
    weights: amx::WeightBuffer,
}

impl TileBuffer {
    pub fn resize(&mut self, len: usize) {
        self.scores.resize(len, 0.0);
        self.bias.resize(len, 0.0);
    }
}

/// The keys of a block that each lane sees.
struct Seen {
    by_lane: [Interval; MOST_LANES],
    /// From the first to the last key that a lane sees.
    some: Interval,
    /// The keys that every lane sees.
    all: Interval,
}

impl<S: Simd, const V: usize> Tile<'_, S, V> {
    const LANES: usize = V * S::F32_LANES;

    /// Adds the block to the contexts of the tile, `[value_dim, lanes]`, which have the maxima and sums `[2, lanes]`.
    #[inline(always)]
    pub fn attend(&self, buffer: &mut TileBuffer, contexts: &mut [f32], running: &mut [f32]) {
        let seen = self.seen();
        if seen.some.is_empty() {
            return;
        }
        for start in (seen.some.start / self.part * self.part..seen.some.end).step_by(self.part) {
            let keys = Interval::new(start, start + self.part).and(seen.some);
            let place = match &self.products {
                Products::F32 { query, block } => {
                    let place = 0..keys.len() * Self::LANES;
                    let scores = &mut buffer.scores[place.clone()];
                    self.score(keys, (query, block.keys), S::as_mut_simd_f32s(scores).0.as_chunks_mut().0);
                    place
                }
                #[cfg(target_arch = "x86_64")]
                Products::Amx(products) => products.score(keys, self.queries, self.rows, &mut buffer.scores),
            };
            let scores = &mut buffer.scores[place];
            self.adjust(keys, scores, &mut buffer.bias);
            if keys.start < seen.all.start || keys.end > seen.all.end {
                self.hide(keys, &seen, scores);
            }
            match &self.products {
                Products::F32 { block, .. } => {
                    let scores = S::as_mut_simd_f32s(scores).0.as_chunks_mut().0;
                    let factors = self.soften(scores, running);
                    self.add(keys, block, scores, &factors, contexts);
                }
                #[cfg(target_arch = "x86_64")]
                Products::Amx(products) => {
                    let keys = (keys, self.queries);
                    products.add(keys, &mut buffer.scores, &mut buffer.weights, running, contexts);
                }
            }
        }
    }

    /// The keys of the block that the lanes see.
    #[inline(always)]
    fn seen(&self) -> Seen {
        let slots = self.block.slots;
        let none = Interval::new(0, 0);
        let mut by_lane = [none; MOST_LANES];
        let mut all = Interval::new(0, usize::MAX);
        let mut last = (none, none);
        for (keys, row) in by_lane.iter_mut().zip(self.rows) {
            if row.slots != last.0 {
                last = (row.slots, slots.keys(row.slots));
            }
            *keys = last.1;
            all = all.and(*keys);
        }
        let some = Interval::around(by_lane.into_iter().filter(|keys| !keys.is_empty()));
        Seen { by_lane, some, all }
    }

    /// The products of keys and queries.
    #[inline(always)]
    fn score(&self, keys: Interval, (query, rows): (&[f32], &[f32]), scores: &mut [[S::f32s; V]]) {
        let head_dim = self.queries.problem.head_dim;
        let query = S::as_simd_f32s(query).0.as_chunks::<V>().0;
        let rows = &rows[keys.start * head_dim..keys.end * head_dim];
        let mut at = 0;
        while at < keys.len() {
            let (rows, scores) = (&rows[at * head_dim..], &mut scores[at..]);
            at += match keys.len() - at {
                1 => self.products::<1>(query, rows, scores),
                2 => self.products::<2>(query, rows, scores),
                3 => self.products::<3>(query, rows, scores),
                4 | 8 => self.products::<4>(query, rows, scores),
                5 => self.products::<5>(query, rows, scores),
                _ => self.products::<6>(query, rows, scores),
            };
        }
    }

    /// The scores of the first `N` keys; returns `N`.
    #[inline(always)]
    fn products<const N: usize>(&self, query: &[[S::f32s; V]], keys: &[f32], scores: &mut [[S::f32s; V]]) -> usize {
        let head_dim = self.queries.problem.head_dim;
        let mut sums = [[self.simd.splat_f32s(0.0); V]; N];
        dot(self.simd, query, keys, head_dim, &mut sums);
        scores[..N].copy_from_slice(&sums);
        N
    }

    /// Applies softcap, slopes, bias and hidden pairs to the products, in this order.
    #[inline(always)]
    fn adjust(&self, keys: Interval, scores: &mut [f32], bias: &mut [f32]) {
        let Queries { problem, batch, .. } = *self.queries;
        let masks = &problem.masks;
        if let Some(cap) = masks.softcap {
            for score in S::as_mut_simd_f32s(scores).0 {
                *score = capped(self.simd, *score, cap);
            }
        }
        if let Some(slopes) = masks.slopes {
            self.slope(keys, slopes, scores);
        }
        if let Some(all) = &masks.bias {
            let bias = &mut bias[..scores.len()];
            let row = |lane: usize| all.keys(batch, self.rows[lane].head, self.rows[lane].token);
            match self.block.slots {
                Slots::All(slots) if all.shape[3] > 1 => {
                    into_lanes(|lane| &row(lane)[slots.start + keys.start..slots.start + keys.end], Self::LANES, bias);
                }
                slots => {
                    for lane in 0..Self::LANES {
                        let row = row(lane);
                        for (key, bias) in keys.slots().zip(bias[lane..].iter_mut().step_by(Self::LANES)) {
                            *bias = row[slots.slot(key) % row.len()];
                        }
                    }
                }
            }
            scores.iter_mut().zip(&*bias).for_each(|(score, bias)| *score += *bias);
        }
        if let Some(pairs) = &masks.pairs {
            for (lane, row) in self.rows.iter().enumerate() {
                let pairs = pairs.keys(batch, row.head, row.token);
                for (key, score) in keys.slots().zip(scores[lane..].iter_mut().step_by(Self::LANES)) {
                    if pairs[self.block.slots.slot(key) % pairs.len()] {
                        *score = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }

    /// Adds each head's slope times the distance.
    #[inline(always)]
    fn slope(&self, keys: Interval, slopes: &[f32], scores: &mut [f32]) {
        let Queries { problem, batch, .. } = *self.queries;
        let (simd, masks) = (self.simd, &problem.masks);
        let slope = Self::by_lane(|lane| slopes[self.rows[lane].head]);
        let own = Self::by_lane(|lane| masks.position(batch, masks.starts[batch] + self.rows[lane].token));
        let positions = &self.block.positions[keys.slots()];
        for (scores, position) in S::as_mut_simd_f32s(scores).0.as_chunks_mut::<V>().0.iter_mut().zip(positions) {
            let position = simd.splat_f32s(*position);
            for v in 0..V {
                scores[v] = sloped(simd, scores[v], slope[v], position, own[v]);
            }
        }
    }

    /// A number for each lane.
    #[inline(always)]
    fn by_lane(number: impl Fn(usize) -> f32) -> [S::f32s; V] {
        let mut numbers = [0.0; MOST_LANES];
        for (lane, place) in numbers[..Self::LANES].iter_mut().enumerate() {
            *place = number(lane);
        }
        S::as_simd_f32s(&numbers).0.as_chunks().0[0]
    }

    /// Hides the keys that a lane does not see.
    #[inline(always)]
    fn hide(&self, keys: Interval, seen: &Seen, scores: &mut [f32]) {
        let simd = self.simd;
        // A block has so few keys that f32 holds their numbers exactly.
        let from = Self::by_lane(|lane| seen.by_lane[lane].start as f32);
        let to = Self::by_lane(|lane| seen.by_lane[lane].end as f32);
        let hidden = simd.splat_f32s(f32::NEG_INFINITY);
        for (key, scores) in keys.slots().zip(S::as_mut_simd_f32s(scores).0.as_chunks_mut::<V>().0) {
            let key = simd.splat_f32s(key as f32);
            for v in 0..V {
                let before_end = simd.select_f32s(simd.less_than_f32s(key, to[v]), scores[v], hidden);
                scores[v] = simd.select_f32s(simd.less_than_f32s(key, from[v]), hidden, before_end);
            }
        }
    }

    /// Replaces scores by weights relative to the new maxima. Returns the factors for the sums of earlier keys.
    #[inline(always)]
    fn soften(&self, scores: &mut [[S::f32s; V]], running: &mut [f32]) -> [S::f32s; V] {
        let simd = self.simd;
        let [maxima, sums] = S::as_mut_simd_f32s(running).0.as_chunks_mut::<V>().0 else {
            unreachable!("maxima and sums of the lanes");
        };
        let hidden = simd.splat_f32s(f32::NEG_INFINITY);
        let mut largest = [hidden; V];
        for scores in &*scores {
            for v in 0..V {
                largest[v] = simd.max_f32s(largest[v], scores[v]);
            }
        }
        let log2_e = simd.splat_f32s(LOG2_E);
        let (mut factors, mut base) = ([hidden; V], [hidden; V]);
        for v in 0..V {
            let max = simd.max_f32s(maxima[v], simd.mul_f32s(largest[v], log2_e));
            // If all scores are hidden, the weights are 2^(-inf - 0).
            let nothing = simd.equal_f32s(max, hidden);
            base[v] = simd.select_f32s(nothing, simd.splat_f32s(0.0), max);
            factors[v] = exp2(simd, simd.sub_f32s(maxima[v], base[v]));
            maxima[v] = max;
            base[v] = simd.neg_f32s(base[v]);
        }
        let mut totals = [hidden; V];
        for v in 0..V {
            totals[v] = simd.mul_f32s(sums[v], factors[v]);
        }
        for scores in scores {
            for v in 0..V {
                scores[v] = weight(simd, scores[v], base[v]);
                totals[v] = simd.add_f32s(totals[v], scores[v]);
            }
        }
        *sums = totals;
        factors
    }

    /// Scales the contexts and adds the weighted values of some keys.
    #[inline(always)]
    fn add(
        &self,
        keys: Interval,
        block: &WideRows<'_>,
        weights: &[[S::f32s; V]],
        factors: &[S::f32s; V],
        contexts: &mut [f32],
    ) {
        let value_dim = self.queries.problem.value_dim;
        let values = (&block.values[keys.start * value_dim..keys.end * value_dim], block.finite);
        let contexts = S::as_mut_simd_f32s(contexts).0.as_chunks_mut::<V>().0;
        let mut first = 0;
        while first < value_dim {
            first += match value_dim - first {
                1 => self.features::<1>(values, first, weights, factors, contexts),
                2 => self.features::<2>(values, first, weights, factors, contexts),
                3 => self.features::<3>(values, first, weights, factors, contexts),
                4 | 8 => self.features::<4>(values, first, weights, factors, contexts),
                5 => self.features::<5>(values, first, weights, factors, contexts),
                _ => self.features::<6>(values, first, weights, factors, contexts),
            };
        }
    }

    /// The features from `first` on, `N` of them; returns `N`.
    #[inline(always)]
    fn features<const N: usize>(
        &self,
        (values, finite): (&[f32], bool),
        first: usize,
        weights: &[[S::f32s; V]],
        factors: &[S::f32s; V],
        contexts: &mut [[S::f32s; V]],
    ) -> usize {
        let contexts = &mut contexts[first..first + N];
        match finite {
            true => self.weigh::<N, true>(values, first, weights, factors, contexts),
            false => self.weigh::<N, false>(values, first, weights, factors, contexts),
        }
        N
    }

    /// Scales the contexts of `N` features from `first` on, and adds the weighted values. Unless all values are `FINITE`, those
    /// with a weight of zero are left out.
    #[inline(always)]
    fn weigh<const N: usize, const FINITE: bool>(
        &self,
        values: &[f32],
        first: usize,
        weights: &[[S::f32s; V]],
        factors: &[S::f32s; V],
        contexts: &mut [[S::f32s; V]],
    ) {
        let simd = self.simd;
        let zero = simd.splat_f32s(0.0);
        let mut sums = [[zero; V]; N];
        for n in 0..N {
            for v in 0..V {
                sums[n][v] = simd.mul_f32s(contexts[n][v], factors[v]);
            }
        }
        for (value, weights) in values.chunks_exact(self.queries.problem.value_dim).zip(weights) {
            let value = &value[first..first + N];
            for n in 0..N {
                let value = simd.splat_f32s(value[n]);
                for v in 0..V {
                    let added = simd.mul_add_e_f32s(value, weights[v], sums[n][v]);
                    sums[n][v] = match FINITE {
                        true => added,
                        false => simd.select_f32s(simd.equal_f32s(weights[v], zero), sums[n][v], added),
                    };
                }
            }
        }
        contexts.copy_from_slice(&sums);
    }
}
