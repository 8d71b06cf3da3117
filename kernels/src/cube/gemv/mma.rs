//! The product with an `[out, in]` matrix on tensor cores: the weights are the left operand, the rows of the input the right one.

mod factors;
mod kernel;
mod tile;

use burn_deepspeed_core::layout::Orientation;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use self::factors::factors;
use self::kernel::product_mma;
use self::tile::{ELEMENTS, Tile};
use super::blocks;
use super::int8::scales;
use super::output::sizes;
use super::problem::{CheckedGemv, CheckedMatrix, Gemv};
use crate::cube::fragment::check_tensor_cores;
use crate::cube::machine::{Machine, Unsupported, f16_type, whole};
use crate::cube::tensors::array;

/// Fewest rows of the input for which tensor cores are worth it.
const FEWEST_ROWS: usize = 2;

/// The units that multiply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Tensor cores, through fragments of `mma.m16n8k16`.
    TensorCores,
    /// Plain loops over the same fragments, for devices without tensor cores: slow, and a check of everything but the
    /// instructions. Not for blocks.
    Emulated,
}

impl Engine {
    /// Tensor cores if the device has them for these elements.
    ///
    /// # Errors
    /// [`Unsupported::TensorCores`].
    pub fn tensor_cores<R: Runtime>(
        client: &ComputeClient<R>,
        machine: &Machine,
        elements: StorageType,
    ) -> Result<Self, Unsupported> {
        check_tensor_cores(client, machine, elements).map(|()| Self::TensorCores)
    }
}

/// Multiplies with this engine: one launch. [`launch`](super::launch) chooses between this and the other kernels.
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
    arguments: Gemv<'_, R>,
    engine: Engine,
) -> Result<(), Unsupported> {
    let problem = arguments.check(client)?;
    if problem.extents.rows == 0 || problem.extents.outputs == 0 {
        return Ok(());
    }
    match (&problem.matrix, engine) {
        (CheckedMatrix::Blocks(blocks), Engine::TensorCores) => blocks::mma::launch(client, machine, &problem, blocks),
        (CheckedMatrix::Blocks(_), Engine::Emulated) => Err(Unsupported::TensorCores(f16_type())),
        _ => {
            let tile = plan(client, machine, &problem, engine)?;
            multiply(client, machine, &problem, tile)
        }
    }
}

/// The tile for a problem, or why the kernel does not take it.
pub(super) fn plan<R: Runtime>(
    client: &ComputeClient<R>,
    machine: &Machine,
    problem: &CheckedGemv<'_, R>,
    engine: Engine,
) -> Result<Tile, Unsupported> {
    let elements = problem.input.dtype;
    if elements.size() != 2 {
        return Err(Unsupported::TensorCores(elements));
    }
    if engine == Engine::TensorCores {
        Engine::tensor_cores(client, machine, elements)?;
    }
    let rows = problem.extents.rows;
    if rows < FEWEST_ROWS {
        return Err(Unsupported::FewRows { rows, least: FEWEST_ROWS });
    }
    let int8 = match &problem.matrix {
        CheckedMatrix::Dense(_, Orientation::InputOutput) => return Err(Unsupported::Orientation),
        CheckedMatrix::Dense(..) => None,
        CheckedMatrix::Int8(matrix) => Some(matrix),
        CheckedMatrix::Blocks(matrix) => return Err(Unsupported::BlockFormat(matrix.format)),
    };
    whole("features of `input`", problem.extents.inputs, ELEMENTS)?;
    let brain = elements == StorageType::Scalar(ElemType::Float(FloatKind::BF16));
    let tile = Tile::new(machine, problem.extents, engine == Engine::Emulated, int8.is_some(), brain);
    if let Some(wide) = int8.and_then(|matrix| matrix.wide()) {
        whole("inputs of a block of `matrix`", wide, tile.step() as usize * ELEMENTS)?;
    }
    let matrix = problem.matrix.elements();
    let strides = [
        ("the stride of `input`", Some(problem.input), ELEMENTS),
        ("the stride of `matrix`", Some(matrix), ELEMENTS),
        ("the stride of `normed`", problem.normed, 4),
    ];
    for (what, tensor, unit) in strides {
        if let Some(tensor) = tensor.filter(|tensor| tensor.shape()[0] > 1) {
            whole(what, tensor.strides()[0], unit)?;
        }
    }
    if machine.units(tile.units()) < tile.units() {
        return Err(Unsupported::TensorCores(elements));
    }
    tile.check(machine)?;
    Ok(tile)
}

/// Launches the kernel.
pub(super) fn multiply<R: Runtime>(
    client: &ComputeClient<R>,
    machine: &Machine,
    problem: &CheckedGemv<'_, R>,
    tile: Tile,
) -> Result<(), Unsupported> {
    let int8 = match &problem.matrix {
        CheckedMatrix::Dense(..) | CheckedMatrix::Blocks(_) => None,
        CheckedMatrix::Int8(matrix) => Some(matrix),
    };
    let cubes = machine.cubes([problem.extents.outputs.div_ceil(tile.outputs() as usize), 1, 1])?;
    let [gamma, beta, bias] = problem.parameter_types();
    // With 64 bits NVRTC adds the distance between two pieces to the address, in the instruction that reads.
    let addresses = if tile.pieces() > 1 && !tile.emulate { AddressType::U64 } else { AddressType::U32 };
    // SAFETY: the tensors were checked against each other, and the kernel reads and writes within the sizes that `Sizes` and
    // `Factors` count. `plan` checked that rows begin at, and consist of, whole vectors.
    unsafe {
        product_mma::launch_unchecked::<R>(
            client,
            cubes,
            CubeDim::new_1d(tile.units()),
            addresses,
            tile.words(),
            factors(problem, tile),
            array(problem.matrix.elements()),
            scales(int8, ELEMENTS),
            problem.bias_array(),
            array(problem.output),
            problem.normed_array(),
            sizes(problem, ELEMENTS),
            tile,
            problem.input.dtype,
            gamma,
            beta,
            bias,
        );
    }
    Ok(())
}
