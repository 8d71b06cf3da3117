//! Decoding on ordinary units, for every element type and head size.

mod kernel;
mod tile;

use burn_deepspeed_core::divisor::gcd;
use cubecl::prelude::*;

use self::kernel::decode;
use self::tile::Tile;
use super::results::Results;
use super::{SizesLaunch, UNITS, splits};
use crate::cube::attention::{Attention, AttentionSizes, CheckedAttention};
use crate::cube::machine::{Machine, Unsupported, countable};
use crate::cube::tensors::{array, head_strides, vector_size};

/// Bytes that memory moves together.
const SECTOR: usize = 32;
/// Scores that a group of lanes works on at a time with keys and values of int8, if a lane has one vector of each.
const MOST_SCORES: usize = 16;

/// Attends, as [`launch`](super::launch) does, on these units.
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
    attend(client, machine, &problem, &problem.check("decode", client)?, given)
}

pub(super) fn attend<R: Runtime>(
    client: &ComputeClient<R>,
    machine: &Machine,
    &Attention { scale, keys, .. }: &Attention<'_, R>,
    CheckedAttention { query, key, value, context, sinks, masks, sizes }: &CheckedAttention<'_, R>,
    given: Option<usize>,
) -> Result<usize, Unsupported> {
    let (query, context) = (*query, *context);
    let AttentionSizes { batch, kv_heads, tokens, head_dim, value_dim, .. } = *sizes;
    if sizes.is_empty() {
        return Ok(given.unwrap_or(1).max(1));
    }
    let group = sizes.group();

    let unit = gcd(head_dim, value_dim);
    let vector = vector_size(client, &[query, key.elements, value.elements], unit);
    let (vectors, value_vectors) = (head_dim / vector, value_dim / vector);
    let widest_row = vectors.max(value_vectors);
    let most = machine.units(UNITS);
    // Without plane operations a group of lanes may be any part of the cube.
    let widest = if machine.plane_operations { machine.plane_size } else { most.min(32) };
    let lanes = (widest_row.next_power_of_two() as u32).min(widest);
    let per_lane = widest_row.div_ceil(lanes as usize);
    let rows = rows_per_cube(group * tokens, per_lane * vector);
    // Every group of lanes has a result, maxima, sums and an exchange in shared memory, in f32.
    let fitting = machine.shared_bytes / (4 * (value_dim + 2 * rows + lanes as usize));
    let units = if (most / lanes) as usize <= fitting { most } else { lanes << fitting.max(1).ilog2() };
    let tiles = (group * tokens).div_ceil(rows);
    let int8 = [key.is_int8(), value.is_int8()];
    let splits = given.unwrap_or_else(|| splits(machine, batch * kv_heads * tiles, keys)).max(1);
    let unroll = if rows * per_lane * vector > 32 { 2 } else { 4 };
    // int8 keys have half or a quarter of the bytes of floats, so more of them may be in flight.
    let many = 1 << (MOST_SCORES / (rows * per_lane)).max(1).ilog2();
    let unroll = if int8 == [true; 2] { unroll.max(many) } else { unroll };
    let tile = Tile {
        units,
        lanes,
        per_lane: vectors.div_ceil(lanes as usize) as u32,
        value_per_lane: value_vectors.div_ceil(lanes as usize) as u32,
        vectors: vectors as u32,
        value_vectors: value_vectors as u32,
        rows: rows as u32,
        unroll,
        runs: [(key, head_dim), (value, value_dim)]
            .iter()
            .all(|(part, features)| (features * part.elements.dtype.size()).is_multiple_of(SECTOR)),
        whole: splits == 1,
        // Elements of int8 are finite, and a weight of 0 hides them.
        select: masks.differs_by_row(tokens) && !int8[1],
        int8_keys: int8[0],
        int8_values: int8[1],
        planes: machine.plane_operations,
    };
    countable(keys.saturating_add(splits.saturating_mul((units * unroll) as usize)))?;
    let cubes = machine.cubes([splits * tiles, kv_heads, batch])?;
    let results = Results::new(client, machine, (context, *sinks), *sizes, splits)?;
    let sizes = SizesLaunch::new(
        tokens as u32,
        group as u32,
        splits as u32,
        scale,
        head_strides(query, vector),
        head_strides(context, 1),
    );
    let (key_loads, value_loads) = (key.loads(vector), value.loads(vector));
    let (output, output_type) = results.output();
    // SAFETY: the tensors were checked against each other, so rows, heads, tokens and features that `Sizes` and `Tile` count are
    // in all of them. The kernel reads keys, values, scales and masks only at slots before `masks.end`, which is at most `keys`,
    // and they hold that many.
    unsafe {
        decode::launch_unchecked::<R>(
            client,
            cubes,
            CubeDim::new_1d(units),
            vector,
            key_loads.vector,
            value_loads.vector,
            array(query),
            key.launch_loads(vector),
            value.launch_loads(vector),
            masks.launch(),
            results.sinks(),
            output,
            results.stats(),
            sizes,
            tile,
            query.dtype,
            key_loads.elements,
            value_loads.elements,
            output_type,
            masks.mask_type(),
            masks.bias_type(),
        );
    }
    results.combine(client);
    Ok(splits)
}

/// Queries of a cube: as many as keep queries and results in registers, `elements` features of each to a lane.
fn rows_per_cube(rows: usize, elements: usize) -> usize {
    [8, 4, 2, 1].into_iter().find(|count| *count <= rows.next_power_of_two() && count * elements <= 64).unwrap_or(1)
}
