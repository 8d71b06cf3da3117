//! Splits a packed projection, turns queries and keys, and writes keys and values into the cache.

mod int8;
mod kernel;

use cubecl::prelude::*;
use cubecl::std::tensor::TensorHandle;

use self::int8::{Tile, cache_write_int8};
use self::kernel::{SizesLaunch, TableLaunch, cache_write};
use super::attention::head_strides;
use super::cached::Side;
use super::machine::{Machine, Unsupported, array, check_extent, check_rows, vector_size};

/// Units of a cube.
const UNITS: u32 = 256;

/// Which features of a head form a pair that turns together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RotaryPairs {
    /// `i` and `i + rotary_dim / 2`: GPT-NeoX, LLaMA.
    Half,
    /// `2i` and `2i + 1`: GPT-J.
    Interleaved,
}

/// Rotary positions of the new tokens.
#[derive(Debug, Clone)]
pub struct Rotation<R: Runtime> {
    /// Which features form a pair.
    pub pairs: RotaryPairs,
    /// Cosines, `[B or 1, T, rotary_dim / 2]` of f32.
    pub cos: TensorHandle<R>,
    /// Sines, as the cosines and with their strides.
    pub sin: TensorHandle<R>,
}

/// The arguments of [`launch`].
#[derive(Debug, Clone, Copy)]
pub struct CacheWrite<'a, R: Runtime> {
    /// `q | k | v`, `[B, T, (N + 2K)·H]`.
    pub qkv: &'a TensorHandle<R>,
    /// `[B, N, T, H]`; every element is written.
    pub query: &'a TensorHandle<R>,
    /// `[B, K, capacity, H]`; the slots of the new tokens are written, the others are not touched.
    pub key: &'a TensorHandle<R>,
    /// `[B, K, capacity]` of f32, if the keys are int8: the scale of each head and token, written as the keys are.
    pub key_scales: Option<&'a TensorHandle<R>>,
    /// `[B, K, capacity, H]`, as the keys.
    pub value: &'a TensorHandle<R>,
    /// `[B, K, capacity]` of f32, if the values are int8.
    pub value_scales: Option<&'a TensorHandle<R>>,
    /// Turns queries and keys.
    pub rotation: Option<&'a Rotation<R>>,
    /// `[B, 2]` of u32 or i32, dense: the slot of each row's first new token, and the keys of the row behind its last.
    pub bounds: Option<&'a TensorHandle<R>>,
    /// The first new slot, where `bounds` does not say.
    pub start: u32,
    /// Behind the last new slot, where `bounds` does not say.
    pub end: u32,
}

/// One launch: reads the projection once, writes queries out and keys and values in place.
///
/// The elements of int8 are those of what would have been stored: of features turned and rounded to the projection's type.
///
/// # Errors
/// [`Unsupported`]; nothing was launched.
pub fn launch<R: Runtime>(
    client: &ComputeClient<R>,
    machine: &Machine,
    arguments: CacheWrite<'_, R>,
) -> Result<(), Unsupported> {
    let CacheWrite { qkv, query, key, key_scales, value, value_scales, rotation, bounds, start, end } = arguments;
    let [batch, heads, tokens, head_dim] = std::array::from_fn(|axis| query.shape()[axis]);
    let kv_heads = key.shape()[1];
    let (keys, values) = (Side::keys(key, key_scales), Side::values(value, value_scales));
    keys.check(client, qkv.dtype)?;
    values.check(client, qkv.dtype)?;
    check_rows(&[("qkv", qkv), ("query", query), ("key", key), ("value", value)])?;
    check_extent(&[qkv, query, key, value])?;
    let half = rotation.map_or(0, |rotation| rotation.cos.shape()[2]);
    // A vector lies on one side of a half-split pair, and holds whole interleaved ones.
    let unit = match rotation.map(|rotation| rotation.pairs) {
        None => head_dim,
        Some(RotaryPairs::Half) => gcd(head_dim, half),
        Some(RotaryPairs::Interleaved) => gcd(head_dim, 2 * half),
    };
    let vector = vector_size(client, &[qkv, query, key, value], unit);
    let parts = head_dim / vector;
    let all_heads = batch * tokens * (heads + 2 * kv_heads);
    let elements = all_heads * parts;
    if elements > u32::MAX as usize {
        return Err(Unsupported::TooLarge { elements });
    }
    let int8 = key_scales.is_some() || value_scales.is_some();
    let table = rotation
        .map(|rotation| TableLaunch::new(array(&rotation.cos), array(&rotation.sin), half as u32, rotation.pairs));
    let table_stride = |axis: usize| {
        rotation.map_or(0, |rotation| match rotation.cos.shape()[axis] {
            1 => 0,
            _ => rotation.cos.strides()[axis] as u32,
        })
    };
    let sizes = SizesLaunch::new(
        if int8 { all_heads } else { elements } as u32,
        tokens as u32,
        heads as u32,
        kv_heads as u32,
        (qkv.strides()[0] / vector) as u32,
        (qkv.strides()[1] / vector) as u32,
        head_strides(query, vector),
        table_stride(0),
        table_stride(1),
        start,
        end,
    );
    if int8 {
        if all_heads == 0 {
            return Ok(());
        }
        let tile = Tile::new(machine, parts);
        let cubes = machine.folded(all_heads, tile.teams() as usize)?;
        // SAFETY: the kernel repeats the last head instead of one that `Sizes` does not count, and writes only the slots
        // from `start` to `end` of each row, which the caller keeps below the capacity.
        unsafe {
            cache_write_int8::launch_unchecked::<R>(
                client,
                cubes,
                CubeDim::new_1d(tile.units),
                vector,
                array(qkv),
                array(query),
                keys.launch(vector),
                values.launch(vector),
                table.into(),
                bounds.map(array).into(),
                sizes,
                tile,
                qkv.dtype,
                key.dtype,
                value.dtype,
            );
        }
        return Ok(());
    }
    let units = machine.units(UNITS);
    let cubes = elements.div_ceil(units as usize);
    let across = cubes.min(machine.max_cubes[0] as usize);
    // SAFETY: the kernel leaves before an element that `Sizes` does not count, and writes only the slots from `start` to
    // `end` of each row, which the caller keeps below the capacity.
    unsafe {
        cache_write::launch_unchecked::<R>(
            client,
            machine.cubes([across, cubes.div_ceil(across), 1])?,
            CubeDim::new_1d(units),
            vector,
            array(qkv),
            array(query),
            keys.launch(vector),
            values.launch(vector),
            table.into(),
            bounds.map(array).into(),
            sizes,
            parts as u32,
            qkv.dtype,
        );
    }
    Ok(())
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
