//! Attention of a few new tokens: memory-bound, directly on the cache.
//!
//! One task owns some slots of one key/value head of one row, with all query heads of its group and all new tokens. Keys and
//! values are read once, in place, in long runs; they are used by every query while they are in the first-level cache:
//!
//! ```text
//!                slots of one head, 1024 to a task, in blocks of 256
//!              ┌────────────────────────┬──────────────────────┬──
//! query 0, t0  │ 4 keys →               │                      │    scores of a block in the first-level cache,
//! query 0, t1  │ 4 keys →      values → │           →          │    with running max, sum and the context
//! query 1, t0  │ 4 keys →               │                      │
//!              └────────────────────────┴──────────────────────┴──
//! ```
//!
//! The tasks of a head leave partial contexts, which are joined at the end (arXiv:2311.01282). Their first and last slots are
//! fixed, so a row's result depends neither on the number of threads nor on the rest of the batch. Hidden keys are not read.

use pulp::{Arch, Simd, WithSimd};

use super::attention::{Attention, Cached, Heads};
use super::element::Element;
use super::integer_keys::{self, Queries};
use super::scores::{Row, Running, Slots, share, soften, with_sink};
use super::scratch::with_scratch;
use super::slots::InSlots;
use super::threads;
use crate::cpu::interval::Interval;

/// Slots of a task. One row with a few key/value heads and a long history then has enough tasks for every thread.
const CHUNK: usize = 1024;

/// Keys whose scores are computed before their values are added.
const BLOCK: usize = 256;

/// Elements of keys and values below which a task is not worth a thread.
const TASK: usize = 1 << 14;

/// Computes `[batch, tokens, heads, value_dim]` into `output`. A query that sees no key gives zeros.
///
/// Runs on the threads of the current `rayon` pool, with the widest vectors that the processor has. Meant for a few queries
/// of each key/value head; [`flash`](super::flash::flash) does the same for many.
///
/// # Panics
/// If a slice does not have the length that the sizes imply.
pub fn decode(problem: &Attention<'_>, output: &mut [f32]) {
    problem.check("decode", output.len());
    if output.is_empty() {
        return;
    }
    let Attention { batch, kv_heads, tokens, head_dim, value_dim, masks, .. } = *problem;
    let rows = problem.group() * tokens;
    let keys = masks.ends.iter().copied().max().unwrap_or(0);
    let chunks = keys.div_ceil(CHUNK).max(1);
    let size = rows * (value_dim + 2);
    let integers = if matches!(problem.key, Cached::Int8 { .. }) { integer_keys::scratch(rows, head_dim) } else { 0 };
    let together = TASK.div_ceil((keys.clamp(1, CHUNK)) * (head_dim + value_dim));
    with_scratch(batch * kv_heads * chunks * size, |partials| {
        threads::each_part(partials, together * size, |task, partials| {
            for (index, partial) in (task * together..).zip(partials.chunks_exact_mut(size)) {
                let (head, chunk) = (index / chunks, index % chunks);
                let (batch, kv_head, first) = (head / kv_heads, head % kv_heads, chunk * CHUNK);
                // The integers first: their vectors start where a cache line does.
                with_scratch(integers + rows * (head_dim + BLOCK), |scratch| {
                    let (integers, scratch) = scratch.split_at_mut(integers);
                    let (queries, scores) = scratch.split_at_mut(rows * head_dim);
                    let task = Task { problem, batch, kv_head, first, queries, integers: None, scores, partial };
                    Arch::new().dispatch(Start { task, integers });
                });
            }
        });
        for (head, partials) in partials.chunks_exact(chunks * size).enumerate() {
            for row in 0..rows {
                let place = problem.place(head / kv_heads, head % kv_heads, row);
                let sink = problem.sinks.map(|sinks| sinks[place % problem.heads]);
                join(partials.chunks_exact(size), row, sink, &mut output[place * value_dim..][..value_dim]);
            }
        }
    });
}

/// The context of a row from the partial contexts of its head's tasks, and its sink.
fn join<'a>(partials: impl Iterator<Item = &'a [f32]> + Clone, row: usize, sink: Option<f32>, output: &mut [f32]) {
    let value_dim = output.len();
    let parts = partials.map(|partial| {
        let rows = partial.len() / (value_dim + 2);
        let (contexts, states) = partial.split_at(rows * value_dim);
        (&contexts[row * value_dim..][..value_dim], Running { max: states[2 * row], sum: states[2 * row + 1] })
    });
    let max = parts.clone().fold(f32::NEG_INFINITY, |max, (_, state)| max.max(state.max));
    let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
    output.fill(0.0);
    let mut sum = 0.0;
    for (context, state) in parts {
        let factor = (state.max - base).exp2();
        sum += state.sum * factor;
        output.iter_mut().zip(context).for_each(|(output, context)| *output += context * factor);
    }
    let share = share(with_sink(Running { max: base, sum }, sink));
    output.iter_mut().for_each(|output| *output *= share);
}

/// A task, and scratch for its queries as integers.
struct Start<'a> {
    task: Task<'a>,
    integers: &'a mut [f32],
}

/// Some slots of one key/value head.
struct Task<'a> {
    problem: &'a Attention<'a>,
    batch: usize,
    kv_head: usize,
    first: usize,
    /// `[rows, head_dim]`, scaled.
    queries: &'a mut [f32],
    /// The same as integers, for keys of int8.
    integers: Option<Queries<'a>>,
    /// `[rows, BLOCK]`.
    scores: &'a mut [f32],
    /// Contexts `[rows, value_dim]`, then maximum and sum of each row.
    partial: &'a mut [f32],
}

impl WithSimd for Start<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { mut task, integers } = self;
        let Attention { head_dim, query, scale, .. } = *task.problem;
        let group = task.problem.group();
        for (row, scaled) in task.queries.chunks_exact_mut(head_dim).enumerate() {
            let features = query.token(task.batch, task.kv_head * group + row % group, row / group, head_dim);
            scaled.iter_mut().zip(features).for_each(|(scaled, feature)| *scaled = feature * scale);
        }
        task.integers = Queries::new(task.queries, head_dim, integers);
        task.run(simd);
    }
}

impl Task<'_> {
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let Attention { tokens, value_dim, masks, .. } = *self.problem;
        let group = self.problem.group();
        let (contexts, states) = self.partial.split_at_mut(group * tokens * value_dim);
        contexts.fill(0.0);
        for state in states.as_chunks_mut().0 {
            *state = [Running::NOTHING.max, Running::NOTHING.sum];
        }

        let seen = Interval::around((0..tokens).map(|token| masks.range(self.batch, token)));
        let own = seen.and(Interval::new(self.first, self.first + CHUNK));
        let hidden = masks.hidden(self.batch);
        for start in (own.start / BLOCK * BLOCK..own.end).step_by(BLOCK) {
            let seen = own.and(Interval::new(start, start + BLOCK));
            let mut kept = [0; BLOCK];
            let slots = match hidden {
                Some(hidden) => {
                    let mut count = 0;
                    for slot in seen.slots().filter(|slot| !hidden[*slot]) {
                        kept[count] = slot;
                        count += 1;
                    }
                    Slots::Kept(&kept[..count])
                }
                None => Slots::All(seen),
            };
            if slots.count() > 0 {
                self.block(simd, slots);
            }
        }
    }

    /// Adds some keys to every row.
    #[inline(always)]
    fn block<S: Simd>(&mut self, simd: S, slots: Slots<'_>) {
        let Attention { tokens, value_dim, masks, .. } = *self.problem;
        let group = self.problem.group();
        let count = slots.count();
        match self.problem.key {
            Cached::F32(key) => self.products(simd, key, slots),
            Cached::F16(key) => self.products(simd, key, slots),
            Cached::BF16(key) => self.products(simd, key, slots),
            Cached::Int8 { elements, scales } => {
                match &self.integers {
                    Some(queries) => {
                        let (head, features) = ([self.batch, self.kv_head], self.problem.head_dim);
                        match slots {
                            Slots::All(all) => {
                                let keys = InSlots::of_interval(elements, head, features, all);
                                integer_keys::products(queries, keys, self.scores, BLOCK);
                            }
                            Slots::Kept(kept) => {
                                let keys = InSlots::of_kept(elements, head, features, kept);
                                integer_keys::products(queries, keys, self.scores, BLOCK);
                            }
                        }
                    }
                    None => self.products(simd, elements, slots),
                }
                let scales = self.scales(scales, slots);
                for scores in self.scores.chunks_exact_mut(BLOCK) {
                    scores[..count].iter_mut().zip(&scales).for_each(|(score, scale)| *score *= scale);
                }
            }
        }

        let mut positions = [0.0; BLOCK];
        if masks.slopes.is_some() {
            for (key, position) in positions[..count].iter_mut().enumerate() {
                *position = masks.position(self.batch, slots.slot(key));
            }
        }
        let (contexts, states) = self.partial.split_at_mut(group * tokens * value_dim);
        let states = states.as_chunks_mut::<2>().0;
        // Whether every row sees every key.
        let mut all = masks.pairs.is_none() && masks.bias.is_none();
        for (row, ([max, sum], scores)) in states.iter_mut().zip(self.scores.chunks_exact_mut(BLOCK)).enumerate() {
            let token = row / group;
            let keys = slots.keys(masks.range(self.batch, token));
            all &= keys == Interval::new(0, count);
            if keys.is_empty() {
                continue;
            }
            let head = self.kv_head * group + row % group;
            let batch = self.batch;
            Row { simd, masks: &masks, batch, head, token, slots, positions: &positions }.adjust(keys, scores);
            let mut state = Running { max: *max, sum: *sum };
            let factor = soften(simd, scores, keys, &mut state);
            [*max, *sum] = [state.max, state.sum];
            if factor != 1.0 {
                contexts[row * value_dim..][..value_dim].iter_mut().for_each(|context| *context *= factor);
            }
        }
        match self.problem.value {
            Cached::F32(value) => self.values(simd, value, slots, all),
            Cached::F16(value) => self.values(simd, value, slots, all),
            Cached::BF16(value) => self.values(simd, value, slots, all),
            Cached::Int8 { elements, scales } => {
                let scales = self.scales(scales, slots);
                for weights in self.scores.chunks_exact_mut(BLOCK) {
                    for (weight, scale) in weights[..count].iter_mut().zip(&scales) {
                        // A hidden value never affects the result.
                        *weight = if *weight == 0.0 { 0.0 } else { *weight * scale };
                    }
                }
                self.values(simd, elements, slots, all);
            }
        }
    }

    /// The scales of these slots.
    #[inline(always)]
    fn scales(&self, all: &[f32], slots: Slots<'_>) -> [f32; BLOCK] {
        let scales = self.problem.scales(all, self.batch, self.kv_head);
        let mut own = [0.0; BLOCK];
        for (at, scale) in own[..slots.count()].iter_mut().enumerate() {
            *scale = scales[slots.slot(at)];
        }
        own
    }

    /// The products of every row and every key.
    #[inline(always)]
    fn products<S: Simd, E: Element>(&mut self, simd: S, key: Heads<'_, E>, slots: Slots<'_>) {
        let (head, features) = ([self.batch, self.kv_head], self.problem.head_dim);
        match slots {
            Slots::All(all) => {
                InSlots::of_interval(key, head, features, all).products(simd, self.queries, self.scores, BLOCK)
            }
            Slots::Kept(kept) => {
                InSlots::of_kept(key, head, features, kept).products(simd, self.queries, self.scores, BLOCK)
            }
        }
    }

    /// Adds the weighted values to every context. Unless every row sees `all` of them, a context gets only those that it sees.
    #[inline(always)]
    fn values<S: Simd, E: Element>(&mut self, simd: S, value: Heads<'_, E>, slots: Slots<'_>, all: bool) {
        let (head, features) = ([self.batch, self.kv_head], self.problem.value_dim);
        match slots {
            Slots::All(own) => self.add(simd, InSlots::of_interval(value, head, features, own), slots, all),
            Slots::Kept(kept) => self.add(simd, InSlots::of_kept(value, head, features, kept), slots, all),
        }
    }

    #[inline(always)]
    fn add<S: Simd, E: Element, const INTERVAL: bool>(
        &mut self,
        simd: S,
        values: InSlots<'_, E, INTERVAL>,
        slots: Slots<'_>,
        all: bool,
    ) {
        let Attention { value_dim, masks, .. } = *self.problem;
        let group = self.problem.group();
        let contexts = &mut self.partial[..self.scores.len() / BLOCK * value_dim];
        if all {
            return values.add_to(simd, self.scores, BLOCK, contexts);
        }
        let rows = contexts.chunks_exact_mut(value_dim).zip(self.scores.chunks_exact(BLOCK));
        for (row, (context, weights)) in rows.enumerate() {
            let keys = slots.keys(masks.range(self.batch, row / group));
            // A hidden value never affects the result.
            for at in keys.slots().filter(|at| weights[*at] != 0.0) {
                values.add_one(simd, at, weights[at], context);
            }
        }
    }
}
