//! Attention of many queries, without a score matrix: online softmax over blocks of keys (arXiv:1805.02867, arXiv:2205.14135).
//!
//! One task owns some tokens of one key/value head of one row of the batch, with all query heads of the group. Its queries
//! fill the lanes of a few vectors, one query to a lane, tile by tile, so that masks, maxima and sums are plain vector
//! operations. Keys and values are read in place, each element once for all queries of a tile:
//!
//! ```text
//!                a block in the second-level cache
//!              ┌───────────┬───────────┬───────────┐
//!              │ part in the first     │           │
//!  lanes       │ features → │           │           │
//!  ┌─ queries ─┼───────────┼───────────┼───────────┤
//!  │ tile 0    │ scores ↓  │           │           │    scores [keys, lanes], contexts [features, lanes]
//!  │ tile 1    │           │     →     │           │
//!  └───────────┴───────────┴───────────┴───────────┘
//! ```
//!
//! Where the processor has AMX and keys and values are bf16, `amx` has the two products; everything else is the same.
//!
//! Keys that no query of a tile sees are skipped. Hidden keys and values never affect the result. A row's
//! result depends neither on the number of threads nor on the rest of the batch.

#[cfg(target_arch = "x86_64")]
mod amx;
mod block;
mod queries;
mod tile;

use std::cell::RefCell;

use pulp::{Arch, Simd};

use super::attention::Attention;
use super::lanes::{Lanes, WithLanes};
use super::places::Places;
use super::threads;
use crate::cpu::interval::Interval;
use block::{BlockBuffer, Keys, Machine, Rows};
use queries::{Queries, Row};
use tile::{Products, Tile, TileBuffer};

/// Bytes of a block of keys and values: less than half of a small second-level cache.
const BLOCK_BYTES: usize = 192 * 1024;

/// Bytes of the values, and of their weights, that are read again for every few features: they fit into the first-level cache.
const PART_BYTES: usize = 40 * 1024;

/// Most keys of a part.
const MOST_KEYS: usize = 128;

/// Rows of queries of a task: with fewer, keys and values are read more often; more do not fit into the second-level cache.
const MOST_ROWS: usize = 256;

/// Fewest rows of a task, used if there are too few rows for all threads.
const LEAST_ROWS: usize = 64;

/// Computes `[batch, tokens, heads, value_dim]` into `output`. A query that sees no key gives zeros.
///
/// Runs on the threads of the current `rayon` pool, with the widest vectors that the processor has.
///
/// # Panics
/// If a slice does not have the length that the sizes imply.
pub fn flash(problem: &Attention<'_>, output: &mut [f32]) {
    flash_into(problem, &mut Places::of(output));
}

/// [`flash`] into a new result.
///
/// # Panics
/// If a slice, or the result, does not have the length that the sizes imply, or a part of a new result was written before.
pub fn flash_into(problem: &Attention<'_>, output: &mut Places<'_>) {
    problem.check("flash", output.len());
    let Attention { batch, heads, kv_heads, tokens, .. } = *problem;
    if output.is_empty() {
        return;
    }

    output.claim(0..output.len(), output.len());
    let output = &*output;
    let rows = batch * tokens * heads;
    let fair = rows.div_ceil(4 * rayon::current_num_threads()).clamp(LEAST_ROWS, MOST_ROWS);
    let each = fair.next_multiple_of(LEAST_ROWS).div_ceil(problem.group()).min(tokens);
    let chunks = tokens.div_ceil(each);
    // Late tokens see more keys under causality: the longest tasks are first.
    threads::each(chunks * batch * kv_heads, |index| {
        let chunk = chunks - 1 - index / (batch * kv_heads);
        let (batch, kv_head) = (index / kv_heads % batch, index % kv_heads);
        let (first, last) = (chunk * each, ((chunk + 1) * each).min(tokens));
        let queries = Queries { problem, batch, kv_head, first, count: last - first };
        SCRATCH.with_borrow_mut(|scratch| Arch::new().dispatch(Lanes(Task { queries, scratch, output })));
    });
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Memory of a thread, kept from task to task and from call to call.
#[derive(Default)]
struct Scratch {
    rows: Vec<Row>,
    queries: Vec<f32>,
    #[cfg(target_arch = "x86_64")]
    packed: amx::PackedQueries,
    contexts: Vec<f32>,
    running: Vec<f32>,
    keys: BlockBuffer,
    tile: TileBuffer,
}

/// How the work of a task is cut up. Neither threads nor other rows affect it.
struct Sizes {
    /// Keys whose scores are computed before their values are added.
    part: usize,
    /// Keys of a block, in whole parts.
    block: usize,
    /// Features of a context in memory.
    features: usize,
}

impl Sizes {
    fn of(problem: &Attention<'_>, lanes: usize, on_machine: bool) -> Self {
        let Attention { head_dim, value_dim, .. } = *problem;
        #[cfg(target_arch = "x86_64")]
        if on_machine {
            let block = (BLOCK_BYTES / size_of::<u16>() / (head_dim + value_dim) / amx::PART).max(1) * amx::PART;
            return Self { part: amx::PART, block, features: value_dim.next_multiple_of(amx::SIDE) };
        }
        let _ = on_machine;
        let part = (PART_BYTES / size_of::<f32>() / (value_dim + lanes)).clamp(8, MOST_KEYS) / 8 * 8;
        let block = (BLOCK_BYTES / size_of::<f32>() / (head_dim + value_dim) / part).max(1) * part;
        Self { part, block, features: value_dim }
    }
}

/// Some tokens of one key/value head.
struct Task<'a> {
    queries: Queries<'a>,
    scratch: &'a mut Scratch,
    output: &'a Places<'a>,
}

impl WithLanes for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_lanes<S: Simd, const V: usize>(self, simd: S) {
        let Self { queries: own, scratch, output } = self;
        let taker = output.taker();
        let Attention { head_dim, value_dim, masks, .. } = *own.problem;
        let lanes = V * S::F32_LANES;
        #[cfg(target_arch = "x86_64")]
        let machine: Option<Machine> = amx::machine(own.problem, lanes);
        #[cfg(not(target_arch = "x86_64"))]
        let machine: Option<Machine> = None;
        let Sizes { part, block, features } = Sizes::of(own.problem, lanes, machine.is_some());

        let Scratch { rows, queries, contexts, running, keys, tile: buffer, .. } = scratch;
        own.rows(lanes, rows);
        #[cfg(target_arch = "x86_64")]
        let packed = &mut scratch.packed;
        if machine.is_none() {
            queries.resize(rows.len() * head_dim, 0.0);
        }
        #[cfg(target_arch = "x86_64")]
        if machine.is_some() {
            packed.resize(rows.len() / lanes, head_dim);
        }
        contexts.clear();
        contexts.resize(rows.len() * features, 0.0);
        running.clear();
        running.resize(rows.len() * 2, 0.0);
        buffer.resize(part * lanes);
        running.chunks_exact_mut(2 * lanes).for_each(|running| running[..lanes].fill(f32::NEG_INFINITY));

        let seen = Interval::around(rows.iter().map(|row| row.slots));
        let (from, to) = (seen.start, seen.end);
        let count = |tile: usize| (own.count * own.problem.group() - tile * lanes).min(lanes);
        if seen.is_empty() {
            for (tile, rows) in rows.chunks_exact(lanes).enumerate() {
                own.finish(rows, count(tile), &mut contexts[..lanes * value_dim], &running[..2 * lanes], &taker);
            }
            return;
        }
        // Blocks and parts begin at the same slots for every query, so that a row's sums are added in the same order in any batch.
        for start in (from / block * block..to).step_by(block) {
            // Keys that are left out at the beginning must not move the others to another part.
            let first = match masks.hidden {
                Some(_) => start,
                None => start + from.saturating_sub(start) / part * part,
            };
            let last = to.min(start + block);
            let slots = Interval::new(first, last);
            let read = Keys { problem: own.problem, batch: own.batch, head: own.kv_head, slots };
            let block = read.gather(keys, machine.as_ref());
            let states = contexts.chunks_exact_mut(lanes * features).zip(running.chunks_exact_mut(2 * lanes));
            for (tile, (contexts, running)) in states.enumerate() {
                let (own_rows, others) = rows[tile * lanes..].split_at(lanes);
                let products = match block.rows {
                    Rows::F32(block) => {
                        let query = &mut queries[tile * lanes * head_dim..][..lanes * head_dim];
                        if start <= from {
                            own.pack(own_rows, query);
                        }
                        Products::F32 { query, block }
                    }
                    #[cfg(target_arch = "x86_64")]
                    Rows::Amx(machine, block) => {
                        if start <= from {
                            packed.pack(tile, &own, own_rows);
                        }
                        Products::Amx(amx::Products { tiles: machine, query: packed.tile(tile, head_dim), block })
                    }
                };
                if start <= from {
                    own.fetch(&others[..others.len().min(lanes)]);
                }
                if last == to {
                    own.fetch_places(own_rows, output);
                }
                Tile::<S, V> { simd, queries: &own, rows: own_rows, block: &block, products, part }
                    .attend(buffer, contexts, running);
                if last == to {
                    let contexts = &mut contexts[..lanes * value_dim];
                    own.finish(own_rows, count(tile), contexts, running, &taker);
                }
            }
        }
    }
}
