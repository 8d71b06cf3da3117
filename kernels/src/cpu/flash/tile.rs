//! A tile of queries and a block of keys: scores, softmax, weighted values.

use std::ops::Range;

use pulp::Simd;

use super::pack::{Block, Queries};
use super::{MOST_KEYS, ROWS};
use crate::cpu::scores::{Row, Running, soften};

/// `ROWS` queries and a block of keys. Vectors of `S` lie `V` to a panel.
pub(super) struct Tile<'a, S, const V: usize> {
    pub simd: S,
    pub queries: &'a Queries<'a>,
    /// The first row of the tile.
    pub first: usize,
    /// `[head_dim, ROWS]`, scaled.
    pub query: &'a [f32],
    /// The slots that each row may see: first, and behind the last.
    pub ranges: &'a [(usize, usize)],
    pub block: &'a Block<'a>,
}

/// The scores of a tile and a block. Rows lie a fixed distance apart, so that one address serves all.
pub(super) type Scores = [[f32; MOST_KEYS + 16]; ROWS];

impl<S: Simd, const V: usize> Tile<'_, S, V> {
    /// Adds the block to the contexts of the tile's queries, `[ROWS, width]`. `scores` is room.
    #[inline(always)]
    pub fn attend(&self, scores: &mut Scores, contexts: &mut [f32], running: &mut [Running]) {
        let mut ranges = [(0, 0); ROWS];
        let (mut from, mut to) = (usize::MAX, 0);
        for (range, slots) in ranges.iter_mut().zip(self.ranges) {
            *range = (self.block.slots.before(slots.0), self.block.slots.before(slots.1));
            if range.0 < range.1 {
                (from, to) = (from.min(range.0), to.max(range.1));
            }
        }
        if from >= to {
            return;
        }
        // Whole vectors from the first key that a query of the tile sees to the last.
        let seen = from / S::F32_LANES * S::F32_LANES..to.next_multiple_of(S::F32_LANES);
        self.score(scores, &seen);
        let mut factors = [1.0; ROWS];
        for (row, range) in ranges.into_iter().enumerate() {
            if range.0 < range.1 {
                self.row(row).adjust(range, &mut scores[row]);
                let scores = &mut scores[row][seen.clone()];
                factors[row] = soften(self.simd, scores, seen.start, range, &mut running[row]);
            } else {
                scores[row][seen.clone()].fill(0.0);
            }
        }
        if !self.block.finite {
            self.add_seen(scores, from..to, &factors, contexts);
            return;
        }
        let vectors = self.block.width / S::F32_LANES;
        for first in (0..vectors).step_by(V) {
            // Fewer vectors come with several sums each, so that a multiplication does not wait for the one before.
            match ((vectors - first).min(V), V) {
                (1, 4) => self.add::<1, 4>(scores, from..to, first, &factors, contexts),
                (1, _) => self.add::<1, 2>(scores, from..to, first, &factors, contexts),
                (2, 4) => self.add::<2, 2>(scores, from..to, first, &factors, contexts),
                (2, _) => self.add::<2, 1>(scores, from..to, first, &factors, contexts),
                (3, _) => self.add::<3, 1>(scores, from..to, first, &factors, contexts),
                _ => self.add::<4, 1>(scores, from..to, first, &factors, contexts),
            }
        }
    }

    /// What decides over the scores of a row.
    fn row(&self, row: usize) -> Row<'_, S> {
        let Queries { problem, batch, .. } = *self.queries;
        let (head, token) = self.queries.place(self.first + row);
        let Block { slots, positions, .. } = *self.block;
        Row { simd: self.simd, masks: &problem.masks, batch, head, token, slots, positions }
    }

    /// The products of the queries and the keys `seen`, in whole vectors of their panels.
    #[inline(always)]
    fn score(&self, scores: &mut Scores, seen: &Range<usize>) {
        let panel = self.block.panel;
        let size = self.queries.problem.head_dim * panel;
        for index in seen.start / panel..seen.end.div_ceil(panel) {
            let keys = &self.block.keys[index * size..][..size];
            let first = index * panel;
            match ((seen.end - first) / S::F32_LANES).min(V) {
                1 => self.products::<1>(keys, scores, first),
                2 => self.products::<2>(keys, scores, first),
                3 => self.products::<3>(keys, scores, first),
                _ => self.products::<4>(keys, scores, first),
            }
        }
    }

    /// The first `W` vectors of a panel.
    #[inline(always)]
    fn products<const W: usize>(&self, keys: &[f32], scores: &mut Scores, first: usize) {
        let simd = self.simd;
        let mut sums = [[simd.splat_f32s(0.0); W]; ROWS];
        let queries = self.query.as_chunks::<ROWS>().0;
        let keys = S::as_simd_f32s(keys).0.as_chunks::<V>().0;
        for (query, key) in queries.iter().zip(keys) {
            for row in 0..ROWS {
                let feature = simd.splat_f32s(query[row]);
                for v in 0..W {
                    sums[row][v] = simd.mul_add_e_f32s(feature, key[v], sums[row][v]);
                }
            }
        }
        for (row, sums) in scores.iter_mut().zip(&sums) {
            let row = &mut row[first..][..W * S::F32_LANES];
            S::as_mut_simd_f32s(row).0.copy_from_slice(sums);
        }
    }

    /// Shrinks the vectors from `first` on of every context, `W` of them, and adds the weighted values of some keys, `U` of
    /// them at once.
    #[inline(always)]
    fn add<const W: usize, const U: usize>(
        &self,
        scores: &Scores,
        keys: Range<usize>,
        first: usize,
        factors: &[f32; ROWS],
        contexts: &mut [f32],
    ) {
        let simd = self.simd;
        let vectors = self.block.width / S::F32_LANES;
        let contexts = S::as_mut_simd_f32s(contexts).0;
        let mut sums = [[[simd.splat_f32s(0.0); W]; ROWS]; U];
        for row in 0..ROWS {
            for v in 0..W {
                sums[0][row][v] = simd.mul_f32s(contexts[row * vectors + first + v], simd.splat_f32s(factors[row]));
            }
        }
        let values = S::as_simd_f32s(&self.block.values[..keys.end * self.block.width]).0;
        assert!(keys.end <= scores[0].len() && first + W <= vectors);
        let whole = keys.start + keys.len() / U * U;
        for at in (keys.start..whole).step_by(U) {
            for (u, sums) in sums.iter_mut().enumerate() {
                // SAFETY: the assertion above has the last key, and the last of these vectors.
                unsafe { self.add_key(scores, values, at + u, first, sums) };
            }
        }
        for at in whole..keys.end {
            // SAFETY: as above.
            unsafe { self.add_key(scores, values, at, first, &mut sums[0]) };
        }
        for row in 0..ROWS {
            for v in 0..W {
                let mut total = sums[0][row][v];
                for others in &sums[1..] {
                    total = simd.add_f32s(total, others[row][v]);
                }
                contexts[row * vectors + first + v] = total;
            }
        }
    }

    /// Adds the vectors from `first` on of a key's value, weighted, to the sums of every row.
    ///
    /// # Safety
    /// Every row of `scores` has the key, and `values` have those vectors of it.
    #[inline(always)]
    unsafe fn add_key<const W: usize>(
        &self,
        scores: &Scores,
        values: &[S::f32s],
        key: usize,
        first: usize,
        sums: &mut [[S::f32s; W]; ROWS],
    ) {
        let simd = self.simd;
        let vectors = self.block.width / S::F32_LANES;
        let mut value = [simd.splat_f32s(0.0); W];
        for (v, value) in value.iter_mut().enumerate() {
            // SAFETY: the caller says so.
            *value = unsafe { *values.get_unchecked(key * vectors + first + v) };
        }
        for row in 0..ROWS {
            // SAFETY: the caller says so.
            let weight = simd.splat_f32s(unsafe { *scores[row].get_unchecked(key) });
            for v in 0..W {
                sums[row][v] = simd.mul_add_e_f32s(weight, value[v], sums[row][v]);
            }
        }
    }

    /// As [`add`](Self::add), for values some of which are no finite numbers: those of weight 0 have no part.
    fn add_seen(&self, scores: &mut Scores, keys: Range<usize>, factors: &[f32; ROWS], contexts: &mut [f32]) {
        let width = self.block.width;
        for (row, context) in contexts.chunks_exact_mut(width).enumerate() {
            context.iter_mut().for_each(|sum| *sum *= factors[row]);
            for key in keys.clone() {
                let weight = scores[row][key];
                if weight != 0.0 {
                    let value = &self.block.values[key * width..][..width];
                    context.iter_mut().zip(value).for_each(|(sum, value)| *sum += weight * value);
                }
            }
        }
    }
}
