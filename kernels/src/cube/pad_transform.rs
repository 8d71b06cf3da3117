//! Heads padded with zeros to the sizes that fused attention kernels are written for; DeepSpeed's `PadTransformOp`.

use burn_deepspeed_core::divisor::gcd;
use cubecl::prelude::*;
use cubecl::std::tensor::TensorHandle;

use super::contract::{Contract, same_type};
use super::machine::{Machine, Unsupported};
use super::tensors::{HeadStrides, array, head_strides, vector_size};

/// Units of a cube.
const UNITS: u32 = 256;

/// Every head of `heads`, with zeros after its features.
///
/// Both tensors may have any strides but along the last axis, and have the same element type.
#[derive(Debug, Clone, Copy)]
pub struct PadTransform<'a, R: Runtime> {
    /// `[B, N, T, H]`.
    pub heads: &'a TensorHandle<R>,
    /// `[B, N, T, size]`, `size` at least H; every element is written.
    pub padded: &'a TensorHandle<R>,
}

/// Scalar sizes, in vectors.
#[derive(CubeType, CubeLaunch)]
struct Sizes {
    rows: u32,
    heads: u32,
    tokens: u32,
    head_dim: u32,
    size: u32,
    from: HeadStrides,
    to: HeadStrides,
}

/// Pads: one launch.
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
    arguments: PadTransform<'_, R>,
) -> Result<(), Unsupported> {
    let contract = Contract::new("pad_transform", client);
    let [batch, count, tokens, head_dim] = contract.axes("heads", arguments.heads);
    let [.., size] = contract.axes::<4>("padded", arguments.padded);
    let heads = contract.rows("heads", arguments.heads, &[batch, count, tokens, head_dim])?;
    let padded = contract.rows("padded", arguments.padded, &[batch, count, tokens, size.max(head_dim)])?;
    same_type("padded", &padded, heads.dtype)?;
    contract.supports(&[heads.dtype])?;
    let rows = batch * count * tokens;
    if rows * size == 0 {
        return Ok(());
    }
    let vector = vector_size(client, &[heads, padded], gcd(size, head_dim));
    let units = machine.units(UNITS);
    let cubes = machine.folded(rows * (size / vector), units as usize)?;
    let sizes = SizesLaunch::new(
        rows as u32,
        count as u32,
        tokens as u32,
        (head_dim / vector) as u32,
        (size / vector) as u32,
        head_strides(heads, vector),
        head_strides(padded, vector),
    );
    // SAFETY: the tensors were checked against each other; the kernel compares row and column with their sizes.
    unsafe {
        pad::launch_unchecked::<R>(
            client,
            cubes,
            CubeDim::new_1d(units),
            vector,
            array(heads),
            array(padded),
            sizes,
            units,
            heads.dtype,
        );
    }
    Ok(())
}

/// One vector of a padded head.
///
/// Tile: a unit owns a vector of the output; neighbours own neighbouring ones, row by row. It reads one vector or none, and
/// nothing is kept. The launch has at least a unit for each vector, in the order of `CUBE_POS`, and every stride and both
/// head sizes are whole numbers of vectors.
#[cube(launch_unchecked)]
fn pad<F: Numeric, N: Size>(
    heads: &Array<Vector<F, N>>,
    padded: &mut Array<Vector<F, N>>,
    sizes: &Sizes,
    #[comptime] units: u32,
    #[define(F)] _elements: StorageType,
) {
    let at = CUBE_POS as u32 * units + UNIT_POS;
    let row = at / sizes.size;
    let column = at % sizes.size;
    if row < sizes.rows {
        let token = row % sizes.tokens;
        let head = row / sizes.tokens % sizes.heads;
        let batch = row / (sizes.tokens * sizes.heads);
        let mut value = Vector::<F, N>::new(F::from_int(0));
        if column < sizes.head_dim {
            value = heads[(sizes.from.head(batch, head) + token * sizes.from.token + column) as usize];
        }
        padded[(sizes.to.head(batch, head) + token * sizes.to.token + column) as usize] = value;
    }
}
