//! The product with an `[out, in]` matrix: the weights of an output are contiguous.

use cubecl::prelude::*;

use super::activations::{Activations, activations, line};
use super::exchange::Exchange;
use super::int8::{Loads, Scales, scales};
use super::output::{Sizes, sizes, write};
use super::plan::{fills, lanes, loads, tile_length};
use super::problem::{CheckedGemv, CheckedMatrix, Extents};
use crate::cube::bytes::{Reading, integers};
use crate::cube::lanes::lanes_sum;
use crate::cube::machine::{Machine, Unsupported};
use crate::cube::tensors::{array, vector_size};

/// Units of a cube.
const UNITS: u32 = 256;

/// Sums of a lane, one for each output and row, that leave registers for loads in flight.
const MOST_SUMS: usize = 16;
/// The same where an output has several scales: the sum of each vector is kept next to the sum of all.
const MOST_SCALED_SUMS: usize = 8;

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
    /// Parts of a row from one line of shared memory to the next.
    line: u32,
    /// Whether the last step of a row is whole.
    even: bool,
    /// Whether an element of the matrix is a word of 4 weights.
    words: bool,
}

impl Tile {
    /// Scales that a lane loads with its vectors.
    fn scales(self) -> Loads {
        Loads { outputs: self.outputs, unroll: self.unroll, lanes: self.exchange.lanes }
    }

    /// Vectors that a group of lanes has in flight.
    fn loads(self) -> usize {
        (self.unroll * self.outputs) as usize
    }

    /// Sums of a lane.
    fn sums(self) -> usize {
        (self.outputs * self.exchange.rows) as usize
    }

    /// Parts of `width` weights in a vector of `elements`.
    fn parts(self, elements: usize, width: usize) -> usize {
        elements * if self.words { 4 } else { 1 } / width
    }
}

/// Launches the kernel.
pub(super) fn launch<R: Runtime>(
    client: &ComputeClient<R>,
    machine: &Machine,
    problem: &CheckedGemv<'_, R>,
) -> Result<(), Unsupported> {
    let extents = problem.extents;
    let matrix = problem.matrix.elements();
    let readings = match &problem.matrix {
        CheckedMatrix::Dense(..) => {
            let mut together = problem.activations();
            together.push(matrix);
            let vector = vector_size(client, &together, extents.inputs);
            vec![Reading { elements: matrix.dtype, vector, words: false }]
        }
        CheckedMatrix::Int8(matrix) => Reading::of_int8(client, matrix),
        CheckedMatrix::Blocks(matrix) => return Err(Unsupported::BlockFormat(matrix.format)),
    };
    let several_scales = matches!(&problem.matrix, CheckedMatrix::Int8(matrix) if matrix.wide().is_some());
    let most_sums = if several_scales { MOST_SCALED_SUMS } else { MOST_SUMS };
    // The factors of narrow vectors may fit into shared memory where those of wide ones do not.
    let plans = readings.into_iter().map(|reading| Ok((reading, tile(machine, extents, reading, most_sums)?)));
    let (reading, tile) = plans.reduce(Result::or).unwrap_or_else(|| unreachable!("there is a way to read bytes"))?;
    if !client.properties().supports_type(reading.elements) {
        return Err(Unsupported::ElementType(reading.elements));
    }
    let int8 = match &problem.matrix {
        CheckedMatrix::Dense(..) | CheckedMatrix::Blocks(_) => None,
        CheckedMatrix::Int8(matrix) => Some(matrix),
    };
    let weights = reading.weights();
    let vector = vector_size(client, &problem.activations(), weights);
    let tile = Tile { line: line(tile.length, (weights / vector) as u32), ..tile };
    let cubes = machine.cubes([extents.outputs.div_ceil((tile.exchange.groups() * tile.outputs) as usize), 1, 1])?;
    let [gamma, beta, bias] = problem.parameter_types();
    // SAFETY: the tensors were checked against each other, and the kernel reads and writes within the sizes that `Sizes` and
    // `Activations` count. Words are read where rows consist of whole ones.
    unsafe {
        product::launch_unchecked::<R>(
            client,
            cubes,
            CubeDim::new_1d(tile.exchange.units),
            vector,
            vector.min(4),
            reading.vector,
            activations(problem, vector, weights / vector, None),
            array(matrix),
            scales(int8, weights),
            problem.bias_array(),
            array(problem.output),
            problem.normed_array(),
            sizes(problem, weights),
            tile,
            problem.input.dtype,
            reading.elements,
            gamma,
            beta,
            bias,
        );
    }
    Ok(())
}

/// The tile of a problem, with at most so many sums of a lane.
fn tile(machine: &Machine, extents: Extents, reading: Reading, most_sums: usize) -> Result<Tile, Unsupported> {
    let Extents { rows, inputs, outputs } = extents;
    let vectors = inputs / reading.weights();
    let units = machine.units(UNITS);
    let lanes = lanes(machine, units);
    let exchange = Exchange { units, lanes, rows: rows as u32, planes: machine.plane_operations };
    let cubes = |each: usize| outputs.div_ceil(exchange.groups() as usize * each);
    // Several outputs share what a lane reads of the input, but not at the price of idle multiprocessors.
    // Nor without plane operations, where each sum costs two barriers.
    let most = if machine.plane_operations { 4 } else { 1 };
    let each = [4, 2]
        .into_iter()
        .find(|each| *each * rows <= most_sums && *each <= most && fills(machine, cubes(*each)))
        .unwrap_or(1);
    let mut unroll = (loads(rows) / each).min(vectors.div_ceil(lanes as usize).next_power_of_two()).max(1);
    // What `line` adds, at most.
    let unused = if reading.words { 2 * reading.weights() * rows * size_of::<f32>() } else { 0 };
    let length = loop {
        match tile_length(machine, exchange, unused, vectors, lanes as usize * unroll, reading.weights()) {
            Err(_) if unroll > 1 => unroll /= 2,
            length => break length?,
        }
    };
    Ok(Tile {
        exchange,
        outputs: each as u32,
        unroll: unroll as u32,
        length: length as u32,
        line: length as u32,
        even: vectors.is_multiple_of(lanes as usize * unroll),
        words: reading.words,
    })
}

/// A few outputs for each group of lanes, for all rows of the input.
///
/// Tile: the cube holds `length` vectors of every row of the input in shared memory, normalised, and multiplies them with as
/// many of each of its outputs, tile after tile. A group of lanes owns `outputs` neighbouring outputs; lane `l` reads
/// the vectors `l`, `l + lanes`, .. of each, `unroll` of them ahead, so that a group reads unbroken lines of memory.
/// The first loads start before the input is normalised. Sums stay in registers until the lanes add them
/// up at the end. Weights of int8 become f32 in registers. Where an output has one scale, it multiplies the sum at
/// the end; where it has several, each is loaded with its weights and multiplies what they add. The launch has
/// `outputs / (groups · tile.outputs)` cubes along x, rounded up; `length` is a multiple of `lanes · unroll`.
#[cube(launch_unchecked)]
fn product<F: Float, W: Numeric, G: Float, E: Float, B: Float, N: Size, S: Size, M: Size>(
    activations: &Activations<F, G, E, N>,
    matrix: &Array<Vector<W, M>>,
    scales: &Scales,
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
    let line = comptime!(tile.line as usize);
    let (elements, width) = (M::value(), S::value());
    let parts = comptime!(tile.parts(elements, width));
    let vectors = activations.products();
    let lane = UNIT_POS % exchange.lanes;
    let group = UNIT_POS / exchange.lanes;
    let first_output = (CUBE_POS_X * comptime!(exchange.groups()) + group) * tile.outputs;

    let mut shared = SharedMemory::<f32>::new(comptime!(exchange.units as usize));
    let mut held = SharedMemory::<Vector<f32, S>>::new(comptime!(rows * parts * line));

    // After the last output its weights are read again, and the sums dropped.
    let mut begin = Array::<u32>::new(outputs);
    let mut first_scale = Array::<u32>::new(outputs);
    #[unroll]
    for o in 0..outputs {
        let at = min(first_output + o as u32, sizes.outputs - 1);
        begin[o] = at * sizes.matrix;
        first_scale[o] = scales.begin(at);
    }
    // The first weights are loaded while the input is normalised.
    let mut loaded = Array::<Vector<W, M>>::new(comptime!(tile.loads()));
    let mut factors = Array::<f32>::new(comptime!(tile.loads()));
    load::<W, M>(&mut loaded, matrix, &begin, lane, vectors, tile);
    scales.load(&mut factors, &first_scale, lane, vectors, comptime!(tile.scales()));

    let statistics = activations.statistics(&mut shared, exchange);

    let mut sums = Array::<f32>::new(comptime!(tile.sums()));
    #[unroll]
    for s in 0..comptime!(tile.sums()) {
        sums[s] = 0.0f32;
    }
    activations.fill::<S>(&mut held, normed, &statistics, 0u32, tile.length, exchange);
    sync_cube();
    multiply::<W, M, S>(&mut sums, &loaded, &factors, scales, &held, lane, tile);
    for first in range_stepped(0u32, vectors, tile.length) {
        let mut start = comptime!(exchange.lanes * tile.unroll).runtime();
        if first > 0 {
            // The previous tile has been read.
            sync_cube();
            activations.fill::<S>(&mut held, normed, &statistics, first, tile.length, exchange);
            sync_cube();
            start = 0u32.runtime();
        }
        let span = min(vectors - first, tile.length);
        for base in range_stepped(start, span, comptime!(exchange.lanes * tile.unroll)) {
            load::<W, M>(&mut loaded, matrix, &begin, first + base + lane, vectors, tile);
            scales.load(&mut factors, &first_scale, first + base + lane, vectors, comptime!(tile.scales()));
            multiply::<W, M, S>(&mut sums, &loaded, &factors, scales, &held, base + lane, tile);
        }
    }

    #[unroll]
    for s in 0..comptime!(tile.sums()) {
        let sum = lanes_sum(sums[s], &mut shared, exchange.lanes, exchange.planes);
        let at = first_output + comptime!((s / rows) as u32);
        // The lanes share the writing.
        if lane == comptime!(s as u32 % exchange.lanes) && at < sizes.outputs {
            write::<F, B>(scales.whole(sum, at), comptime!((s % rows) as u32), at, bias, output, sizes);
        }
    }
}

/// The vectors `first`, `first + lanes`, .. of each output: all loads together, so that they are in flight together.
#[cube]
fn load<W: Numeric, M: Size>(
    loaded: &mut Array<Vector<W, M>>,
    matrix: &Array<Vector<W, M>>,
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
                loaded[u * outputs + o] = Vector::<W, M>::new(W::from_int(0));
                if at < vectors {
                    loaded[u * outputs + o] = matrix[(begin[o] + at) as usize];
                }
            }
        }
    }
}

/// Multiplies what was loaded with the vectors `first`, `first + lanes`, .. of the tile, and adds to the sums.
#[cube]
fn multiply<W: Numeric, M: Size, S: Size>(
    sums: &mut Array<f32>,
    loaded: &Array<Vector<W, M>>,
    factors: &Array<f32>,
    scales: &Scales,
    held: &SharedMemory<Vector<f32, S>>,
    first: u32,
    #[comptime] tile: Tile,
) {
    let rows = comptime!(tile.exchange.rows as usize);
    let outputs = comptime!(tile.outputs as usize);
    #[unroll]
    for u in 0..tile.unroll as usize {
        let at = first + u as u32 * tile.exchange.lanes;
        if comptime!(scales.wide.is_some()) {
            let mut own = Array::<f32>::new(comptime!(tile.sums()));
            #[unroll]
            for s in 0..comptime!(tile.sums()) {
                own[s] = 0.0f32;
            }
            add::<W, M, S>(&mut own, loaded, scales, held, u, at, tile);
            #[unroll]
            for s in 0..comptime!(tile.sums()) {
                sums[s] += own[s] * factors[comptime!(u * outputs + s / rows)];
            }
        } else {
            add::<W, M, S>(sums, loaded, scales, held, u, at, tile);
        }
    }
}

/// Multiplies vector `u` of what was loaded with vector `at` of the tile, and adds to the sums.
#[cube]
fn add<W: Numeric, M: Size, S: Size>(
    sums: &mut Array<f32>,
    loaded: &Array<Vector<W, M>>,
    scales: &Scales,
    held: &SharedMemory<Vector<f32, S>>,
    #[comptime] u: usize,
    at: u32,
    #[comptime] tile: Tile,
) {
    let (elements, width) = (M::value(), S::value());
    let parts = comptime!(tile.parts(elements, width));
    let rows = comptime!(tile.exchange.rows as usize);
    let outputs = comptime!(tile.outputs as usize);
    // A part of all outputs against a part of one row: with the loops exchanged every row would take registers.
    #[unroll]
    for p in 0..parts {
        let mut weight = Array::<Vector<f32, S>>::new(outputs);
        #[unroll]
        for o in 0..outputs {
            weight[o] = integers::<W, M, S>(loaded[u * outputs + o], scales.zero, comptime!(p * width), tile.words);
        }
        #[unroll]
        for r in 0..rows {
            let part = held[(r * parts + p) * tile.line as usize + at as usize];
            #[unroll]
            for o in 0..outputs {
                let weight = weight[o];
                #[unroll]
                for e in 0..width {
                    sums[o * rows + r] += part[e] * weight[e];
                }
            }
        }
    }
}
