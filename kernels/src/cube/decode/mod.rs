//! A few new tokens against a cache: flash decoding (<https://pytorch.org/blog/flash-decoding/>), and the sum of its splits.

mod kernel;
mod sum;
mod tile;

use cubecl::prelude::*;

use self::kernel::{SizesLaunch, decode};
use self::sum::{CombineSizesLaunch, combine};
use self::tile::Tile;
use super::attention::{Attention, AttentionSizes, CheckedAttention};
use super::machine::{Machine, Unsupported, countable};
use super::tensors::{array, head_strides, vector_size};
use crate::contract::product;

/// Units of a cube.
const UNITS: u32 = 128;
/// Cubes for each multiprocessor that the splits aim at.
const CUBES_PER_PROCESSOR: usize = 3;
/// Fewest keys of a split: below this the sum of the splits costs more than it saves.
const SPLIT_KEYS: usize = 256;
/// Largest number of splits.
const MOST_SPLITS: usize = 64;
/// Bytes that memory moves together.
const SECTOR: usize = 32;
/// Scores that a group of lanes works on at a time with keys and values of int8, if a lane has one vector of each.
const MOST_SCORES: usize = 16;

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
    let Attention { scale, keys, .. } = problem;
    let CheckedAttention { query, key, value, context, masks, sizes } = problem.check("decode", client)?;
    let AttentionSizes { batch, heads, kv_heads, tokens, head_dim } = sizes;
    if sizes.is_empty() {
        return Ok(given.unwrap_or(1).max(1));
    }
    let group = sizes.group();

    let vector = vector_size(client, &[query, key.elements, value.elements], head_dim);
    let vectors = head_dim / vector;
    let units = machine.units(UNITS);
    // Without plane operations a group of lanes may be any part of the cube.
    let widest = if machine.plane_operations { machine.plane_size } else { units.min(32) };
    let lanes = (vectors.next_power_of_two() as u32).min(widest);
    let per_lane = vectors.div_ceil(lanes as usize);
    let rows = rows_per_cube(group * tokens, per_lane * vector);
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
        per_lane: per_lane as u32,
        vectors: vectors as u32,
        rows: rows as u32,
        unroll,
        runs: [key.elements, value.elements].iter().all(|part| (head_dim * part.dtype.size()).is_multiple_of(SECTOR)),
        whole: splits == 1,
        // Elements of int8 are finite, and a weight of 0 hides them.
        select: masks.differs_by_row(tokens) && !int8[1],
        int8_keys: int8[0],
        int8_values: int8[1],
        planes: machine.plane_operations,
    };
    let all_rows = batch * heads * tokens;
    // What the splits leave is counted in 32 bits, too.
    countable(product(&[all_rows, splits, head_dim.max(2)]))?;
    countable(keys.saturating_add(splits.saturating_mul((units * unroll) as usize)))?;
    let cubes = machine.cubes([splits * tiles, kv_heads, batch])?;
    let sizes = SizesLaunch::new(
        tokens as u32,
        group as u32,
        splits as u32,
        scale,
        head_strides(query, vector),
        head_strides(context, 1),
    );
    let (key_loads, value_loads) = (key.loads(vector), value.loads(vector));
    let float = f32::as_type_native_unchecked().storage_type();
    let stats = client.empty(all_rows * splits * 2 * size_of::<f32>());
    let partial = (splits > 1).then(|| client.empty(all_rows * splits * head_dim * size_of::<f32>()));
    // SAFETY: the lengths are those of the allocations above.
    let stats_array = || unsafe { ArrayArg::from_raw_parts(stats.clone(), all_rows * splits * 2) };
    let (output, output_type) = match &partial {
        // SAFETY: as above.
        Some(partial) => (unsafe { ArrayArg::from_raw_parts(partial.clone(), all_rows * splits * head_dim) }, float),
        None => (array(context), context.dtype),
    };
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
            output,
            stats_array(),
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
    if let Some(partial) = partial {
        let rows_of_cube = (UNITS as usize / head_dim.next_power_of_two()).max(1);
        let units = (head_dim.next_power_of_two() * rows_of_cube) as u32;
        // SAFETY: the kernel checks its row against the number of rows and its feature against the head.
        unsafe {
            combine::launch_unchecked::<R>(
                client,
                machine.cubes([all_rows.div_ceil(rows_of_cube), 1, 1])?,
                CubeDim::new_1d(machine.units(units)),
                ArrayArg::from_raw_parts(partial, all_rows * splits * head_dim),
                stats_array(),
                array(context),
                CombineSizesLaunch::new(
                    all_rows as u32,
                    kv_heads as u32,
                    group as u32,
                    tokens as u32,
                    splits as u32,
                    head_strides(context, 1),
                ),
                head_dim as u32,
                context.dtype,
            );
        }
    }
    Ok(splits)
}

/// Queries of a cube: as many as keep queries and results in registers, `elements` features of each to a lane.
fn rows_per_cube(rows: usize, elements: usize) -> usize {
    [8, 4, 2, 1].into_iter().find(|count| *count <= rows.next_power_of_two() && count * elements <= 64).unwrap_or(1)
}
