//! The product with a matrix whose weights of one output lie one behind the other.

use cubecl::prelude::*;

use super::super::lanes::lanes_sum;
use super::super::machine::{Machine, Unsupported, array, vector_size};
use super::activations::{Activations, Exchange, activations};
use super::{Extents, Gemv, Sizes, fills, lanes, loads, tile_length, weights, write};

/// Units of a cube.
const UNITS: u32 = 256;

/// Sums of a lane, one for each output and row, that leave registers for loads in flight.
const MOST_SUMS: usize = 16;

/// What is compiled into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Tile {
    exchange: Exchange,
    /// Outputs of a group of lanes.
    outputs: u32,
    /// Vectors of each output that a lane has in flight.
    unroll: u32,
    /// Vectors of a row that shared memory holds.
    length: u32,
    /// Whether the last step of a row is whole.
    even: bool,
}

/// Launches the kernel; `problem` was checked.
pub(super) fn launch<R: Runtime>(
    client: &ComputeClient<R>,
    machine: &Machine,
    problem: &Gemv<'_, R>,
    extents: Extents,
) -> Result<(), Unsupported> {
    let Extents { rows, inputs, outputs } = extents;
    let mut together = problem.activations();
    together.push(problem.matrix);
    let vector = vector_size(client, &together, inputs);
    let vectors = inputs / vector;
    let units = machine.units(UNITS);
    let lanes = lanes(machine, units);
    let exchange = Exchange { units, lanes, rows: rows as u32, planes: machine.plane_operations };
    let cubes = |each: usize| outputs.div_ceil(exchange.groups() as usize * each);
    // Several outputs share what a lane reads of the input, but not at the price of idle multiprocessors.
    // Nor without plane operations, where each sum costs two barriers.
    let most = if machine.plane_operations { 4 } else { 1 };
    let each = [4, 2]
        .into_iter()
        .find(|each| *each * rows <= MOST_SUMS && *each <= most && fills(machine, cubes(*each)))
        .unwrap_or(1);
    let mut unroll = (loads(rows) / each).min(vectors.div_ceil(lanes as usize).next_power_of_two()).max(1);
    let length = loop {
        match tile_length(machine, exchange, 0, vectors, lanes as usize * unroll, vector) {
            Err(_) if unroll > 1 => unroll /= 2,
            length => break length?,
        }
    };
    let tile = Tile {
        exchange,
        outputs: each as u32,
        unroll: unroll as u32,
        length: length as u32,
        even: vectors.is_multiple_of(lanes as usize * unroll),
    };
    let cubes = machine.cubes([cubes(each), 1, 1])?;
    let [gamma, beta, bias] = problem.parameter_types();
    // SAFETY: the tensors have the sizes of `extents` and `Sizes`, and the kernel reads and writes within them.
    unsafe {
        product::launch_unchecked::<R>(
            client,
            cubes,
            CubeDim::new_1d(units),
            vector,
            vector.min(4),
            activations(problem, extents, vector),
            array(problem.matrix),
            problem.bias_array(),
            array(problem.output),
            problem.normed_array(),
            problem.sizes(extents, vector),
            tile,
            problem.input.dtype,
            problem.matrix.dtype,
            gamma,
            beta,
            bias,
        );
    }
    Ok(())
}

/// A few outputs for each group of lanes, for all rows of the input.
///
/// Tile: the cube holds `length` vectors of every row of the input in shared memory, normalised, and meets them with as
/// many of each of its outputs, tile after tile. A group of lanes owns `outputs` neighbouring outputs; lane `l` reads
/// the vectors `l`, `l + lanes`, .. of each, `unroll` of them ahead, so that a group reads unbroken lines of memory.
/// The first vectors are on their way before the input is normalised. Sums stay in registers until the lanes add them
/// up at the end. The launch has `outputs / (groups · tile.outputs)` cubes along x, rounded up; `length` is a multiple
/// of `lanes · unroll`.
#[cube(launch_unchecked)]
fn product<F: Float, W: Numeric, G: Float, E: Float, B: Float, N: Size, S: Size>(
    activations: &Activations<F, G, E, N>,
    matrix: &Array<Vector<W, N>>,
    bias: &ComptimeOption<Array<B>>,
    output: &mut Array<F>,
    normed: &mut ComptimeOption<Array<Vector<F, N>>>,
    sizes: &Sizes,
    #[comptime] tile: Tile,
    #[define(F)] _element_type: StorageType,
    #[define(W)] _weight_type: StorageType,
    #[define(G)] _gamma_type: StorageType,
    #[define(E)] _beta_type: StorageType,
    #[define(B)] _bias_type: StorageType,
) {
    let exchange = comptime!(tile.exchange);
    let rows = comptime!(exchange.rows as usize);
    let outputs = comptime!(tile.outputs as usize);
    let unroll = comptime!(tile.unroll as usize);
    let length = comptime!(tile.length as usize);
    let vector = N::value();
    let width = S::value();
    let parts = comptime!(vector / width);
    let lane = UNIT_POS % exchange.lanes;
    let group = UNIT_POS / exchange.lanes;
    let first_output = (CUBE_POS_X * comptime!(exchange.groups()) + group) * tile.outputs;

    let mut shared = SharedMemory::<f32>::new(comptime!(exchange.units as usize));
    let mut held = SharedMemory::<Vector<f32, S>>::new(comptime!(rows * parts * length));

    // Behind the last output its weights are read again, and the sums dropped.
    let mut begin = Array::<u32>::new(outputs);
    #[unroll]
    for o in 0..outputs {
        begin[o] = min(first_output + o as u32, sizes.outputs - 1) * sizes.matrix;
    }
    // The first weights are on their way while the input is normalised.
    let mut loaded = Array::<Vector<W, N>>::new(comptime!(unroll * outputs));
    load::<W, N>(&mut loaded, matrix, &begin, lane, activations.vectors, tile);

    let statistics = activations.statistics(&mut shared, exchange);

    let mut sums = Array::<f32>::new(comptime!(outputs * rows));
    #[unroll]
    for s in 0..comptime!(outputs * rows) {
        sums[s] = 0.0f32;
    }
    activations.fill::<S>(&mut held, normed, &statistics, 0u32, tile.length, exchange);
    sync_cube();
    meet::<W, N, S>(&mut sums, &loaded, &held, lane, tile);
    for first in range_stepped(0u32, activations.vectors, tile.length) {
        let mut start = comptime!(exchange.lanes * tile.unroll).runtime();
        if first > 0 {
            // The tile before has been read.
            sync_cube();
            activations.fill::<S>(&mut held, normed, &statistics, first, tile.length, exchange);
            sync_cube();
            start = 0u32.runtime();
        }
        let span = min(activations.vectors - first, tile.length);
        for base in range_stepped(start, span, comptime!(exchange.lanes * tile.unroll)) {
            load::<W, N>(&mut loaded, matrix, &begin, first + base + lane, activations.vectors, tile);
            meet::<W, N, S>(&mut sums, &loaded, &held, base + lane, tile);
        }
    }

    #[unroll]
    for s in 0..comptime!(outputs * rows) {
        let sum = lanes_sum(sums[s], &mut shared, exchange.lanes, exchange.planes);
        let at = first_output + comptime!((s / rows) as u32);
        // The lanes share the writing.
        if lane == comptime!(s as u32 % exchange.lanes) && at < sizes.outputs {
            write::<F, B>(sum, comptime!((s % rows) as u32), at, bias, output, sizes);
        }
    }
}

/// The vectors `first`, `first + lanes`, .. of each output: all loads together, so that they are in flight together.
#[cube]
fn load<W: Numeric, N: Size>(
    loaded: &mut Array<Vector<W, N>>,
    matrix: &Array<Vector<W, N>>,
    begin: &Array<u32>,
    first: u32,
    vectors: u32,
    #[comptime] tile: Tile,
) {
    let outputs = comptime!(tile.outputs as usize);
    #[unroll]
    for u in 0..tile.unroll as usize {
        let at = first + u as u32 * tile.exchange.lanes;
        #[unroll]
        for o in 0..outputs {
            if comptime!(tile.even) {
                loaded[u * outputs + o] = matrix[(begin[o] + at) as usize];
            } else {
                loaded[u * outputs + o] = Vector::<W, N>::new(W::from_int(0));
                if at < vectors {
                    loaded[u * outputs + o] = matrix[(begin[o] + at) as usize];
                }
            }
        }
    }
}

/// Adds what was loaded times the vectors `first`, `first + lanes`, .. of the tile to the sums.
#[cube]
fn meet<W: Numeric, N: Size, S: Size>(
    sums: &mut Array<f32>,
    loaded: &Array<Vector<W, N>>,
    held: &SharedMemory<Vector<f32, S>>,
    first: u32,
    #[comptime] tile: Tile,
) {
    let vector = N::value();
    let width = S::value();
    let parts = comptime!(vector / width);
    let rows = comptime!(tile.exchange.rows as usize);
    let outputs = comptime!(tile.outputs as usize);
    #[unroll]
    for u in 0..tile.unroll as usize {
        let at = (first + u as u32 * tile.exchange.lanes) as usize;
        // A part of all outputs against a part of one row: the other way round every row would take registers.
        #[unroll]
        for p in 0..parts {
            #[unroll]
            for r in 0..rows {
                let part = held[(r * parts + p) * tile.length as usize + at];
                #[unroll]
                for o in 0..outputs {
                    let weights = weights::<W, N>(loaded[u * outputs + o]);
                    #[unroll]
                    for e in 0..width {
                        sums[o * rows + r] += part[e] * weights[p * width + e];
                    }
                }
            }
        }
    }
}
