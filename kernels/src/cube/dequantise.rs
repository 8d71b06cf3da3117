//! Rows of blocks as a dense matrix.

use burn_deepspeed_core::block::BlockFormat;
use burn_deepspeed_core::divisor::gcd;
use cubecl::prelude::*;
use cubecl::std::tensor::TensorHandle;

use super::blocks::{Blocks, Bytes, bytes, elements};
use super::contract::Contract;
use super::machine::{Machine, Unsupported};
use super::tensors::{array, vector_size};

/// Units of a cube.
const UNITS: u32 = 256;

/// Elements of a unit, at most: those of consecutive bytes in every format.
const MOST_ELEMENTS: usize = 4;

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
    rows: u32,
    /// Vectors of a row.
    vectors: u32,
    /// The first byte.
    first: u32,
    row_bytes: u32,
    /// The first row of the dense matrix, and the stride of its rows in vectors.
    row: u32,
    stride: u32,
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
    let vector = vector_size(client, &[dense], gcd(inputs, MOST_ELEMENTS));
    let units = machine.units(UNITS);
    let cubes = machine.folded(outputs * (inputs / vector), units as usize)?;
    let sizes = SizesLaunch::new(
        outputs as u32,
        (inputs / vector) as u32,
        blocks.first as u32,
        blocks.row_bytes as u32,
        arguments.row as u32,
        (dense.strides()[0] / vector) as u32,
    );
    // SAFETY: rows and bytes were checked against each other; the kernel compares its row with their number.
    unsafe {
        dequantise::launch_unchecked::<R>(
            client,
            cubes,
            CubeDim::new_1d(units),
            vector,
            bytes(&blocks),
            array(dense),
            sizes,
            blocks.format,
            units,
            dense.dtype,
        );
    }
    Ok(())
}

/// One vector of a dense row.
///
/// Tile: a unit owns a vector of the output; neighbours own neighbouring ones, row by row. It reads the bytes of its elements, of
/// their scale and minimum, which its neighbours read as well, and keeps nothing. The launch has at least a unit for each vector, in the
/// order of `CUBE_POS`.
#[cube(launch_unchecked)]
fn dequantise<F: Float, N: Size>(
    bytes: &Bytes,
    dense: &mut Array<Vector<F, N>>,
    sizes: &Sizes,
    #[comptime] format: BlockFormat,
    #[comptime] units: u32,
    #[define(F)] _elements: StorageType,
) {
    let at = CUBE_POS as u32 * units + UNIT_POS;
    let row = at / sizes.vectors;
    if row < sizes.rows {
        let vector = at % sizes.vectors;
        let width = N::value();
        let each = comptime!(format.elements() as u32);
        let element = vector * comptime!(width as u32);
        let block = sizes.first + row * sizes.row_bytes + element / each * comptime!(format.bytes() as u32);
        let values = elements::<N>(bytes, block, element % each, format);
        dense[((sizes.row + row) * sizes.stride + vector) as usize] = Vector::cast_from(values);
    }
}
