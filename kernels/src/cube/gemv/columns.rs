//! The product with an `[in, out]` matrix: neighbouring outputs are contiguous.

use cubecl::prelude::*;

use super::activations::{Activations, activations};
use super::exchange::Exchange;
use super::output::{Sizes, sizes, write};
use super::plan::{LOADS, fills, lanes, loads, tile_length};
use super::problem::{CheckedGemv, Extents};
use crate::cube::lanes::lanes_sum;
use crate::cube::machine::{Machine, Unsupported};
use crate::cube::tensors::{array, vector_size};

/// Units of a cube.
const UNITS: u32 = 256;
/// Units of a cube that is alone on its multiprocessor.
const LONELY_UNITS: u32 = 512;
/// Fewest bytes of a row of the matrix that a cube reads: two sectors of a cache line.
const SEGMENT_BYTES: usize = 64;

/// Bytes of the widest loads.
const LOAD_BYTES: usize = 16;

/// What is compiled into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Tile {
    exchange: Exchange,
    /// Vectors of outputs of a cube.
    width: u32,
    /// Vectors of the input that a unit multiplies at a time.
    unroll: u32,
    /// Vectors of a row that shared memory holds.
    length: u32,
    /// Whether the last step of a row is whole.
    even: bool,
}

impl Tile {
    /// Lanes of a group that share a vector of outputs.
    fn depth(self) -> u32 {
        self.exchange.lanes / self.width
    }

    /// Vectors of the input that the cube multiplies at a time.
    fn slots(self) -> u32 {
        self.exchange.groups() * self.depth()
    }
}

/// Launches the kernel.
pub(super) fn launch<R: Runtime>(
    client: &ComputeClient<R>,
    machine: &Machine,
    problem: &CheckedGemv<'_, R>,
) -> Result<(), Unsupported> {
    let Extents { rows, inputs, outputs } = problem.extents;
    let matrix = problem.matrix.elements();
    // The sums of many rows leave fewer registers for what is loaded.
    let many = rows > 4;
    let across = vector_size(client, &[matrix], outputs).min(if many { 4 } else { 8 });
    let along = vector_size(client, &problem.activations(), inputs).min(if many { 2 } else { 4 });
    let (columns, vectors) = (outputs / across, inputs / along);

    let lanes = lanes(machine, machine.units(UNITS));
    let narrowest = match machine.plane_operations {
        true => (SEGMENT_BYTES / (across * matrix.dtype.size())).clamp(1, lanes as usize),
        // No two lanes share a vector: each of their sums would cost two barriers.
        false => lanes as usize,
    };
    let halvings = (0..=lanes.trailing_zeros()).map(|by| lanes as usize >> by);
    let width = halvings
        .take_while(|width| *width >= narrowest)
        .find(|width| fills(machine, columns.div_ceil(*width)))
        .unwrap_or(narrowest);
    let cubes = columns.div_ceil(width);
    let units = machine.units(if fills(machine, cubes) { UNITS } else { LONELY_UNITS });

    let exchange = Exchange { units, lanes, rows: rows as u32, planes: machine.plane_operations };
    let loads = (loads(rows) * LOAD_BYTES / (across * matrix.dtype.size())).min(LOADS);
    let unroll = (loads / along).max(1);
    let mut tile = Tile { exchange, width: width as u32, unroll: unroll as u32, length: 0, even: false };
    let grouped = exchange.groups() as usize * width * across * size_of::<f32>();
    tile.length = loop {
        match tile_length(machine, exchange, grouped, vectors, (tile.slots() * tile.unroll) as usize, along) {
            Err(_) if tile.unroll > 1 => tile.unroll /= 2,
            length => break length? as u32,
        }
    };
    tile.even = vectors.is_multiple_of((tile.slots() * tile.unroll) as usize);
    let cubes = machine.cubes([cubes, 1, 1])?;
    let [gamma, beta, bias] = problem.parameter_types();
    // SAFETY: the tensors were checked against each other, and the kernel reads and writes within the sizes that `Sizes` and
    // `Activations` count.
    unsafe {
        product::launch_unchecked::<R>(
            client,
            cubes,
            CubeDim::new_1d(units),
            along,
            across,
            activations(problem, along, 1, None),
            array(matrix),
            problem.bias_array(),
            array(problem.output),
            problem.normed_array(),
            sizes(problem, across),
            tile,
            problem.input.dtype,
            matrix.dtype,
            gamma,
            beta,
            bias,
        );
    }
    Ok(())
}

/// A strip of outputs for each cube, for all rows of the input.
///
/// Tile: the cube holds `length` vectors of every row of the input in shared memory, normalised. A unit owns one vector
/// of outputs; `width` neighbouring units read one segment of a row of the matrix. The others of a group of lanes, and
/// the groups, read the same segment of further rows, `S` rows to a unit at once and `unroll` times as many ahead. The
/// first loads start before the input is normalised. Sums stay in registers until the lanes add them up, and then
/// the groups, through shared memory. The launch has `columns / width` cubes along x, rounded up; `width` divides
/// `lanes`, `length` is a multiple of `slots · unroll`.
#[cube(launch_unchecked)]
fn product<F: Float, W: Numeric, G: Float, E: Float, B: Float, S: Size, N: Size>(
    activations: &Activations<F, G, E, S>,
    matrix: &Array<Vector<W, N>>,
    bias: &ComptimeOption<Array<B>>,
    output: &mut Array<F>,
    normed: &mut ComptimeOption<Array<Vector<F, S>>>,
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
    let unroll = comptime!(tile.unroll as usize);
    let length = comptime!(tile.length as usize);
    let depth = comptime!(tile.depth());
    let slots = comptime!(tile.slots());
    let along = S::value();
    let across = N::value();
    let group = UNIT_POS / exchange.lanes;
    // Units whose sums are added are neighbours.
    let neighbour = UNIT_POS % depth;
    let slot = group * depth + neighbour;
    let strip = UNIT_POS / depth % tile.width;
    let columns = sizes.outputs / across as u32;
    // After the last column its weights are read again, and the sums dropped.
    let column = min(CUBE_POS_X * tile.width + strip, columns - 1);

    let mut shared = SharedMemory::<f32>::new(comptime!(exchange.units as usize));
    let mut held = SharedMemory::<Vector<f32, S>>::new(comptime!(rows * length));

    // The first weights are loaded while the input is normalised.
    let mut loaded = Array::<Vector<W, N>>::new(comptime!(unroll * along));
    load::<W, S, N>(&mut loaded, matrix, column, slot, activations.vectors, sizes, tile);

    let statistics = activations.statistics(&mut shared, exchange);

    let mut sums = Array::<Vector<f32, N>>::new(rows);
    #[unroll]
    for r in 0..rows {
        sums[r] = Vector::<f32, N>::new(0.0f32);
    }
    activations.fill::<S>(&mut held, normed, &statistics, 0u32, tile.length, exchange);
    sync_cube();
    multiply::<W, S, N>(&mut sums, &loaded, &held, slot, tile);
    for first in range_stepped(0u32, activations.vectors, tile.length) {
        let mut start = comptime!(slots * tile.unroll).runtime();
        if first > 0 {
            // The previous tile has been read.
            sync_cube();
            activations.fill::<S>(&mut held, normed, &statistics, first, tile.length, exchange);
            sync_cube();
            start = 0u32.runtime();
        }
        let span = min(activations.vectors - first, tile.length);
        for base in range_stepped(start, span, comptime!(slots * tile.unroll)) {
            load::<W, S, N>(&mut loaded, matrix, column, first + base + slot, activations.vectors, sizes, tile);
            multiply::<W, S, N>(&mut sums, &loaded, &held, base + slot, tile);
        }
    }

    // The groups add up, row by row.
    let mut grouped = SharedMemory::<f32>::new(comptime!((exchange.groups() * tile.width) as usize * across));
    let strips = comptime!(tile.width * across as u32);
    #[unroll]
    for r in 0..rows {
        #[unroll]
        for e in 0..across {
            let sum = lanes_sum(sums[r][e], &mut shared, depth, exchange.planes);
            if neighbour == 0 {
                grouped[(group * strips + strip * across as u32) as usize + e] = sum;
            }
        }
        sync_cube();
        for c in range_stepped(UNIT_POS, strips, exchange.units) {
            let at = CUBE_POS_X * strips + c;
            if at < sizes.outputs {
                let mut sum = 0.0f32.runtime();
                for g in 0..comptime!(exchange.groups()) {
                    sum += grouped[(g * strips + c) as usize];
                }
                write::<F, B>(sum, r as u32, at, bias, output, sizes);
            }
        }
        sync_cube();
    }
}

/// The weights of `S` inputs each for the vectors `first`, `first + slots`, .. of the input: all loads together, so that
/// they are in flight together.
#[cube]
fn load<W: Numeric, S: Size, N: Size>(
    loaded: &mut Array<Vector<W, N>>,
    matrix: &Array<Vector<W, N>>,
    column: u32,
    first: u32,
    vectors: u32,
    sizes: &Sizes,
    #[comptime] tile: Tile,
) {
    let along = S::value();
    #[unroll]
    for u in 0..tile.unroll as usize {
        let at = first + u as u32 * comptime!(tile.slots());
        #[unroll]
        for s in 0..along {
            let from = ((at * along as u32 + s as u32) * sizes.matrix + column) as usize;
            if comptime!(tile.even) {
                loaded[u * along + s] = matrix[from];
            } else {
                loaded[u * along + s] = Vector::<W, N>::new(W::from_int(0));
                if at < vectors {
                    loaded[u * along + s] = matrix[from];
                }
            }
        }
    }
}

/// Adds what was loaded times the vectors `first`, `first + slots`, .. of the tile to the sums.
#[cube]
fn multiply<W: Numeric, S: Size, N: Size>(
    sums: &mut Array<Vector<f32, N>>,
    loaded: &Array<Vector<W, N>>,
    held: &SharedMemory<Vector<f32, S>>,
    first: u32,
    #[comptime] tile: Tile,
) {
    let along = S::value();
    #[unroll]
    for u in 0..tile.unroll as usize {
        let at = (first + u as u32 * comptime!(tile.slots())) as usize;
        #[unroll]
        for r in 0..tile.exchange.rows as usize {
            let part = held[r * tile.length as usize + at];
            #[unroll]
            for s in 0..along {
                sums[r] += Vector::<f32, N>::new(part[s]) * Vector::<f32, N>::cast_from(loaded[u * along + s]);
            }
        }
    }
}
