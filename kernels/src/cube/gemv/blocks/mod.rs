//! The product with a matrix of quantised blocks, `[out, in]`, as they are stored.

mod chunk;

use cubecl::prelude::*;

use self::chunk::{CHUNK, Chunk, RAISED, align, load, number, packed, scales};
use super::activations::{Activations, Exchange, activations, line};
use super::output::{Sizes, sizes, write};
use super::plan::{fills, lanes, tile_length};
use super::problem::{CheckedGemv, Extents};
use crate::cube::blocks::CheckedBlocks;
use crate::cube::bytes::{BYTES, ZERO};
use crate::cube::lanes::lanes_sum;
use crate::cube::machine::{Machine, Unsupported};
use crate::cube::tensors::{array, vector_size};

/// Units of a cube.
const UNITS: u32 = 256;
/// Sums of a lane, one for each output and row, that leave registers for loads in flight.
const MOST_SUMS: usize = 16;
/// Lanes whose chunks are all of the elements that share bytes: 128 of Q6_K.
const FEWEST_LANES: u32 = 4;
/// Words that a lane has in flight for one or two rows, and for more, whose sums take registers.
const WORDS: [usize; 2] = [40, 24];

/// What is compiled into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Tile {
    exchange: Exchange,
    chunk: Chunk,
    /// Outputs of a group of lanes.
    outputs: u32,
    /// Chunks of each output that a lane has in flight.
    unroll: u32,
    /// Chunks of a row that shared memory holds.
    length: u32,
    /// Parts of a row from one line of shared memory to the next.
    line: u32,
    /// Whether the last step of a row is whole.
    even: bool,
}

impl Tile {
    /// Sums of a lane.
    fn sums(self) -> usize {
        (self.outputs * self.exchange.rows) as usize
    }

    /// Chunks that a lane has in flight.
    fn chunks(self) -> usize {
        (self.outputs * self.unroll) as usize
    }
}

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

/// Launches the kernel.
pub(super) fn launch<R: Runtime>(
    client: &ComputeClient<R>,
    machine: &Machine,
    problem: &CheckedGemv<'_, R>,
    blocks: &CheckedBlocks<'_, R>,
) -> Result<(), Unsupported> {
    let chunk = Chunk::new(blocks)?;
    let vector = vector_size(client, &problem.activations(), CHUNK);
    let tile = tile(machine, problem.extents, chunk)?;
    let tile = Tile { line: line(tile.length, (CHUNK / vector) as u32), ..tile };
    let each = (tile.exchange.groups() * tile.outputs) as usize;
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
            CubeDim::new_1d(tile.exchange.units),
            vector,
            vector.min(4),
            chunk.vector as usize,
            activations(problem, vector, CHUNK / vector, chunk.apart()),
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
        );
    }
    Ok(())
}

/// The tile of a problem.
fn tile(machine: &Machine, extents: Extents, chunk: Chunk) -> Result<Tile, Unsupported> {
    let Extents { rows, inputs, outputs } = extents;
    let chunks = inputs / CHUNK;
    let units = machine.units(UNITS);
    let lanes = lanes(machine, units);
    let exchange = Exchange { units, lanes, rows: rows as u32, planes: machine.plane_operations };
    if lanes < FEWEST_LANES {
        return Err(Unsupported::Multiple {
            what: "lanes of a plane",
            size: lanes as usize,
            multiple: FEWEST_LANES as usize,
        });
    }
    let cubes = |each: usize| outputs.div_ceil(exchange.groups() as usize * each);
    let (words, most_words) = (chunk.loads() * chunk.load() as usize / BYTES, WORDS[usize::from(rows > 2)]);
    // As for dense matrices: several outputs share what a lane reads of the input.
    let most = if machine.plane_operations { 4 } else { 1 };
    let fits = |each: usize| each * rows <= MOST_SUMS && each * words <= most_words && each <= most;
    let each = [4, 2].into_iter().find(|each| fits(*each) && fills(machine, cubes(*each))).unwrap_or(1);
    let in_flight = (most_words / (each * words)).max(1);
    let mut unroll = (1 << in_flight.ilog2()).min(chunks.div_ceil(lanes as usize).next_power_of_two());
    // What `line` adds, at most.
    let unused = 2 * CHUNK * rows * size_of::<f32>();
    let length = loop {
        match tile_length(machine, exchange, unused, chunks, lanes as usize * unroll, CHUNK) {
            Err(_) if unroll > 1 => unroll /= 2,
            length => break length?,
        }
    };
    Ok(Tile {
        exchange,
        chunk,
        outputs: each as u32,
        unroll: unroll as u32,
        length: length as u32,
        line: length as u32,
        even: chunks.is_multiple_of(lanes as usize * unroll),
    })
}

/// A few outputs for each group of lanes, for all rows of the input.
///
/// Tile: the cube holds `length` chunks of 32 elements of every row of the input in shared memory, normalised, in the order in which
/// blocks hold the elements. A group of lanes owns `outputs` neighbouring outputs; lane `l` reads the chunks `l`, `l + lanes`, .. of each,
/// `unroll` of them ahead. It loads all words that have bytes of its chunk, 8 or 16 bytes at a time, and a funnel moves them to the places
/// of whole words: neighbours share words, which then come from the first cache. The first loads start before the input is normalised.
/// Elements become f32 in registers, and scale and minimum multiply the sums of a chunk, or of each half. The launch has
/// `outputs / (groups · tile.outputs)` cubes along x, rounded up; `length` is a multiple of `lanes · unroll`.
#[cube(launch_unchecked)]
fn product_blocks<F: Float, G: Float, E: Float, B: Float, N: Size, S: Size, M: Size>(
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
) {
    let exchange = comptime!(tile.exchange);
    let rows = comptime!(exchange.rows as usize);
    let outputs = comptime!(tile.outputs as usize);
    let width = S::value();
    let parts = comptime!(CHUNK / width);
    let chunks = activations.products();
    let lane = UNIT_POS % exchange.lanes;
    let group = UNIT_POS / exchange.lanes;
    let first_output = (CUBE_POS_X * comptime!(exchange.groups()) + group) * tile.outputs;

    let mut shared = SharedMemory::<f32>::new(comptime!(exchange.units as usize));
    let mut held = SharedMemory::<Vector<f32, S>>::new(comptime!(rows * parts * tile.line as usize));

    // After the last output its weights are read again, and the sums dropped.
    let mut begin = Array::<u32>::new(outputs);
    #[unroll]
    for o in 0..outputs {
        begin[o] = place.first + min(first_output + o as u32, sizes.outputs - 1) * place.row;
    }
    // The first weights are loaded while the input is normalised.
    let mut loaded = Array::<Vector<u32, M>>::new(comptime!(tile.chunks() * tile.chunk.loads()));
    load_chunks::<M>(&mut loaded, matrix, place, &begin, lane, chunks, tile);

    let statistics = activations.statistics(&mut shared, exchange);

    let mut sums = Array::<f32>::new(comptime!(tile.sums()));
    #[unroll]
    for s in 0..comptime!(tile.sums()) {
        sums[s] = 0.0f32;
    }
    activations.fill::<S>(&mut held, normed, &statistics, 0u32, tile.length, exchange);
    sync_cube();
    multiply::<M, S>(&mut sums, &loaded, place, &begin, &held, 0u32, lane, chunks, tile);
    for first in range_stepped(0u32, chunks, tile.length) {
        let mut start = comptime!(exchange.lanes * tile.unroll).runtime();
        if first > 0 {
            // The previous tile has been read.
            sync_cube();
            activations.fill::<S>(&mut held, normed, &statistics, first, tile.length, exchange);
            sync_cube();
            start = 0u32.runtime();
        }
        let span = min(chunks - first, tile.length);
        for base in range_stepped(start, span, comptime!(exchange.lanes * tile.unroll)) {
            load_chunks::<M>(&mut loaded, matrix, place, &begin, first + base + lane, chunks, tile);
            multiply::<M, S>(&mut sums, &loaded, place, &begin, &held, first, base + lane, chunks, tile);
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

/// The chunks `first`, `first + lanes`, .. of each output: all loads together, so that they are in flight together. After the last chunk
/// it is loaded again.
#[cube]
fn load_chunks<M: Size>(
    loaded: &mut Array<Vector<u32, M>>,
    matrix: &Array<Vector<u32, M>>,
    place: &Rows,
    begin: &Array<u32>,
    first: u32,
    chunks: u32,
    #[comptime] tile: Tile,
) {
    let outputs = comptime!(tile.outputs as usize);
    let each = comptime!(tile.chunk.loads());
    #[unroll]
    for u in 0..tile.unroll as usize {
        let at = own(first, u as u32, chunks, tile);
        #[unroll]
        for o in 0..outputs {
            load::<M>(loaded, matrix, begin[o], at, place.last, comptime!((u * outputs + o) * each), tile.chunk);
        }
    }
}

/// Chunk `u` of those of a lane from `first` on, or the last one.
#[cube]
fn own(first: u32, u: u32, chunks: u32, #[comptime] tile: Tile) -> u32 {
    let at = first + u * tile.exchange.lanes;
    if comptime!(tile.even) { at } else { min(at, chunks - 1) }
}

/// Multiplies what was loaded with the chunks `first`, `first + lanes`, .. of the tile, which begins with chunk `before`, and adds to the
/// sums. What the tile holds after the last chunk is 0.
#[cube]
fn multiply<M: Size, S: Size>(
    sums: &mut Array<f32>,
    loaded: &Array<Vector<u32, M>>,
    place: &Rows,
    begin: &Array<u32>,
    held: &SharedMemory<Vector<f32, S>>,
    before: u32,
    first: u32,
    chunks: u32,
    #[comptime] tile: Tile,
) {
    let chunk = comptime!(tile.chunk);
    let rows = comptime!(tile.exchange.rows as usize);
    let outputs = comptime!(tile.outputs as usize);
    let width = S::value();
    let parts = comptime!(CHUNK / width);
    let (runs, each) = comptime!((chunk.runs(), chunk.words()));
    #[unroll]
    for u in 0..tile.unroll as usize {
        let own = own(before + first, u as u32, chunks, tile);
        let at = first + u as u32 * tile.exchange.lanes;
        let mut words = Array::<u32>::new(comptime!(outputs * each));
        #[unroll]
        for o in 0..outputs {
            let from = comptime!((u * outputs + o) * chunk.loads());
            align::<M>(&mut words, loaded, begin[o], own, comptime!(o * each), from, chunk);
        }
        #[unroll]
        for run in 0..runs {
            let mut own_sums = Array::<f32>::new(comptime!(tile.sums()));
            let mut of_inputs = Array::<f32>::new(rows);
            #[unroll]
            for s in 0..comptime!(tile.sums()) {
                own_sums[s] = 0.0f32;
            }
            #[unroll]
            for r in 0..rows {
                of_inputs[r] = 0.0f32;
            }
            #[unroll]
            for q in 0..comptime!(parts / runs) {
                let p = comptime!(run * (parts / runs) + q);
                let mut weight = Array::<Vector<f32, S>>::new(outputs);
                #[unroll]
                for o in 0..outputs {
                    let bytes = packed(&words, own, comptime!(p * width / BYTES), comptime!(o * each), chunk);
                    let mut numbers = Vector::<f32, S>::new(0.0f32);
                    #[unroll]
                    for e in 0..width {
                        let byte = comptime!(((p * width + e) % BYTES) as u32);
                        numbers[e] = number(bytes, place.zero, place.raised, byte, chunk);
                    }
                    weight[o] = numbers;
                }
                #[unroll]
                for r in 0..rows {
                    let part = held[(r * parts + p) * tile.line as usize + at as usize];
                    #[unroll]
                    for e in 0..width {
                        if comptime!(chunk.has_minimum()) {
                            of_inputs[r] += part[e];
                        }
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
                let (scale, minimum) = scales(&words, own, comptime!(run as u32), comptime!(o * each), chunk);
                #[unroll]
                for r in 0..rows {
                    sums[o * rows + r] += own_sums[o * rows + r] * scale;
                    if comptime!(chunk.has_minimum()) {
                        sums[o * rows + r] += of_inputs[r] * minimum;
                    }
                }
            }
        }
    }
}
