//! The queries of a task: from rows of the problem to lanes of a tile, and back.

use crate::cpu::attention::Attention;
use crate::cpu::interval::Interval;
use crate::cpu::lanes::MOST_LANES;
use crate::cpu::places::{Places, Taker};
use crate::cpu::scores::{Running, share, with_sink};
use crate::cpu::stream::prefetch;
use crate::cpu::transpose::{into_lanes, out_of_lanes};

/// A query.
#[derive(Clone, Copy)]
pub(super) struct Row {
    pub head: usize,
    pub token: usize,
    /// The slots that it sees.
    pub slots: Interval,
}

/// Some tokens of one key/value head, with all query heads of the group.
pub(super) struct Queries<'a> {
    pub problem: &'a Attention<'a>,
    pub batch: usize,
    pub kv_head: usize,
    /// The first token.
    pub first: usize,
    /// Tokens.
    pub count: usize,
}

impl Queries<'_> {
    /// The rows by token, then by head, in whole tiles: the last row is repeated, and the copies are not read.
    pub fn rows(&self, lanes: usize, rows: &mut Vec<Row>) {
        let group = self.problem.group();
        rows.clear();
        for token in self.first..self.first + self.count {
            let slots = self.problem.masks.range(self.batch, token);
            rows.extend((self.kv_head * group..(self.kv_head + 1) * group).map(|head| Row { head, token, slots }));
        }
        if let Some(last) = rows.last() {
            rows.resize(rows.len().next_multiple_of(lanes), *last);
        }
    }

    /// The features of a row.
    pub fn query(&self, row: Row) -> &[f32] {
        let Attention { head_dim, query, .. } = *self.problem;
        query.token(self.batch, row.head, row.token, head_dim)
    }

    /// The first place of a row's result.
    fn place(&self, row: Row) -> usize {
        let Attention { tokens, heads, value_dim, .. } = *self.problem;
        ((self.batch * tokens + row.token) * heads + row.head) * value_dim
    }

    /// Prefetches queries that [`pack`](Self::pack) reads soon.
    pub fn fetch(&self, rows: &[Row]) {
        rows.iter().for_each(|row| prefetch(self.query(*row)));
    }

    /// Prefetches the places of rows that [`finish`](Self::finish) writes soon.
    pub fn fetch_places(&self, rows: &[Row], output: &Places<'_>) {
        for row in rows {
            // SAFETY: no other task has this token and head.
            unsafe { output.prefetch(self.place(*row), self.problem.value_dim) };
        }
    }

    /// The queries of a tile, `[head_dim, lanes]`, scaled.
    #[inline(always)]
    pub fn pack(&self, rows: &[Row], into: &mut [f32]) {
        into_lanes(|lane| self.query(rows[lane]), rows.len(), into);
        into.iter_mut().for_each(|feature| *feature *= self.problem.scale);
    }

    /// Divides the contexts of a tile, `[value_dim, lanes]`, by the sums of their weights, and writes the first `count` rows; the
    /// others are copies. `running` are the maxima and sums of the lanes, `[2, lanes]`.
    #[inline(always)]
    pub fn finish(&self, rows: &[Row], count: usize, contexts: &mut [f32], running: &[f32], output: &Taker<'_>) {
        let lanes = rows.len();
        let mut shares = [0.0; MOST_LANES];
        for (lane, row) in rows.iter().enumerate() {
            let state = Running { max: running[lane], sum: running[lanes + lane] };
            shares[lane] = share(with_sink(state, self.problem.sinks.map(|sinks| sinks[row.head])));
        }
        for context in contexts.chunks_exact_mut(lanes) {
            context.iter_mut().zip(&shares).for_each(|(context, share)| *context *= share);
        }
        // SAFETY: no other task has these tokens and heads, and no other lane this row, which is finished once.
        let place = |lane: usize| unsafe { output.part(self.place(rows[lane]), self.problem.value_dim) };
        out_of_lanes(contexts, lanes, count, place);
    }
}
