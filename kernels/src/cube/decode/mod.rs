//! A few new tokens against a cache: flash decoding (<https://pytorch.org/blog/flash-decoding/>), and the sum of its splits.
//!
//! [`mma`] multiplies on tensor cores, and takes several queries of a key head; [`simt`] takes everything.

pub mod mma;
mod results;
pub mod simt;
mod sum;

use cubecl::prelude::*;

use super::attention::Attention;
use super::machine::{Machine, Unsupported};
use super::tensors::HeadStrides;

/// Units of a cube.
const UNITS: u32 = 128;
/// Cubes for each multiprocessor that the splits aim at.
const CUBES_PER_PROCESSOR: usize = 3;
/// Fewest keys of a split: below this the sum of the splits costs more than it saves.
const SPLIT_KEYS: usize = 256;
/// Largest number of splits.
const MOST_SPLITS: usize = 64;

/// Scalar sizes. Strides of queries count vectors, those of the context elements.
#[derive(CubeType, CubeLaunch)]
struct Sizes {
    tokens: u32,
    group: u32,
    splits: u32,
    scale: f32,
    query: HeadStrides,
    context: HeadStrides,
}

/// The number of splits: enough cubes for the device, but no split of fewer than 256 keys.
pub fn splits(machine: &Machine, cubes: usize, keys: usize) -> usize {
    let wanted = (machine.processors as usize * CUBES_PER_PROCESSOR).div_ceil(cubes.max(1));
    // Two cubes on every multiprocessor have enough loads in flight; splits would only add the sum.
    let wanted = if cubes >= 2 * machine.processors as usize { 1 } else { wanted };
    wanted.min(keys / SPLIT_KEYS).clamp(1, MOST_SPLITS)
}

/// Attends: one launch, and a second one if the keys are split. `given` is the number of splits, chosen from the occupancy
/// if `None`. Returns it.
///
/// Tensor cores multiply where [`mma`] takes the problem.
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
    problem: Attention<'_, R>,
    given: Option<usize>,
) -> Result<usize, Unsupported> {
    let checked = problem.check("decode", client)?;
    match mma::plan(client, machine, &checked, mma::Engine::TensorCores) {
        Ok(tile) => mma::attend(client, machine, &problem, &checked, tile, given),
        Err(_) => simt::attend(client, machine, &problem, &checked, given),
    }
}
