//! Sizes of tiles that fill a device.

use super::exchange::Exchange;
use crate::cube::machine::{Machine, Unsupported};

/// Bytes of shared memory that the rows of a cube's tile may take: three cubes stay resident on a multiprocessor.
const TILE_BYTES: usize = 32 * 1024;
/// Vectors of the matrix that a unit has in flight for one or two rows.
pub(super) const LOADS: usize = 8;

/// Whether this many cubes keep the device busy: three for every two multiprocessors.
pub(super) fn fills(machine: &Machine, cubes: usize) -> bool {
    cubes * 2 >= machine.processors as usize * 3
}

/// Vectors of the matrix that a unit has in flight: fewer where the sums of many rows fill the registers.
pub(super) fn loads(rows: usize) -> usize {
    if rows > 2 { LOADS / 2 } else { LOADS }
}

/// Units that share a plane or act as one: without plane operations, as few as read a line of memory.
pub(super) fn lanes(machine: &Machine, units: u32) -> u32 {
    if machine.plane_operations { machine.plane_size } else { units.min(8) }
}

/// Vectors of a row that a tile holds: as many as fit, in whole steps of the cube, but no more than there are.
pub(super) fn tile_length(
    machine: &Machine,
    exchange: Exchange,
    others: usize,
    vectors: usize,
    step: usize,
    vector: usize,
) -> Result<usize, Unsupported> {
    let others = others + exchange.bytes();
    let limit = machine.shared_bytes;
    let step_bytes = step * vector * exchange.rows as usize * size_of::<f32>();
    let steps = TILE_BYTES.min(limit.saturating_sub(others)) / step_bytes;
    match steps {
        0 => Err(Unsupported::SharedMemory { needed: others + step_bytes, limit }),
        steps => Ok(steps.min(vectors.div_ceil(step).max(1)) * step),
    }
}
