//! The sizes that the tensor-core kernel is compiled for, and how they are chosen.

use crate::cube::fragment::{EXCHANGED, LANES};
use crate::cube::gemv::problem::{Extents, MOST_ROWS};
use crate::cube::machine::{Machine, Unsupported};

/// Rows of a fragment of weights.
pub(super) const FRAGMENT: u32 = 16;
/// Lanes that share a row of the matrix, and the columns of a fragment of sums.
pub(super) const SHARERS: u32 = 4;
/// Weights that a lane reads at a time, and elements of a vector of the input, 16 bytes. Where a weight is a byte, a lane that read 16 of
/// them would read 32 bytes of the input in two halves, so that four lanes together never read a whole sector.
pub(super) const ELEMENTS: usize = 8;
/// Floats between the sums of one row of the input and those of the next: the lanes of a fragment write to different banks.
const SUMS_ROW: u32 = FRAGMENT + 4;

/// What is compiled into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::cube::gemv) struct Tile {
    pub emulate: bool,
    /// Planes of a cube. They share the inputs.
    pub planes: u32,
    /// Fragments of 16 outputs of a cube.
    pub blocks: u32,
    /// Steps that are loaded ahead.
    pub stages: u32,
    /// Rows of the input.
    pub rows: u32,
    pub int8: bool,
    /// Whether the elements are bf16, and not f16.
    pub brain: bool,
    /// Whether the last step of a row is whole.
    pub even: bool,
}

impl Tile {
    /// The tile for a problem.
    pub fn new(
        machine: &Machine,
        Extents { rows, inputs, outputs }: Extents,
        emulate: bool,
        int8: bool,
        brain: bool,
    ) -> Self {
        let vectors = inputs / ELEMENTS;
        let fragments = outputs.div_ceil(FRAGMENT as usize);
        let blocks = blocks(machine, fragments, if emulate { 2 } else { MOST_BLOCKS });
        // With so few cubes a multiprocessor holds one, which needs more planes to keep the memory busy. Bytes need their registers.
        let few = fragments <= 2 * machine.processors as usize && blocks == 2 && !int8;
        let tile = Self {
            emulate,
            planes: match (emulate, few) {
                (true, _) => 2,
                (false, true) => 16,
                (false, false) => 8,
            },
            blocks: blocks as u32,
            stages: if emulate || blocks > 2 { 2 } else { 4 },
            rows: rows as u32,
            int8,
            brain,
            even: false,
        };
        Self { even: vectors.is_multiple_of(tile.step() as usize), ..tile }
    }

    pub fn units(&self) -> u32 {
        self.planes * LANES
    }

    /// Outputs of a cube.
    pub fn outputs(&self) -> u32 {
        self.blocks * FRAGMENT
    }

    /// Words of a vector of the matrix.
    pub fn words(&self) -> usize {
        if self.int8 { 2 } else { 4 }
    }

    /// Vectors of an output, and of the input, that a lane has of a step.
    pub fn pieces(&self) -> u32 {
        if self.int8 { 2 } else { 1 }
    }

    /// Vectors of a step.
    pub fn step(&self) -> u32 {
        SHARERS * self.pieces()
    }

    /// Outputs of which a lane has a part.
    pub fn lane_outputs(&self) -> u32 {
        2 * self.blocks
    }

    /// Vectors of the matrix that a lane loads in a step.
    pub fn loads(&self) -> u32 {
        self.lane_outputs() * self.pieces()
    }

    /// Where the partial sum of a plane for an output of a block and a row begins: output 0 of row 0.
    pub fn sums(&self) -> u32 {
        MOST_ROWS as u32 * SUMS_ROW
    }

    /// Floats between the sums of one row and those of the next.
    pub fn sums_row(&self) -> u32 {
        SUMS_ROW
    }

    /// Floats of the partial sums of a cube.
    pub fn partial(&self) -> u32 {
        self.planes * self.blocks * self.sums()
    }

    /// Floats that the lanes exchange.
    pub fn scratch(&self) -> u32 {
        if self.emulate { self.planes * EXCHANGED } else { 1 }
    }

    pub fn check(&self, machine: &Machine) -> Result<(), Unsupported> {
        let floats = self.partial() + self.scratch() + self.units() + 2 * MOST_ROWS as u32;
        let (needed, limit) = (floats as usize * size_of::<f32>(), machine.shared_bytes);
        if needed > limit { Err(Unsupported::SharedMemory { needed, limit }) } else { Ok(()) }
    }
}

/// Most fragments of outputs of a cube. On an H100 three are as fast as four and faster than six, and two are slower: each cube
/// reads the inputs, and what is loaded ahead takes registers.
const MOST_BLOCKS: usize = 3;

/// Fragments of outputs of a cube: as many as leave the multiprocessors equally long at work, counting what every cube does
/// for its inputs as one more.
fn blocks(machine: &Machine, all: usize, most: usize) -> usize {
    let time = |blocks: &usize| all.div_ceil(*blocks).div_ceil(machine.processors as usize) * (blocks + 1);
    (1..=most).rev().min_by_key(time).unwrap_or(1)
}
