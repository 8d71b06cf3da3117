//! The sizes that the kernel is compiled for, and how they are chosen.

use super::chunk::Chunk;
use super::stage::Stage;
use crate::cube::gemv::exchange::Exchange;
use crate::cube::gemv::plan::{fills, lanes, tile_length};
use crate::cube::gemv::problem::Extents;
use crate::cube::machine::{Machine, Unsupported};

/// Units of a cube.
const UNITS: u32 = 256;
/// Sums of a lane, one for each output and row, that leave registers for loads in flight.
const MOST_SUMS: usize = 16;
/// Fewest lanes of an output. Their chunks are all of the elements that share bytes: 128 of Q6_K.
const FEWEST_LANES: u32 = 4;
/// Most words of the chunks of several outputs that a lane has in flight, for one or two rows, and for more, whose sums take registers.
const OUTPUT_WORDS: [usize; 2] = [56, 40];
/// Most words of several chunks of an output that a lane has in flight.
const WORDS: usize = 24;

/// What is compiled into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    /// What lanes load, and how they exchange it.
    pub stage: Stage,
    /// Outputs of a group of lanes.
    pub outputs: u32,
    /// Chunks of each output that a lane has in flight.
    pub unroll: u32,
    /// Chunks of a row that shared memory holds.
    pub length: u32,
    /// Parts of a row from one line of shared memory to the next.
    pub line: u32,
}

impl Tile {
    /// Sums of a lane.
    pub fn sums(self) -> usize {
        (self.outputs * self.stage.exchange.rows) as usize
    }

    /// Chunks that a lane has in flight.
    pub fn chunks(self) -> usize {
        (self.outputs * self.unroll) as usize
    }

    /// Loads of a lane for a chunk.
    pub fn loads(self) -> usize {
        self.stage.chunk.loads(self.stage.exchange.lanes)
    }
}

/// The tile of a problem: for as many lanes of an output as have work, or fewer if shared memory does not hold a chunk for each, and at last
/// fewer units.
pub(super) fn tile(machine: &Machine, extents: Extents, chunk: Chunk) -> Result<Tile, Unsupported> {
    let chunks = extents.inputs / chunk.elements();
    let units = machine.units(UNITS);
    let mut lanes = lanes(machine, units);
    if lanes < FEWEST_LANES {
        return Err(Unsupported::Multiple {
            what: "lanes of a plane",
            size: lanes as usize,
            multiple: FEWEST_LANES as usize,
        });
    }
    while lanes > 2 * FEWEST_LANES && lanes as usize >= 2 * chunks {
        lanes /= 2;
    }
    let mut exchange = Exchange { units, lanes, rows: extents.rows as u32, planes: machine.plane_operations };
    loop {
        match tile_for(machine, extents, chunk, exchange) {
            Err(Unsupported::SharedMemory { .. }) if exchange.lanes > FEWEST_LANES => exchange.lanes /= 2,
            Err(Unsupported::SharedMemory { .. }) if exchange.units.is_multiple_of(2 * lanes) => {
                exchange = Exchange { units: exchange.units / 2, lanes, ..exchange };
            }
            tile => return tile,
        }
    }
}

/// The tile for this many lanes of an output.
fn tile_for(machine: &Machine, extents: Extents, chunk: Chunk, exchange: Exchange) -> Result<Tile, Unsupported> {
    let Extents { rows, inputs, outputs } = extents;
    let chunks = inputs / chunk.elements();
    let lanes = exchange.lanes as usize;
    let cubes = |each: usize| outputs.div_ceil(exchange.groups() as usize * each);
    let (words, most_words) = (chunk.words(), OUTPUT_WORDS[usize::from(rows > 2)]);
    // As for dense matrices: several outputs share what a lane reads of the input.
    let most = if machine.plane_operations { 4 } else { 1 };
    let fits = |each: usize| each * rows <= MOST_SUMS && each * words <= most_words && each <= most;
    let each = [4, 2].into_iter().find(|each| fits(*each) && fills(machine, cubes(*each))).unwrap_or(1);
    let in_flight = (WORDS / (each * words)).max(1);
    let mut unroll = (1 << in_flight.ilog2()).min(chunks.div_ceil(lanes).next_power_of_two());
    let plane_barrier = machine.plane_barrier && exchange.lanes <= machine.plane_size;
    let (length, stage) = loop {
        let stage = Stage { chunk, exchange, plane_barrier, even: chunks.is_multiple_of(lanes * unroll) };
        // What `line` adds, at most.
        let others = 2 * chunk.elements() * rows * size_of::<f32>() + stage.bytes();
        match tile_length(machine, exchange, others, chunks, lanes * unroll, chunk.elements() + chunk.totals()) {
            Err(_) if unroll > 1 => unroll /= 2,
            length => break (length?, stage),
        }
    };
    Ok(Tile { stage, outputs: each as u32, unroll: unroll as u32, length: length as u32, line: length as u32 })
}
