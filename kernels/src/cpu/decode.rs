//! Attention of a few new tokens against a KV cache, which is read where it lies.
//!
//! One task owns one key/value head of one row, and all query heads of its group. It walks the keys in blocks that stay in
//! the first-level cache, so keys and values are read from memory once for the whole group:
//!
//! ```text
//!               keys of one head, [S, H], in blocks of 64
//!             ┌────────┬────────┬────────┬──
//! query 0,t0  │ scores │        │        │      running max and sum in registers,
//! query 0,t1  │ scores │   →    │   →    │      running context in the output row
//! query 1,t0  │ scores │        │        │      (online softmax, arXiv:1805.02867)
//!             └────────┴────────┴────────┴──
//! ```
//!
//! Hidden keys are skipped, not weighted by zero, so what they hold has no part in the result.

use rayon::prelude::*;

use super::Running;
use super::masks::Masks;

/// Keys of a block: with 128 features 32 KiB of keys, read again by each query of the group.
const BLOCK: usize = 64;

/// Independent partial sums of a dot product, so that it runs in vector registers.
const LANES: usize = 16;

/// Sizes of a [`Decode`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeShape {
    /// Rows of the batch.
    pub batch: usize,
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// New tokens of each row.
    pub tokens: usize,
    /// Slots of each row of the cache.
    pub capacity: usize,
    /// Features of a head.
    pub head_dim: usize,
}

/// The arguments of [`decode`].
#[derive(Debug, Clone, Copy)]
pub struct Decode<'a> {
    /// Sizes.
    pub shape: DecodeShape,
    /// `[batch, heads, tokens, head_dim]`.
    pub query: &'a [f32],
    /// `[batch, kv_heads, capacity, head_dim]`; slots from the row's end on are not read.
    pub key: &'a [f32],
    /// `[batch, kv_heads, capacity, head_dim]`; slots from the row's end on are not read.
    pub value: &'a [f32],
    /// Plain factor on the scores.
    pub scale: f32,
    /// Who sees what; no pairs and no bias.
    pub masks: Masks<'a>,
}

/// Computes `[batch, heads, tokens, head_dim]` into `output`. A query that sees no key gives zeros.
///
/// # Panics
/// If a slice does not have the length that the sizes say, or the masks have pairs or a bias.
pub fn decode(problem: &Decode<'_>, output: &mut [f32]) {
    let DecodeShape { batch, heads, kv_heads, tokens, capacity, head_dim } = problem.shape;
    assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "decode: {heads} heads over {kv_heads} key/value heads");
    let cache = batch * kv_heads * capacity * head_dim;
    let queries = batch * heads * tokens * head_dim;
    for (name, expected, actual) in [
        ("query", queries, problem.query.len()),
        ("output", queries, output.len()),
        ("key", cache, problem.key.len()),
        ("value", cache, problem.value.len()),
    ] {
        assert!(expected == actual, "decode: `{name}` has {actual} elements, expected {expected}");
    }
    problem.masks.check("decode", batch, heads, tokens, capacity);
    let plain = problem.masks.pairs.is_none() && problem.masks.bias.is_none();
    assert!(plain, "decode: hidden pairs and biases are not read here; `flash` reads them");
    let group = heads / kv_heads * tokens * head_dim;
    if group == 0 {
        return;
    }
    output.par_chunks_mut(group).enumerate().for_each(|(index, output)| {
        let query = &problem.query[index * group..][..group];
        Group::new(problem, index).attend(query, output);
    });
}

/// The keys and values that one task reads, and what its queries see of them.
struct Group<'a> {
    problem: &'a Decode<'a>,
    row: usize,
    first_head: usize,
    key: &'a [f32],
    value: &'a [f32],
    hidden: Option<&'a [bool]>,
    positions: Option<&'a [i32]>,
}

impl<'a> Group<'a> {
    fn new(problem: &'a Decode<'a>, index: usize) -> Self {
        let DecodeShape { heads, kv_heads, capacity, head_dim, .. } = problem.shape;
        let row = index / kv_heads;
        let slots = capacity * head_dim;
        Self {
            problem,
            row,
            first_head: index % kv_heads * (heads / kv_heads),
            key: &problem.key[index * slots..][..slots],
            value: &problem.value[index * slots..][..slots],
            hidden: problem.masks.hidden(row),
            positions: problem.masks.positions(row),
        }
    }

    fn attend(&self, query: &[f32], output: &mut [f32]) {
        let DecodeShape { tokens, head_dim, .. } = self.problem.shape;
        let mut running = vec![Running::NOTHING; query.len() / head_dim];
        output.fill(0.0);
        let ranges = (0..tokens).map(|token| self.problem.masks.range(self.row, token));
        let (first, last) = ranges.fold((usize::MAX, 0), |(first, last), (a, b)| (first.min(a), last.max(b)));
        for block in (first..last).step_by(BLOCK) {
            for (index, state) in running.iter_mut().enumerate() {
                let (from, to) = self.problem.masks.range(self.row, index % tokens);
                let (from, to) = (from.max(block), to.min(block + BLOCK));
                if from < to {
                    let at = index * head_dim..(index + 1) * head_dim;
                    self.block(from, to, index, &query[at.clone()], &mut output[at], state);
                }
            }
        }
        for (state, context) in running.iter().zip(output.chunks_mut(head_dim)) {
            if state.sum != 0.0 {
                context.iter_mut().for_each(|x| *x /= state.sum);
            }
        }
    }

    /// Adds the keys `from..to` to one query's running softmax.
    fn block(&self, from: usize, to: usize, index: usize, query: &[f32], context: &mut [f32], state: &mut Running) {
        let DecodeShape { tokens, head_dim, .. } = self.problem.shape;
        let (head, at) = (self.first_head + index / tokens, self.problem.masks.starts[self.row] + index % tokens);
        let visible = |slot: usize| self.hidden.is_none_or(|hidden| !hidden[slot]);
        let mut scores = [0.0f32; BLOCK];
        let mut max = state.max;
        let mut broken = false;
        for (slot, score) in (from..to).zip(&mut scores) {
            if !visible(slot) {
                continue;
            }
            let mut value = dot(query, &self.key[slot * head_dim..][..head_dim]) * self.problem.scale;
            if let Some(cap) = self.problem.masks.softcap {
                value = cap * (value / cap).tanh();
            }
            if let Some(slopes) = self.problem.masks.slopes {
                value += slopes[head] * self.distance(slot, at);
            }
            *score = value;
            max = max.max(value);
            broken |= value.is_nan();
        }
        if broken {
            // A visible NaN shows in the result, whatever the maximum is.
            max = 0.0;
        }
        if max == f32::NEG_INFINITY {
            return;
        }
        let kept = if state.max == f32::NEG_INFINITY { 0.0 } else { (state.max - max).exp() };
        if kept != 1.0 {
            context.iter_mut().for_each(|x| *x *= kept);
        }
        state.sum *= kept;
        state.max = max;
        for (slot, score) in (from..to).zip(&scores).filter(|(slot, _)| visible(*slot)) {
            let weight = (score - max).exp();
            state.sum += weight;
            let value = &self.value[slot * head_dim..][..head_dim];
            context.iter_mut().zip(value).for_each(|(x, v)| *x += weight * v);
        }
    }

    /// How far slot `slot` stands behind the query at slot `at`, in positions; negative for earlier keys.
    fn distance(&self, slot: usize, at: usize) -> f32 {
        match self.positions {
            Some(positions) => (positions[slot] - positions[at.min(positions.len() - 1)]) as f32,
            None => slot as f32 - at as f32,
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, b) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut lanes = [0.0f32; LANES];
    for (x, y) in a.0.iter().zip(b.0) {
        for lane in 0..LANES {
            lanes[lane] += x[lane] * y[lane];
        }
    }
    lanes.iter().sum::<f32>() + a.1.iter().zip(b.1).map(|(x, y)| x * y).sum::<f32>()
}
