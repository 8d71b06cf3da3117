//! The sizes that the tensor-core kernel is compiled for, and those that it is launched with.

use cubecl::prelude::*;
use cubecl::std::FastDivmod;

use crate::cube::fragment::{EXCHANGED, LANES, Layout, Order};
use crate::cube::machine::{Machine, Unsupported};
use crate::cube::tensors::HeadStrides;

/// How products become scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Scoring {
    /// Products in the range of their row, scaled in the exponential.
    Range,
    /// The same, with ALiBi.
    Slopes,
    /// Every rule. If `interior`, a tile that is in the range of all its rows has nothing hidden.
    Masked { interior: bool },
}

/// The register of several C fragments that has row `r` of a unit, of the `column`th of `columns` fragments next to each other.
#[cube]
pub(super) fn register(r: usize, column: usize, #[comptime] columns: usize) -> usize {
    (r / 2 * columns + column) * 2 + r % 2
}

/// The cube's tile of rows, counted from the last one, and its key head. Cubes start in the order of x, y and z, so that those with
/// most keys come first: those of a head, or those of all heads.
#[cube]
pub(super) fn tile_and_head(#[comptime] tile: Tile) -> (u32, u32) {
    if comptime!(tile.heads_first) { (CUBE_POS_Y, CUBE_POS_X) } else { (CUBE_POS_X, CUBE_POS_Y) }
}

/// From the maximum of a row to its limit, when it gets a middle, in natural units.
pub(super) const SLACK: f32 = 5.0;

/// Largest head size with registers to spare.
const SMALL_HEAD: u32 = 64;

/// What is compiled into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    pub emulate: bool,
    pub asynchronous: bool,
    /// Planes of a cube.
    pub planes: u32,
    /// Pieces of 16 rows that a plane takes. Each fragment of keys or values serves all of them.
    pub pieces: u32,
    /// Keys of a step.
    pub keys: u32,
    /// Steps in shared memory: 1, or 2 if one is filled while the other is read.
    pub stages: u32,
    pub head_dim: u32,
    /// Elements of a vector.
    pub vector: u32,
    /// Whether the queries stay in registers, and their shared memory goes to keys.
    pub resident: bool,
    pub scoring: Scoring,
    /// Whether a unit has four neighbouring keys of every 16, whose biases it reads as one vector.
    pub quads: bool,
    /// Elements of a vector of the context: 1, 2, or 4 of 16 bits, which lanes exchange.
    pub written: u32,
    /// Whether keys or values become floats on their way to shared memory.
    pub int8: bool,
    /// Whether probabilities have the exponents of f32: those in bf16.
    pub wide: bool,
    /// Whether scores are distances from the middle of their row at first; see [`sums`](super::sums). Not where a score is more than its product times
    /// the scale and what is added.
    pub distances: bool,
    /// Whether cubes take the same tile of every head before the next one: heads are along x, and tiles along y. Under a causal mask tiles differ,
    /// and the last cubes to start should be short. Otherwise the cubes of a head are best together, since they read the same keys.
    pub heads_first: bool,
}

impl Tile {
    /// Rows of a plane.
    pub fn plane_rows(&self) -> u32 {
        self.pieces * 16
    }

    pub fn rows(&self) -> u32 {
        self.planes * self.plane_rows()
    }

    /// Rows that a unit has a part of.
    pub fn unit_rows(&self) -> usize {
        self.pieces as usize * 2
    }

    pub fn units(&self) -> u32 {
        self.planes * LANES
    }

    /// Vectors that a unit loads before it writes them to shared memory. Asynchronous copies need no registers, and emulated planes
    /// can do with one.
    pub fn ahead(&self) -> u32 {
        if self.asynchronous || self.emulate { 1 } else { 4 }
    }

    /// Vectors of a row in memory.
    pub fn vectors(&self) -> u32 {
        self.head_dim / self.vector
    }

    /// Units that copy a row together: one for each vector of a row in shared memory if rows are padded, of which the last have nothing to
    /// do.
    pub fn row_units(&self) -> u32 {
        let layout = self.layout();
        if layout.padded { layout.width } else { self.vectors() }
    }

    /// Whether every unit copies the same part of each row that it comes to.
    pub fn even(&self) -> bool {
        self.units().is_multiple_of(self.row_units())
    }

    /// Depths of a product, of which the last may be half zeros.
    pub fn depths(&self) -> u32 {
        self.head_dim.div_ceil(16)
    }

    /// Columns of the context, in eights.
    pub fn columns(&self) -> u32 {
        self.head_dim / 8
    }

    /// Whether the features are an odd number of eights.
    pub fn odd(&self) -> bool {
        !self.columns().is_multiple_of(2)
    }

    pub fn layout(&self) -> Layout {
        Layout::new(self.columns(), self.vector, self.emulate)
    }

    /// The order in which fragments of keys are loaded. That of the values saves an address and the instructions that compute it. With 16 rows in a
    /// plane and large heads ptxas spills more registers for it: 56 bytes with heads of 96, and 40 at most if keys come in the order in which they are
    /// multiplied.
    pub fn key_order(&self) -> Order {
        let few = self.pieces == 1 && !self.layout().padded && self.head_dim > SMALL_HEAD;
        if few { Order::Features } else { Order::Rows }
    }

    /// Whether the sums of probabilities are products too, of a right operand of ones. Where heads are small, a product of 16 probabilities takes less
    /// than the 8 additions that it replaces; where they are large, shared memory is the limit, and there are no registers for the sums.
    pub fn multiplies_sums(&self) -> bool {
        !self.emulate && self.head_dim <= SMALL_HEAD
    }

    /// From the middle of a row to its limit, and to what its exponents count from, in natural units. Probabilities are up to `exp` of twice this: f16
    /// hold that, and with bf16 sums of them times values below 2^64 are finite for any number of keys.
    pub fn reach(&self) -> f32 {
        let below = match (self.emulate, self.wide) {
            (true, _) => 0.0,
            (_, true) => 22.0,
            _ => 6.0,
        };
        (SLACK + below) / 2.0
    }

    /// Registers of the probabilities of a step.
    pub fn left_registers(&self) -> usize {
        (self.pieces * self.keys / 4) as usize
    }

    /// Registers of the queries, all of them or those of one depth.
    pub fn query_registers(&self) -> usize {
        (self.pieces * if self.resident { self.depths() } else { 1 } * 4) as usize
    }

    pub fn score_registers(&self) -> usize {
        (self.pieces * self.keys / 4) as usize
    }

    pub fn result_registers(&self) -> usize {
        (self.pieces * self.columns() * 2) as usize
    }

    /// Vectors of the keys of a step; its values are as many, and follow them.
    pub fn keys_vectors(&self) -> u32 {
        self.keys * self.layout().width
    }

    /// Vectors of the keys and values of a step.
    pub fn step_vectors(&self) -> u32 {
        2 * self.keys_vectors()
    }

    pub fn stage_rows(&self) -> u32 {
        let keys = self.stages * 2 * self.keys;
        if self.resident { keys.max(self.query_row() + self.rows()) } else { keys + self.rows() }
    }

    /// The first row of the queries: after the keys, or where the second step of keys will be.
    pub fn query_row(&self) -> u32 {
        let stages = if self.resident { self.stages - 1 } else { self.stages };
        stages * 2 * self.keys
    }

    pub fn query_origin(&self) -> u32 {
        self.query_row() * self.layout().width
    }

    pub fn stage_vectors(&self) -> u32 {
        self.stage_rows() * self.layout().width
    }

    /// Floats that the lanes exchange.
    pub fn scratch(&self) -> u32 {
        if self.emulate { self.planes * EXCHANGED } else { 1 }
    }

    pub fn shared_bytes(&self, element: usize) -> usize {
        (self.stage_vectors() * self.vector) as usize * element + self.scratch() as usize * size_of::<f32>()
    }

    pub fn check(&self, machine: &Machine, element: usize) -> Result<(), Unsupported> {
        let (needed, limit) = (self.shared_bytes(element), machine.shared_bytes);
        if needed > limit { Err(Unsupported::SharedMemory { needed, limit }) } else { Ok(()) }
    }
}

/// Scalar sizes. Strides count vectors.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Sizes {
    /// Tiles of rows of a key head.
    pub tiles: u32,
    pub tokens: u32,
    /// Query heads of a key head.
    pub group: u32,
    /// `group`, to divide by it.
    pub by_group: FastDivmod<u32>,
    pub scale: f32,
    /// [`Tile::reach`] in products.
    pub reach: f32,
    /// [`Tile::step_vectors`], where the compiler cannot see it: it would compute the address of every fragment by itself, instead
    /// of adding a constant to one of them.
    pub step_vectors: u32,
    pub query: HeadStrides,
    pub context: HeadStrides,
}
