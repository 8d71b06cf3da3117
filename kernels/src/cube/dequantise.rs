//! Rows of blocks as a dense matrix.

use burn_deepspeed_core::block::BlockFormat;
use burn_deepspeed_core::divisor::gcd;
use cubecl::prelude::*;
use cubecl::std::tensor::TensorHandle;

use super::blocks::factors::{Factors, factors};
use super::blocks::{Blocks, CheckedBlocks, Held, elements, float, has_minimum, load, lower, parts, word};
use super::bytes::RAISED;
use super::contract::{Contract, f32_type};
use super::machine::{Machine, Unsupported, f16_type};
use super::tensors::{array, vector_size};

/// Units of a cube, at most.
const UNITS: u32 = 256;
/// Words of a set of blocks, and elements of a unit, at most.
const SET: u32 = 256;
const ELEMENTS: u32 = 16;
/// Banks of shared memory, a word each.
const BANKS: u32 = 32;
/// Elements of a vector of the dense matrix, at most: those of a run.
const VECTOR: usize = 4;

/// The elements of rows of blocks: the bits of [`BlockFormat::dequantise`] in f32, rounded to other types.
#[derive(Debug, Clone, Copy)]
pub struct Dequantise<'a, R: Runtime> {
    /// The rows.
    pub blocks: Blocks<'a, R>,
    /// `[at least row + out, in]`, of any float type, with any stride of rows; the rows from `row` are written, and no others.
    pub dense: &'a TensorHandle<R>,
    /// The first row of `dense`, so that several launches fill it.
    pub row: usize,
}

/// Scalar sizes.
#[derive(CubeType, CubeLaunch)]
struct Sizes {
    /// Blocks of all rows, and of one.
    blocks: u32,
    row_blocks: u32,
    /// The first byte, and the last load of the matrix.
    first: u32,
    last: u32,
    /// Where the first row of the dense matrix begins, and the stride of its rows, in vectors.
    start: u32,
    stride: u32,
    /// [`RAISED`].
    raised: u32,
}

/// What is compiled into the kernel. A number of floats that fill a vector count as a block here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Tile {
    format: BlockFormat,
    /// Elements of a block, and its bytes.
    elements: u32,
    bytes: u32,
    units: u32,
    /// Sets of blocks of a cube. A set has [`SET`] words of lower bits.
    sets: u32,
    held: Held,
    /// Whether scales become f32 as f16, or by their bits.
    halves: bool,
    /// Whether the rows of the dense matrix follow each other.
    contiguous: bool,
}

impl Tile {
    /// For as many units as the device has, and as many sets as its shared memory.
    fn new<R: Runtime>(
        machine: &Machine,
        blocks: &CheckedBlocks<'_, R>,
        vector: usize,
        contiguous: bool,
    ) -> Result<Self, Unsupported> {
        let format = blocks.format;
        let floats = if format.elements() == 1 { vector } else { 1 };
        let (elements, bytes) = (floats * format.elements(), floats * format.bytes());
        let load = if machine.any_width { 4 } else { 1 };
        let tile = |sets: u32| {
            let held = Held::new(load, blocks.first, bytes, (sets * SET) as usize / words(format));
            let (units, elements, bytes) = (machine.even_units(UNITS), elements as u32, bytes as u32);
            Self { format, elements, bytes, units, sets, held, halves: machine.halves, contiguous }
        };
        let most = if format.elements() == 1 { 2 } else { (ELEMENTS / (VECTOR as u32 * lower(format).runs())).max(1) };
        let mut found = tile(most);
        while found.shared_bytes() > machine.shared_bytes {
            if found.sets == 1 {
                return Err(Unsupported::SharedMemory { needed: found.shared_bytes(), limit: machine.shared_bytes });
            }
            found = tile(found.sets / 2);
        }
        Ok(found)
    }

    fn is_float(self) -> bool {
        self.format.elements() == 1
    }

    /// Words of a block.
    fn words(self) -> u32 {
        words(self.format) as u32
    }

    fn blocks(self) -> u32 {
        self.sets * SET / self.words()
    }

    /// Parts of all blocks, where a block has several.
    fn parts(self) -> usize {
        let each = parts(self.format);
        if each > 1 { self.blocks() as usize * each } else { 0 }
    }

    fn minima(self) -> usize {
        if has_minimum(self.format) { self.parts() } else { 0 }
    }

    fn shared_bytes(self) -> usize {
        self.held.bytes() + (self.parts() + self.minima()) * size_of::<f32>()
    }
}

/// Words of lower bits of a block, a power of two up to [`BANKS`]; 1 of floats.
fn words(format: BlockFormat) -> usize {
    (format.elements() / (VECTOR * lower(format).runs() as usize)).max(1)
}

/// Makes rows dense: one launch.
///
/// # Errors
/// [`Unsupported`]; nothing was launched.
///
/// # Panics
/// If shapes do not fit together, with the tensor, the expected and the actual shape; nothing was launched.
#[track_caller]
pub fn launch<R: Runtime>(
    client: &ComputeClient<R>,
    machine: &Machine,
    arguments: Dequantise<'_, R>,
) -> Result<(), Unsupported> {
    let contract = Contract::new("dequantise", client);
    let [outputs, inputs] = arguments.blocks.shape;
    let blocks = arguments.blocks.check(&contract)?;
    let [rows, _] = contract.axes::<2>("dense", arguments.dense);
    let needed = arguments.row.saturating_add(outputs);
    contract.require(needed <= rows, || {
        format!("`dense` has {rows} rows, expected at least {needed}: {outputs} from {} on", arguments.row)
    });
    let dense = contract.rows("dense", arguments.dense, &[rows, inputs])?;
    contract.supports(&[dense.dtype])?;
    if outputs * inputs == 0 {
        return Ok(());
    }
    let row = if blocks.format.elements() == 1 { gcd(inputs, VECTOR) } else { VECTOR };
    let vector = vector_size(client, &[dense], row);
    let tile = Tile::new(machine, &blocks, vector, outputs == 1 || dense.strides()[0] == inputs)?;
    let row_blocks = inputs / tile.elements as usize;
    let cubes = machine.folded(outputs * row_blocks, tile.blocks() as usize)?;
    let loads = blocks.bytes.shape()[0] / tile.held.load_bytes() as usize;
    let sizes = SizesLaunch::new(
        (outputs * row_blocks) as u32,
        row_blocks as u32,
        blocks.first as u32,
        loads.saturating_sub(1) as u32,
        (arguments.row * dense.strides()[0] / vector) as u32,
        (dense.strides()[0] / vector) as u32,
        RAISED,
    );
    // SAFETY: rows and bytes were checked against each other; the kernel compares its block with their number. The bytes are whole loads.
    unsafe {
        dequantise::launch_unchecked::<R>(
            client,
            cubes,
            CubeDim::new_1d(tile.units),
            vector,
            tile.held.load as usize,
            array(blocks.bytes),
            array(dense),
            sizes,
            tile,
            dense.dtype,
            if tile.halves { f16_type() } else { f32_type() },
        );
    }
    Ok(())
}

/// Consecutive blocks of all rows, in their order.
///
/// Tile: a cube loads the bytes of its blocks, which follow each other, into shared memory, neighbouring units neighbouring vectors. Where a block has
/// several parts, units then make the scale and the minimum of each. After that a unit makes the elements of one word of each set: runs of 4
/// elements, which its neighbours continue to whole sectors. The launch has at least a cube for `tile.blocks()` blocks, in the order of
/// `CUBE_POS`.
#[cube(launch_unchecked)]
fn dequantise<F: Float, H: Float, N: Size, M: Size>(
    matrix: &Array<Vector<u32, M>>,
    dense: &mut Array<Vector<F, N>>,
    sizes: &Sizes,
    #[comptime] tile: Tile,
    #[define(F)] _elements: StorageType,
    #[define(H)] _half_type: StorageType,
) {
    let (format, halves) = comptime!((tile.format, tile.halves));
    let first = CUBE_POS as u32 * comptime!(tile.blocks());
    // The remainder tells the compiler how large addresses become, so that it adds constants to them for free.
    let unit = UNIT_POS % tile.units;
    let (bytes, begin) = load::<M>(matrix, sizes.first + first * tile.bytes, sizes.last, unit, tile.units, tile.held);
    let mut scales = SharedMemory::<f32>::new(comptime!(tile.parts().max(1)));
    let mut minima = SharedMemory::<f32>::new(comptime!(tile.minima().max(1)));
    let (width, each) = (N::value(), comptime!(parts(format) as u32));
    if comptime!(tile.parts() > 0) {
        let all = comptime!(tile.parts() as u32);
        #[unroll]
        for turn in 0..comptime!(all.div_ceil(tile.units)) {
            let at = unit + comptime!(turn * tile.units);
            if at < all && first + at / each < sizes.blocks {
                let own = factors::<H>(&bytes, begin + at / each * tile.bytes, at % each, format, halves);
                scales[at as usize] = own.scale;
                if comptime!(tile.minima() > 0) {
                    minima[at as usize] = own.minimum;
                }
            }
        }
        sync_cube();
    }
    #[unroll]
    for set in 0..tile.sets {
        #[unroll]
        for turn in 0..comptime!(SET / tile.units) {
            let place = place(unit + comptime!(turn * tile.units), set, tile);
            let block = first + place.block;
            if block < sizes.blocks {
                let at = block_start::<N>(block, sizes, tile) + place.element / comptime!(width as u32);
                let address = begin + place.block * tile.bytes;
                if comptime!(tile.is_float()) {
                    let mut values = Vector::<f32, N>::new(0.0f32);
                    #[unroll]
                    for k in 0..width {
                        values[k] = float(&bytes, address + comptime!((k * format.bytes()) as u32), format);
                    }
                    dense[at as usize] = Vector::cast_from(values);
                } else {
                    let word = word(&bytes, address, place.element, format);
                    let mut own = Factors { scale: 0.0f32.runtime(), minimum: 0.0f32.runtime() };
                    if comptime!(tile.parts() == 0) {
                        let found = factors::<H>(&bytes, address, 0u32, format, halves);
                        own.scale = found.scale;
                        own.minimum = found.minimum;
                    }
                    let part = place.block * each + place.element / comptime!(tile.elements / each);
                    #[unroll]
                    for run in 0..comptime!(lower(format).runs()) {
                        // Elements from the first run to this one.
                        let apart = comptime!(run * lower(format).span);
                        if comptime!(tile.parts() > 0) {
                            let part = part + comptime!(apart / (tile.elements / each));
                            own.scale = scales[part as usize];
                            if comptime!(tile.minima() > 0) {
                                own.minimum = minima[part as usize];
                            }
                        }
                        let values = elements(word, own, sizes.raised, run, format);
                        write::<F, N>(dense, at, values, apart);
                    }
                }
            }
        }
    }
}

/// A word of a cube.
#[derive(CubeType, Clone, Copy)]
struct Place {
    /// Its block, from the first one of the cube on.
    block: u32,
    /// Its first element in the block.
    element: u32,
}

/// Word `item` of a set. Lanes that read together have blocks that are 8 apart: 8 blocks of Q4_0 are a line of banks and the 4 words of a block, so
/// that no two lanes meet in a bank.
#[cube]
fn place(item: u32, #[comptime] set: u32, #[comptime] tile: Tile) -> Place {
    let words = comptime!(tile.words());
    let before = comptime!(set * SET / words);
    if comptime!(tile.is_float()) {
        Place { block: item + before, element: 0u32.runtime() }
    } else {
        let (own, span) = (item % words, comptime!(lower(tile.format).span));
        let period = comptime!(lower(tile.format).period());
        let block = item / BANKS + item % BANKS / words * comptime!(SET / BANKS);
        let in_span = comptime!(span / 4);
        Place { block: block + before, element: own / in_span * period + own % in_span * 4u32 }
    }
}

/// Where a block of the matrix begins in the dense one, in vectors.
#[cube]
fn block_start<N: Size>(block: u32, sizes: &Sizes, #[comptime] tile: Tile) -> u32 {
    let width = N::value();
    let vectors = comptime!(tile.elements / width as u32);
    if comptime!(tile.contiguous) {
        sizes.start + block * vectors
    } else {
        sizes.start + block / sizes.row_blocks * sizes.stride + block % sizes.row_blocks * vectors
    }
}

/// Writes a run to the vectors `apart` elements after vector `at`.
#[cube]
fn write<F: Float, N: Size>(
    dense: &mut Array<Vector<F, N>>,
    at: u32,
    values: Vector<f32, Const<4>>,
    #[comptime] apart: u32,
) {
    let width = N::value();
    #[unroll]
    for v in 0..comptime!(4 / width) {
        let mut own = Vector::<f32, N>::new(0.0f32);
        #[unroll]
        for k in 0..width {
            own[k] = values[comptime!(v * width + k)];
        }
        dense[(at + comptime!(apart / width as u32 + v as u32)) as usize] = Vector::cast_from(own);
    }
}
