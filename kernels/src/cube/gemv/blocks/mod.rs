//! The product with a matrix of quantised blocks, `[out, in]`, as they are stored.

mod chunk;
mod elements;
pub(super) mod mma;
mod stage;
mod tile;

use burn_deepspeed_core::block::UNIT_BYTES;
use cubecl::prelude::*;

use self::chunk::Chunk;
use self::elements::{factors, numbers};
use self::stage::{exchange, load, step};
use self::tile::{Tile, tile};
use super::activations::{Activations, activations, line};
use super::output::{Sizes, sizes, write};
use super::problem::CheckedGemv;
use crate::cube::blocks::CheckedBlocks;
use crate::cube::bytes::{RAISED, ZERO};
use crate::cube::contract::f32_type;
use crate::cube::lanes::{lanes_sum, vector_sum};
use crate::cube::machine::{Machine, Unsupported, f16_type};
use crate::cube::tensors::{array, vector_size};

/// Elements of a vector of the input: units that write a part each use all banks.
const VECTOR: usize = 4;

/// Where the rows of the matrix are.
#[derive(CubeType, CubeLaunch)]
struct Rows {
    /// The first byte, and the bytes of a row.
    first: u32,
    row: u32,
    /// The last load of the matrix.
    last: u32,
    /// [`ZERO`].
    zero: u32,
    /// [`RAISED`].
    raised: u32,
}

/// Multiplies: one launch, on tensor cores where the device has them.
pub(super) fn launch<R: Runtime>(
    client: &ComputeClient<R>,
    machine: &Machine,
    problem: &CheckedGemv<'_, R>,
    blocks: &CheckedBlocks<'_, R>,
) -> Result<(), Unsupported> {
    match mma::plan(client, machine, problem, blocks) {
        Ok(tile) => mma::multiply(client, machine, problem, blocks, tile),
        Err(_) => launch_simt(client, machine, problem, blocks),
    }
}

/// Launches the kernel of this file.
fn launch_simt<R: Runtime>(
    client: &ComputeClient<R>,
    machine: &Machine,
    problem: &CheckedGemv<'_, R>,
    blocks: &CheckedBlocks<'_, R>,
) -> Result<(), Unsupported> {
    let chunk = Chunk::new(machine, blocks)?;
    let vector = vector_size(client, &problem.activations(), VECTOR);
    let fold = chunk.elements() / vector;
    let tile = tile(machine, problem.extents, chunk)?;
    let tile = Tile { line: line(tile.length, fold as u32), ..tile };
    let each = (tile.stage.exchange.groups() * tile.outputs) as usize;
    let cubes = machine.cubes([problem.extents.outputs.div_ceil(each), 1, 1])?;
    let loads = blocks.bytes.shape()[0] / chunk.load() as usize;
    let rows =
        RowsLaunch::new(blocks.first as u32, blocks.row_bytes as u32, loads.saturating_sub(1) as u32, ZERO, RAISED);
    let [gamma, beta, bias] = problem.parameter_types();
    // SAFETY: the tensors were checked against each other, and the kernel reads and writes within the sizes that `Sizes`, `Rows` and
    // `Activations` count. The bytes are whole loads.
    unsafe {
        product_blocks::launch_unchecked::<R>(
            client,
            cubes,
            CubeDim::new_1d(tile.stage.exchange.units),
            vector,
            vector,
            chunk.vector as usize,
            chunk.width() as usize,
            activations(problem, vector, fold, chunk.apart()),
            array(blocks.bytes),
            rows,
            problem.bias_array(),
            array(problem.output),
            problem.normed_array(),
            sizes(problem, 1),
            tile,
            problem.input.dtype,
            gamma,
            beta,
            bias,
            if chunk.halves { f16_type() } else { f32_type() },
        );
    }
    Ok(())
}

/// A few outputs for each group of lanes, for all rows of the input.
///
/// Tile: the cube holds `length` chunks of 32 to 128 elements of every row of the input in shared memory, normalised, in the order in
/// which blocks hold the elements. A group of lanes owns `outputs` neighbouring outputs; lane `l` reads the chunks `l`, `l + lanes`, .. of
/// each, `unroll` of them ahead. A group loads its chunks together, 16 bytes of a lane next to those of its neighbour, and exchanges them
/// through shared memory; see `stage`. A chunk has as many blocks as begin at a word; where rows have no whole number of these, the bytes of
/// a block are moved to the places of whole words. The first loads start before the input is normalised. Elements become f32 in registers, and
/// a scale multiplies the sum of its run; a minimum multiplies the sum of the inputs of its run, which the cube adds up once. The launch has
/// `outputs / (groups · tile.outputs)` cubes along x, rounded up; `length` is a multiple of `lanes · unroll`.
#[cube(launch_unchecked)]
fn product_blocks<F: Float, G: Float, E: Float, B: Float, H: Float, N: Size, S: Size, M: Size, R: Size>(
    activations: &Activations<F, G, E, N>,
    matrix: &Array<Vector<u32, M>>,
    place: &Rows,
    bias: &ComptimeOption<Array<B>>,
    output: &mut Array<F>,
    normed: &mut ComptimeOption<Array<Vector<F, N>>>,
    sizes: &Sizes,
    #[comptime] tile: Tile,
    #[define(F)] _element_type: StorageType,
    #[define(G)] _gamma_type: StorageType,
    #[define(E)] _beta_type: StorageType,
    #[define(B)] _bias_type: StorageType,
    #[define(H)] _half_type: StorageType,
) {
    let exchange = comptime!(tile.stage.exchange);
    let rows = comptime!(exchange.rows as usize);
    let outputs = comptime!(tile.outputs as usize);
    let width = S::value();
    let parts = comptime!(tile.stage.chunk.elements() / width);
    let chunks = activations.products();
    let lane = UNIT_POS % exchange.lanes;
    let group = UNIT_POS / exchange.lanes;
    let first_output = (CUBE_POS_X * comptime!(exchange.groups()) + group) * tile.outputs;

    let mut shared = SharedMemory::<f32>::new(comptime!(exchange.units as usize));
    let mut held = Held::<S, R> {
        factors: SharedMemory::new(comptime!(rows * parts * tile.line as usize)),
        totals: SharedMemory::new(comptime!((rows * tile.stage.chunk.totals() * tile.length as usize).max(1))),
        staged: SharedMemory::new_aligned(comptime!(tile.stage.vectors()), UNIT_BYTES),
    };

    // After the last output its weights are read again, and the sums dropped.
    let mut begin = Array::<u32>::new(outputs);
    #[unroll]
    for o in 0..outputs {
        begin[o] = place.first + min(first_output + o as u32, sizes.outputs - 1) * place.row;
    }
    // The first weights are loaded while the input is normalised.
    let mut loaded = Array::<Vector<u32, M>>::new(comptime!(tile.chunks() * tile.loads()));
    load_chunks::<M>(&mut loaded, matrix, place, &begin, 0u32, lane, chunks, tile);

    let statistics = activations.statistics(&mut shared, exchange);

    let mut sums = Array::<f32>::new(comptime!(tile.sums()));
    #[unroll]
    for s in 0..comptime!(tile.sums()) {
        sums[s] = 0.0f32;
    }
    activations.fill::<S>(&mut held.factors, normed, &statistics, 0u32, tile.length, exchange);
    sync_cube();
    held.add_up(tile);
    multiply::<H, M, S, R>(&mut sums, &loaded, place, &begin, &mut held, 0u32, 0u32, lane, chunks, tile);
    for first in range_stepped(0u32, chunks, tile.length) {
        let mut start = comptime!(exchange.lanes * tile.unroll).runtime();
        if first > 0 {
            // The previous tile has been read.
            sync_cube();
            activations.fill::<S>(&mut held.factors, normed, &statistics, first, tile.length, exchange);
            sync_cube();
            held.add_up(tile);
            start = 0u32.runtime();
        }
        let span = min(chunks - first, tile.length);
        for base in range_stepped(start, span, comptime!(exchange.lanes * tile.unroll)) {
            load_chunks::<M>(&mut loaded, matrix, place, &begin, first + base, lane, chunks, tile);
            multiply::<H, M, S, R>(&mut sums, &loaded, place, &begin, &mut held, first, base, lane, chunks, tile);
        }
    }

    #[unroll]
    for s in 0..comptime!(tile.sums()) {
        let sum = lanes_sum(sums[s], &mut shared, exchange.lanes, exchange.planes);
        let at = first_output + comptime!((s / rows) as u32);
        // The lanes share the writing.
        if lane == comptime!(s as u32 % exchange.lanes) && at < sizes.outputs {
            write::<F, B>(sum, comptime!((s % rows) as u32), at, bias, output, sizes);
        }
    }
}

/// What the cube holds in shared memory.
#[derive(CubeType)]
struct Held<S: Size, R: Size> {
    /// As [`Activations::fill`] stores them.
    factors: SharedMemory<Vector<f32, S>>,
    /// Where the format has minima: the sum of the factors of run `run` of chunk `at` in row `r`, at `(r · runs + run) · length + at`.
    totals: SharedMemory<f32>,
    /// What the lanes of each group exchange.
    staged: SharedMemory<Vector<u32, R>>,
}

#[cube]
impl<S: Size, R: Size> Held<S, R> {
    /// Adds up what minima are multiplied with. Every unit of the cube must call this.
    fn add_up(&mut self, #[comptime] tile: Tile) {
        let (totals, width) = (comptime!(tile.stage.chunk.totals() as u32), S::value());
        if comptime!(totals > 0) {
            let parts = comptime!((tile.stage.chunk.elements() / width) as u32 / totals);
            let count = comptime!(tile.stage.exchange.rows * totals * tile.length);
            for own in range_stepped(UNIT_POS, count, tile.stage.exchange.units) {
                let first = own / tile.length * parts * tile.line + own % tile.length;
                let mut sum = 0.0f32.runtime();
                #[unroll]
                for p in 0..parts {
                    sum += vector_sum::<S>(self.factors[(first + p * tile.line) as usize]);
                }
                self.totals[own as usize] = sum;
            }
            sync_cube();
        }
    }
}

/// The steps of a group that begin at the chunks `first`, `first + lanes`, .. of each output: all loads together, so that they are in flight
/// together. After the last chunk it is loaded again.
#[cube]
fn load_chunks<M: Size>(
    loaded: &mut Array<Vector<u32, M>>,
    matrix: &Array<Vector<u32, M>>,
    place: &Rows,
    begin: &Array<u32>,
    first: u32,
    lane: u32,
    chunks: u32,
    #[comptime] tile: Tile,
) {
    let outputs = comptime!(tile.outputs as usize);
    let each = comptime!(tile.loads());
    #[unroll]
    for u in 0..tile.unroll as usize {
        let step = step(first + u as u32 * tile.stage.exchange.lanes, lane, chunks, tile.stage);
        #[unroll]
        for o in 0..outputs {
            let to = comptime!((u * outputs + o) * each);
            load::<M>(loaded, matrix, begin[o], step, lane, place.last, to, tile.stage);
        }
    }
}

/// Multiplies what was loaded with the chunks `first + lane`, `first + lane + lanes`, .. of the tile, which begins with chunk `before`, and
/// adds to the sums. What the tile holds after the last chunk is 0. Every unit of the cube must call this.
#[cube]
fn multiply<H: Float, M: Size, S: Size, R: Size>(
    sums: &mut Array<f32>,
    loaded: &Array<Vector<u32, M>>,
    place: &Rows,
    begin: &Array<u32>,
    held: &mut Held<S, R>,
    before: u32,
    first: u32,
    lane: u32,
    chunks: u32,
    #[comptime] tile: Tile,
) {
    let chunk = comptime!(tile.stage.chunk);
    let rows = comptime!(tile.stage.exchange.rows as usize);
    let outputs = comptime!(tile.outputs as usize);
    let width = S::value();
    let (runs, each) = comptime!((chunk.runs(), chunk.words()));
    // Parts of a chunk, and of a run.
    let parts = comptime!(chunk.elements() / width);
    let of_run = comptime!(parts / runs);
    #[unroll]
    for u in 0..tile.unroll as usize {
        let step = step(before + first + u as u32 * tile.stage.exchange.lanes, lane, chunks, tile.stage);
        let own = step.own;
        let at = first + lane + u as u32 * tile.stage.exchange.lanes;
        let mut words = Array::<u32>::new(comptime!(outputs * each));
        #[unroll]
        for o in 0..outputs {
            let (to, from) = comptime!((o * each, (u * outputs + o) * tile.loads()));
            exchange::<M, R>(&mut words, &mut held.staged, loaded, begin[o], step, to, from, tile.stage);
        }
        #[unroll]
        for run in 0..runs {
            let mut own_sums = Array::<f32>::new(comptime!(tile.sums()));
            let mut totals = Array::<f32>::new(rows);
            #[unroll]
            for s in 0..comptime!(tile.sums()) {
                own_sums[s] = 0.0f32;
            }
            if comptime!(chunk.has_minimum()) {
                #[unroll]
                for r in 0..rows {
                    totals[r] = held.totals[(r * runs + run) * tile.length as usize + at as usize];
                }
            }
            #[unroll]
            for q in 0..of_run {
                let p = comptime!(run * of_run + q);
                let mut weight = Array::<Vector<f32, S>>::new(outputs);
                #[unroll]
                for o in 0..outputs {
                    let from = comptime!(o * each);
                    weight[o] = numbers::<S>(&words, own, place.zero, place.raised, comptime!(p * width), from, chunk);
                }
                #[unroll]
                for r in 0..rows {
                    let part = held.factors[(r * parts + p) * tile.line as usize + at as usize];
                    #[unroll]
                    for e in 0..width {
                        #[unroll]
                        for o in 0..outputs {
                            let weight = weight[o];
                            own_sums[o * rows + r] += part[e] * weight[e];
                        }
                    }
                }
            }
            #[unroll]
            for o in 0..outputs {
                let factors = factors::<H>(&words, own, run, comptime!(o * each), chunk);
                #[unroll]
                for r in 0..rows {
                    sums[o * rows + r] += own_sums[o * rows + r] * factors.scale;
                    if comptime!(chunk.has_minimum()) {
                        sums[o * rows + r] += totals[r] * factors.minimum;
                    }
                }
            }
        }
    }
}
