//! Bytes that a cube holds, read in words. Blocks of 17, 18, 34 and 210 bytes begin anywhere in a word.

use burn_deepspeed_core::divisor::gcd;
use cubecl::prelude::*;

use crate::cube::bytes::BYTES;

/// Consecutive bytes of a matrix that a cube holds, wherever they begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Held {
    /// Words of a load from memory.
    pub load: u32,
    /// Loads that have all bytes.
    pub loads: u32,
    /// The bytes of all cubes begin at a multiple of this many, a power of two up to those of a load.
    step: u32,
    /// Blocks begin at a multiple of this many bytes, a power of two up to those of a word.
    unit: u32,
}

impl Held {
    /// Those of `blocks` blocks of `block` bytes each. The first ones of the first cube begin at byte `first` of the matrix.
    pub fn new(load: usize, first: usize, block: usize, blocks: usize) -> Self {
        let (bytes, whole) = (blocks * block, load * BYTES);
        let step = gcd(gcd(first, bytes), whole);
        let unit = gcd(gcd(first, block), BYTES);
        // What begins inside of a word is read with the next word.
        let after = if unit < BYTES { BYTES } else { 0 };
        let loads = (bytes + after + whole - step).div_ceil(whole);
        Self { load: load as u32, loads: loads as u32, step: step as u32, unit: unit as u32 }
    }

    /// Bytes of shared memory.
    pub fn bytes(self) -> usize {
        (self.loads * self.load) as usize * BYTES
    }

    pub fn load_bytes(self) -> u32 {
        self.load * BYTES as u32
    }
}

/// The bytes.
#[derive(CubeType)]
pub(crate) struct Bytes {
    words: SharedMemory<Vector<u32, Const<1>>>,
    #[cube(comptime)]
    held: Held,
}

/// Loads what is held from byte `first` on, neighbouring units neighbouring vectors; after vector `last` it is loaded again. Gives the
/// bytes, and where the first of them is. Every unit of the cube must call this, with its number.
#[cube]
pub(crate) fn load<M: Size>(
    matrix: &Array<Vector<u32, M>>,
    first: u32,
    last: u32,
    unit: u32,
    #[comptime] units: u32,
    #[comptime] held: Held,
) -> (Bytes, u32) {
    let mut words = SharedMemory::<Vector<u32, Const<1>>>::new_aligned(
        comptime!(held.bytes() / BYTES),
        comptime!(held.load_bytes() as usize),
    );
    let mut vectors = words.to_slice_mut().with_vector_size::<M>();
    let vector = first / comptime!(held.load_bytes());
    #[unroll]
    for l in 0..comptime!(held.loads.div_ceil(units)) {
        let at = unit + comptime!(l * units);
        if at < held.loads {
            vectors[at as usize] = matrix[min(vector + at, last) as usize];
        }
    }
    sync_cube();
    let mut begin = 0u32.runtime();
    if comptime!(held.step < held.load_bytes()) {
        begin = first % comptime!(held.load_bytes());
    }
    (Bytes { words, held }, begin)
}

#[cube]
impl Bytes {
    fn word(&self, at: u32) -> u32 {
        self.words[at as usize][0]
    }

    /// The 4 bytes from `at` on; those after the end of the matrix are unspecified. `at` is a multiple of 4 after the beginning of a block
    /// whose size is one.
    pub fn four(&self, at: u32) -> u32 {
        let (word, shift) = (at / 4u32, at % 4u32 * 8u32);
        if comptime!(self.held.unit == 4) {
            self.word(word)
        } else {
            // In two steps, since a shift by all 32 bits is undefined.
            self.word(word) >> shift | self.word(word + 1u32) << (31u32 - shift) << 1u32
        }
    }

    /// The 2 bytes from `at` on, and anything above. `at` is even after the beginning of a block whose size is.
    pub fn two(&self, at: u32) -> u32 {
        if comptime!(self.held.unit >= 2) { self.word(at / 4u32) >> (at % 4u32 * 8u32) } else { self.four(at) }
    }

    /// The byte at `at`.
    pub fn byte(&self, at: u32) -> u32 {
        self.word(at / 4u32) >> (at % 4u32 * 8u32) & 0xffu32
    }
}
