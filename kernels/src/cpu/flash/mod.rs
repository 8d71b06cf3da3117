//! Attention of many queries, without a score matrix: online softmax over blocks of keys (arXiv:1805.02867, arXiv:2205.14135).
//!
//! One task owns some tokens of one key/value head of one row of the batch, with all query heads of the group. It walks the
//! keys in blocks that stay in the second-level cache, packed once for all its queries, and the queries in tiles that stay
//! in registers:
//!
//! ```text
//!               keys of one head, in blocks, each in panels of a few vectors
//!             ┌───┬───┬───┬───┬───┬───┬──
//! tile 0      │ scores    │           │       scores of a tile and a block in the first-level cache,
//! tile 1      │ scores    │     →     │       running maxima, sums and contexts beside the block
//! tile 2      │ scores    │           │
//!             └───┴───┴───┴───┴───┴───┴──
//! ```
//!
//! Hidden keys are not packed, and panels that a tile does not see are skipped. What a hidden key or value holds has no part
//! in the result. A row's result depends neither on the number of threads nor on the rest of the batch.

mod pack;
mod tile;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::Disjoint;
use super::attention::Attention;
use super::scores::Running;
use pack::{Keys, Queries};
use tile::{Scores, Tile};

/// Rows of a tile of queries: with two vectors a row, 12 sums, which hide the latency of a multiplication and leave four of
/// 16 registers; with four, 24 of 32.
const ROWS: usize = 6;

/// Bytes of a packed block of keys and values: half of a small second-level cache.
const BLOCK_BYTES: usize = 192 * 1024;

/// Most keys of a block, so that the scores of a tile stay in the first-level cache.
const MOST_KEYS: usize = 512;

/// Most rows of queries of a task; fewer pack keys and values more often, more leave the second-level cache.
const MOST_ROWS: usize = 512;

/// Computes `[batch, tokens, heads, value_dim]` into `output`. A query that sees no key gives zeros.
///
/// Runs on the threads of the current `rayon` pool, with the widest vectors that the processor has.
///
/// # Panics
/// If a slice does not have the length that the sizes say.
pub fn flash(problem: &Attention<'_>, output: &mut [f32]) {
    problem.check("flash", output);
    let Attention { batch, heads, kv_heads, tokens, .. } = *problem;
    if output.is_empty() {
        return;
    }

    let group = problem.group();
    let rows = batch * tokens * heads;
    let fair = rows.div_ceil(4 * rayon::current_num_threads()).clamp(8 * ROWS, MOST_ROWS);
    let each = fair.div_ceil(group).min(tokens);
    let chunks = tokens.div_ceil(each);
    let output = Disjoint::new(output);
    // Late tokens see more keys under causality: the longest tasks come first.
    (0..chunks * batch * kv_heads).into_par_iter().for_each_init(Scratch::default, |scratch, index| {
        let chunk = chunks - 1 - index / (batch * kv_heads);
        let (batch, kv_head) = (index / kv_heads % batch, index % kv_heads);
        let (first, last) = (chunk * each, ((chunk + 1) * each).min(tokens));
        Arch::new().dispatch(Task { problem, batch, kv_head, first, tokens: last - first, scratch, output: &output });
    });
}

/// Memory of a thread, kept from task to task.
struct Scratch {
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    slots: Vec<usize>,
    positions: Vec<f32>,
    scores: Scores,
    contexts: Vec<f32>,
    running: Vec<Running>,
    ranges: Vec<(usize, usize)>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            queries: Vec::new(),
            keys: Vec::new(),
            values: Vec::new(),
            slots: Vec::new(),
            positions: Vec::new(),
            scores: [[0.0; MOST_KEYS + 16]; ROWS],
            contexts: Vec::new(),
            running: Vec::new(),
            ranges: Vec::new(),
        }
    }
}

/// Some tokens of one key/value head.
struct Task<'a> {
    problem: &'a Attention<'a>,
    batch: usize,
    kv_head: usize,
    first: usize,
    tokens: usize,
    scratch: &'a mut Scratch,
    output: &'a Disjoint<'a>,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT >= 32 { self.attend::<S, 4>(simd) } else { self.attend::<S, 2>(simd) }
    }
}

impl Task<'_> {
    /// With panels and tiles of `V` vectors.
    #[inline(always)]
    fn attend<S: Simd, const V: usize>(self, simd: S) {
        let Attention { head_dim, value_dim, masks, .. } = *self.problem;
        let group = self.problem.group();
        let rows = self.tokens * group;
        let panel = V * S::F32_LANES;
        let width = value_dim.next_multiple_of(S::F32_LANES);
        let block = (BLOCK_BYTES / size_of::<f32>() / (head_dim + width)).min(MOST_KEYS) / panel * panel;
        let block = block.max(panel);
        let Scratch { queries, keys, values, slots, positions, scores, contexts, running, ranges } = self.scratch;

        let who = Queries {
            problem: self.problem,
            batch: self.batch,
            first_head: self.kv_head * group,
            first_token: self.first,
            group,
            rows,
        };
        who.pack(queries);
        running.clear();
        running.resize(rows, Running::NOTHING);
        contexts.clear();
        contexts.resize(rows.next_multiple_of(ROWS) * width, 0.0);

        ranges.clear();
        for token in self.first..self.first + self.tokens {
            ranges.extend(std::iter::repeat_n(masks.range(self.batch, token), group));
        }
        let (from, to) = ranges.iter().fold((usize::MAX, 0), |(from, to), (a, b)| (from.min(*a), to.max(*b)));
        // Blocks lie where they lie for every query, so that a row's sums are added in the same order in any batch.
        for start in (from / block * block..to).step_by(block) {
            // Nor does it matter which keys a task leaves out in front: those that are hidden move the others by a lane.
            let first = match masks.hidden {
                Some(_) => start,
                None => start + from.saturating_sub(start) / panel * panel,
            };
            let last = to.min(start + block);
            let read = Keys { problem: self.problem, batch: self.batch, head: self.kv_head, panel, width, first, last };
            let packed = read.pack(keys, values, slots, positions);
            let queries = queries.chunks_exact(ROWS * head_dim);
            let contexts = contexts.chunks_exact_mut(ROWS * width);
            let states = ranges.chunks(ROWS).zip(running.chunks_mut(ROWS));
            for (index, ((query, contexts), (ranges, running))) in queries.zip(contexts).zip(states).enumerate() {
                let tile = Tile::<S, V> { simd, queries: &who, first: index * ROWS, query, ranges, block: &packed };
                tile.attend(scores, contexts, running);
            }
        }

        for (row, state) in running.iter().enumerate() {
            let at = self.problem.place(self.batch, self.kv_head, self.first * group + row) * value_dim;
            // SAFETY: no other task has this token and head.
            let output = unsafe { self.output.part(at, value_dim) };
            let share = state.share();
            for (output, context) in output.iter_mut().zip(&contexts[row * width..]) {
                *output = context * share;
            }
        }
    }
}
