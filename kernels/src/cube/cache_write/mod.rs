//! Splits a packed projection, normalises and rotates queries and keys, and writes keys and values into the cache, if the projection has any.

mod arguments;
mod int8;
mod kernel;
mod norm;
mod place;
mod rotation;
mod squares;

use burn_deepspeed_core::divisor::gcd;
use burn_deepspeed_core::kv_source::KvSource;
use burn_deepspeed_core::layout::RotaryLayout;
use cubecl::prelude::*;

use self::arguments::CheckedWrite;
use self::int8::{Tile, cache_write_int8};
use self::kernel::{UNITS, cache_write};
use self::norm::{cache_write_norm, norm_arguments};
use self::place::SizesLaunch;
use self::rotation::{Share, TableLaunch};
use super::contract::Checked;
use super::machine::{Machine, Unsupported, countable};
use super::mask_arguments::row_strides;
use super::tensors::{array, broadcast_strides, head_strides, presence, vector_size};

pub use self::arguments::{CacheWrite, HeadNorm, Rotation, Sums};
pub use self::squares::{Squares, launch as launch_squares};

/// Pairs that a unit rotates: their cosines are 16 bytes.
const PAIRS: usize = 4;
/// Units of a multiprocessor, with a vector or two in flight each, that keep its memory busy.
const UNITS_PER_PROCESSOR: usize = 512;

/// One launch: reads the projection once, writes queries out and keys and values in place.
///
/// Norm, rotation and factor are computed in f32, and the result is rounded once. int8 elements are rounded from the floats that would
/// otherwise be stored.
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
    arguments: CacheWrite<'_, R>,
) -> Result<(), Unsupported> {
    let CheckedWrite { qkv, query, key, value, norm, rotation, factors, bounds, kv_heads } = arguments.check(client)?;
    let [batch, heads, tokens, head_dim] = std::array::from_fn(|axis| query.shape()[axis]);
    let half = rotation.map_or(0, |(_, [cos, _])| cos.shape()[2]);
    // A vector is on one side of half-split pairs, and holds whole interleaved ones.
    let unit = match rotation {
        None => head_dim,
        Some((RotaryLayout::Half, _)) => gcd(gcd(head_dim, half), PAIRS),
        Some((RotaryLayout::Interleaved, _)) => gcd(head_dim, 2 * half),
    };
    let vector = vector_size(client, &[qkv, query, key.elements, value.elements], unit);
    let share = Share::new(rotation.map(|(layout, _)| layout), head_dim, vector, half);
    let shares = share.units() as usize;
    let all_heads = heads + 2 * kv_heads;
    if batch * tokens * all_heads * shares == 0 {
        return Ok(());
    }
    let each = heads_of_unit(machine, batch * tokens, all_heads, shares);
    let token_places = all_heads.div_ceil(each as usize);
    let places = batch * tokens * token_places;
    let units = places * shares;
    countable(units)?;
    let int8 = key.is_int8() || value.is_int8();
    let changes = norm.is_some() || factors.is_some();
    let in_teams = int8 || changes;
    // Cosines, sines and weights are read in vectors of one size.
    let weights = norm.as_ref().and_then(|norm| norm.weights);
    let tables: Vec<_> = rotation.iter().flat_map(|(_, table)| *table).chain(weights.into_iter().flatten()).collect();
    let interleaved = matches!(rotation, Some((RotaryLayout::Interleaved, _)));
    let angles = match tables.is_empty() {
        true => 1,
        false => vector_size(client, &tables, if interleaved { vector.div_ceil(2) } else { vector }),
    };
    let [table_batch, table_token, _] =
        rotation.map_or([0; 3], |(_, [cos, _])| broadcast_strides(cos)).map(|stride| (stride / angles) as u32);
    let sizes = SizesLaunch::new(
        if in_teams { places } else { units } as u32,
        token_places as u32,
        tokens as u32,
        heads as u32,
        kv_heads as u32,
        (qkv.strides()[0] / vector) as u32,
        (qkv.strides()[1] / vector) as u32,
        head_strides(query, vector),
        table_batch,
        table_token,
        row_strides(bounds.by_row),
        arguments.start,
        bounds.end,
        presence(&[rotation.is_some(), bounds.by_row.is_some()]),
        arguments.source == KvSource::KeysAreValues,
    );
    if in_teams {
        let tile = Tile::new(machine, share, each);
        let cubes = machine.folded(places, tile.teams() as usize)?;
        // SAFETY: the tensors were checked against each other, so every head that `Sizes` counts is in all of them, and weights, sums
        // and factors have the same heads and tokens. The kernels repeat the last head instead of going on after it, and write no slot
        // from `Sizes::end` on, which is at most the capacity.
        unsafe {
            if changes {
                cache_write_norm::launch_unchecked::<R>(
                    client,
                    cubes,
                    CubeDim::new_1d(tile.units),
                    vector,
                    angles,
                    array(qkv),
                    array(query),
                    key.launch(vector),
                    value.launch(vector),
                    table(rotation).into(),
                    norm_arguments(norm, factors, [head_dim, angles]),
                    bounds.by_row.map(array).into(),
                    sizes,
                    tile,
                    int8,
                    qkv.dtype,
                    key.elements.dtype,
                    value.elements.dtype,
                );
            } else {
                cache_write_int8::launch_unchecked::<R>(
                    client,
                    cubes,
                    CubeDim::new_1d(tile.units),
                    vector,
                    angles,
                    array(qkv),
                    array(query),
                    key.launch(vector),
                    value.launch(vector),
                    table(rotation).into(),
                    bounds.by_row.map(array).into(),
                    sizes,
                    tile,
                    qkv.dtype,
                    key.elements.dtype,
                    value.elements.dtype,
                );
            }
        }
        return Ok(());
    }
    let cube = machine.units(UNITS);
    let cubes = units.div_ceil(cube as usize);
    let across = cubes.min(machine.max_cubes[0] as usize);
    // SAFETY: the tensors were checked against each other, so every vector that `Sizes` counts is in all of them. The kernel
    // leaves before a vector that is not counted, and writes no slot from `Sizes::end` on, which is at most the capacity.
    unsafe {
        cache_write::launch_unchecked::<R>(
            client,
            machine.cubes([across, cubes.div_ceil(across), 1])?,
            CubeDim::new_1d(cube),
            vector,
            angles,
            array(qkv),
            array(query),
            key.launch(vector),
            value.launch(vector),
            table(rotation).into(),
            bounds.by_row.map(array).into(),
            sizes,
            share,
            each,
            qkv.dtype,
        );
    }
    Ok(())
}

/// Cosines and sines as the kernels take them.
fn table<T: Size, R: Runtime>(rotation: Option<(RotaryLayout, [Checked<'_, R>; 2])>) -> Option<TableLaunch<T, R>> {
    let (layout, [cos, sin]) = rotation?;
    Some(TableLaunch::new(array(cos), array(sin), cos.shape()[2] as u32, layout))
}

/// Heads of a token that share the angles of a unit: two, as long as the units fill the device. With four an H100 is slower again.
fn heads_of_unit(machine: &Machine, tokens: usize, heads: usize, shares: usize) -> u32 {
    let fills =
        |each: usize| tokens * heads.div_ceil(each) * shares >= machine.processors as usize * UNITS_PER_PROCESSOR;
    if fills(2) { 2 } else { 1 }
}
