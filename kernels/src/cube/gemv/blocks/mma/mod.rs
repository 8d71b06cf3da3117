//! The product with blocks on tensor cores: the weights are the left operand, the rows of the input the right one.

mod inputs;
mod kernel;
mod loader;
mod sums;
mod tile;
mod unit_sums;
mod weights;
mod words;

use burn_deepspeed_core::block::UNIT_BYTES;
use cubecl::prelude::*;

use self::kernel::product_blocks_mma;
use self::loader::PlaceLaunch;
use self::tile::{Read, SPAN, Tile};
use super::chunk::is_small;
use crate::cube::blocks::CheckedBlocks;
use crate::cube::bytes::ZERO;
use crate::cube::fragment::check_tensor_cores;
use crate::cube::gemv::activations::activations;
use crate::cube::gemv::output::sizes;
use crate::cube::gemv::problem::CheckedGemv;
use crate::cube::machine::{Machine, Unsupported, f16_type, whole};
use crate::cube::tensors::array;

/// Elements of a vector of the input.
const VECTOR: usize = 8;

/// The tile for a problem, or why the kernel does not take it.
pub(super) fn plan<R: Runtime>(
    client: &ComputeClient<R>,
    machine: &Machine,
    problem: &CheckedGemv<'_, R>,
    blocks: &CheckedBlocks<'_, R>,
) -> Result<Tile, Unsupported> {
    check_tensor_cores(client, machine, f16_type())?;
    if !machine.any_width || !machine.halves {
        return Err(Unsupported::TensorCores(f16_type()));
    }
    is_small(blocks.format)?;
    let strides = [("the stride of `input`", Some(problem.input)), ("the stride of `normed`", problem.normed)];
    for (what, tensor) in strides {
        let stride = tensor.filter(|tensor| tensor.shape()[0] > 1).map_or(0, |tensor| tensor.strides()[0]);
        whole(what, stride, VECTOR)?;
    }
    let half = problem.input.dtype == f16_type();
    let read = match (problem.input.dtype.size() > 2, problem.norm.is_some()) {
        (false, false) if half => Read::F16,
        (false, false) => Read::Bf16,
        (false, true) if !half => Read::NormedBf16,
        _ => Read::Parts,
    };
    let tile = Tile::new(machine, problem.extents, blocks, read)?;
    if machine.units(tile.units()) < tile.units() {
        return Err(Unsupported::TensorCores(f16_type()));
    }
    Ok(tile)
}

/// Multiplies, or says why the kernel does not take the problem.
pub(in crate::cube::gemv) fn launch<R: Runtime>(
    client: &ComputeClient<R>,
    machine: &Machine,
    problem: &CheckedGemv<'_, R>,
    blocks: &CheckedBlocks<'_, R>,
) -> Result<(), Unsupported> {
    let tile = plan(client, machine, problem, blocks)?;
    multiply(client, machine, problem, blocks, tile)
}

/// Launches the kernel.
pub(super) fn multiply<R: Runtime>(
    client: &ComputeClient<R>,
    machine: &Machine,
    problem: &CheckedGemv<'_, R>,
    blocks: &CheckedBlocks<'_, R>,
    tile: Tile,
) -> Result<(), Unsupported> {
    let cubes = machine.cubes([tile.cubes(machine, problem.extents.outputs), 1, 1])?;
    let loads = blocks.bytes.shape()[0] / UNIT_BYTES;
    let place = PlaceLaunch::new(
        blocks.first as u32,
        blocks.row_bytes as u32,
        loads.saturating_sub(1) as u32,
        problem.extents.inputs.div_ceil(SPAN) as u32,
        ZERO,
    );
    let [gamma, beta, bias] = problem.parameter_types();
    // SAFETY: the tensors were checked against each other, and the kernel reads and writes within the sizes that `Sizes`, `Place` and
    // `Activations` count. `plan` checked that rows of the input are whole vectors, and the bytes are whole loads.
    unsafe {
        product_blocks_mma::launch_unchecked::<R>(
            client,
            cubes,
            CubeDim::new_1d(tile.units()),
            activations(problem, VECTOR, 1, None),
            array(blocks.bytes),
            place,
            problem.bias_array(),
            array(problem.output),
            problem.normed_array(),
            sizes(problem, 1),
            tile,
            problem.input.dtype,
            gamma,
            beta,
            bias,
            f16_type(),
        );
    }
    Ok(())
}
