//! The sizes that the tensor-core kernel is compiled for.

use crate::cube::fragment::{EXCHANGED, LANES};
use crate::cube::machine::{Machine, Unsupported};

/// Queries of a cube: the columns of a product.
pub(super) const ROWS: u32 = 8;
/// Keys that a plane takes in a step: the rows of a product.
pub(super) const KEYS: u32 = 16;
/// Lanes that share a key.
pub(super) const SHARERS: u32 = 4;
/// Features of a value that 8 lanes load in one step.
pub(super) const VALUE_CHUNK: usize = 64;
/// Largest number of bytes of a head for which a lane loads the values before it multiplies the keys.
const AHEAD_BYTES: u32 = 256;
/// Floats from one feature of the vectors of a chunk to the next one, in shared memory: eight lanes that write one feature each, and units
/// that read neighbouring features, use different banks.
pub(super) const RESULT_STRIDE: u32 = 12;
/// Floats after the results of a row, which put the four rows of a fragment on different banks.
const RESULT_PADDING: u32 = 8;

/// What is compiled into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::cube::decode) struct Tile {
    pub emulate: bool,
    /// Planes of a cube, each with keys of its own.
    pub planes: u32,
    pub head_dim: u32,
    pub int8_keys: bool,
    pub int8_values: bool,
    /// Whether queries and keys are multiplied in bf16, and not in f16.
    pub brain: bool,
    /// Whether weights and values are.
    pub brain_values: bool,
    /// Whether the result is whole, or one split of several.
    pub whole: bool,
    /// Whether some keys may be hidden from every query.
    pub guarded: bool,
}

impl Tile {
    pub fn new(emulate: bool, head_dim: usize, [int8_keys, int8_values]: [bool; 2], brain: [bool; 2]) -> Self {
        Self {
            emulate,
            planes: if emulate { 2 } else { 4 },
            head_dim: head_dim as u32,
            int8_keys,
            int8_values,
            brain: brain[0],
            brain_values: brain[1],
            whole: true,
            guarded: false,
        }
    }

    pub fn units(&self) -> u32 {
        self.planes * LANES
    }

    /// Elements of a key that a lane loads as one vector of 16 bytes.
    pub fn key_vector(int8: bool) -> usize {
        if int8 { 16 } else { 8 }
    }

    /// Vectors of a key that a lane loads.
    pub fn key_chunks(&self) -> u32 {
        self.head_dim / (Self::key_vector(self.int8_keys) as u32 * SHARERS)
    }

    /// Products of a vector of a key: one for every 4 elements.
    pub fn key_parts(&self) -> u32 {
        Self::key_vector(self.int8_keys) as u32 / 4
    }

    /// Vectors of a value that a lane loads: 8 elements each.
    pub fn value_chunks(&self) -> u32 {
        self.head_dim / VALUE_CHUNK as u32
    }

    /// Words of a vector of a value.
    pub fn value_words(&self) -> usize {
        if self.int8_values { 2 } else { 4 }
    }

    /// Registers of the queries.
    pub fn query_registers(&self) -> usize {
        self.head_dim as usize / 8
    }

    /// Registers of the results.
    pub fn result_registers(&self) -> usize {
        self.head_dim as usize / 8
    }

    /// Whether a lane has registers for the keys and the values of a step.
    pub fn ahead(&self) -> bool {
        let bytes = |int8: bool| self.head_dim * if int8 { 1 } else { 2 };
        bytes(self.int8_keys).max(bytes(self.int8_values)) <= AHEAD_BYTES
    }

    /// Floats that the lanes exchange in a product.
    pub fn scratch(&self) -> u32 {
        if self.emulate { self.planes * EXCHANGED } else { 1 }
    }

    /// Numbers that the lanes exchange by themselves.
    pub fn exchanged(&self) -> u32 {
        if self.emulate { self.units() } else { 1 }
    }

    /// Floats from one row of results to the next.
    pub fn result_row(&self) -> u32 {
        self.value_chunks() * 8 * RESULT_STRIDE + RESULT_PADDING
    }

    /// Floats of half of the rows of every plane.
    pub fn results(&self) -> u32 {
        self.planes * ROWS / 2 * self.result_row()
    }

    /// Maxima, or totals, of every plane.
    pub fn stats(&self) -> u32 {
        self.planes * ROWS
    }

    pub fn check(&self, machine: &Machine) -> Result<(), Unsupported> {
        let words = self.scratch() + 2 * self.exchanged() + self.results() + 2 * self.stats();
        let (needed, limit) = (words as usize * size_of::<f32>(), machine.shared_bytes);
        if needed > limit { Err(Unsupported::SharedMemory { needed, limit }) } else { Ok(()) }
    }
}
