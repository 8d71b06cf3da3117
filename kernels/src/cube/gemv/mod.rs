//! A few rows through a matrix: norm, product and bias in one launch.

mod activations;
mod blocks;
mod columns;
mod exchange;
mod int8;
pub mod mma;
mod output;
mod plan;
mod problem;
mod rows;

use burn_deepspeed_core::layout::Orientation;
use cubecl::prelude::*;

use self::problem::CheckedMatrix;
use super::machine::{Machine, Unsupported};
pub use int8::Int8;
pub use problem::{Gemv, MOST_ROWS, Matrix, Norm, NormKind};

/// Multiplies: one launch, on the kernel for the orientation, and on tensor cores where [`mma`] takes the problem.
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
) -> Result<(), Unsupported> {
    let problem = arguments.check(client)?;
    if problem.extents.rows == 0 || problem.extents.outputs == 0 {
        return Ok(());
    }
    match problem.matrix {
        CheckedMatrix::Dense(_, Orientation::InputOutput) => columns::launch(client, machine, &problem),
        CheckedMatrix::Blocks(ref matrix) => blocks::launch(client, machine, &problem, matrix),
        _ => match mma::plan(client, machine, &problem, mma::Engine::TensorCores) {
            Ok(tile) => mma::multiply(client, machine, &problem, tile),
            Err(_) => rows::launch(client, machine, &problem),
        },
    }
}
