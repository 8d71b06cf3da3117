//! Splits a packed projection, rotates queries and keys, and writes keys and values into the cache.

mod int8;
mod kernel;
mod place;
mod rotation;

use burn_deepspeed_core::divisor::gcd;
use burn_deepspeed_core::layout::RotaryLayout;
use cubecl::prelude::*;
use cubecl::std::tensor::TensorHandle;

use self::int8::{Tile, cache_write_int8};
use self::kernel::{UNITS, cache_write};
use self::place::SizesLaunch;
use self::rotation::TableLaunch;
use super::cached::{CacheTensor, CheckedCache};
use super::contract::{Checked, Contract, f32_type, same_type};
use super::machine::{Machine, Unsupported, countable};
use super::mask_arguments::{CheckedBounds, check_bounds, row_strides};
use super::tensors::{array, broadcast_strides, head_strides, presence, vector_size};
use crate::contract::product;

/// Units of a multiprocessor, with a vector or two in flight each, that keep its memory busy.
const UNITS_PER_PROCESSOR: usize = 512;

/// Rotary positions of the new tokens.
#[derive(Debug, Clone)]
pub struct Rotation<R: Runtime> {
    /// Which features form a pair.
    pub layout: RotaryLayout,
    /// Cosines, `[B or 1, T, rotary_dim / 2]` of f32; `rotary_dim` is at most the head size.
    pub cos: TensorHandle<R>,
    /// Sines, of the shape and the strides of the cosines.
    pub sin: TensorHandle<R>,
}

/// The arguments of [`launch`].
#[derive(Debug)]
pub struct CacheWrite<'a, R: Runtime> {
    /// `q | k | v`, `[B, T, (N + 2K)·H]`.
    pub qkv: &'a TensorHandle<R>,
    /// `[B, N, T, H]`; every element is written.
    pub query: &'a TensorHandle<R>,
    /// `[B, K, capacity, H]`; the slots of the new tokens are written, the others are not touched. Scales are written with the
    /// elements.
    pub key: CacheTensor<'a, R>,
    /// `[B, K, capacity, H]`, as the keys.
    pub value: CacheTensor<'a, R>,
    /// Rotates queries and keys.
    pub rotation: Option<&'a Rotation<R>>,
    /// `[B, 2]` of u32 or i32: the slot of each row's first new token, and the end of its new tokens. Tokens without a slot in
    /// the cache are dropped.
    pub bounds: Option<&'a TensorHandle<R>>,
    /// The first new slot, where `bounds` does not say.
    pub start: u32,
    /// The end of the new slots, at most the capacity, where `bounds` does not say.
    pub end: u32,
}

impl<R: Runtime> Clone for CacheWrite<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R: Runtime> Copy for CacheWrite<'_, R> {}

/// [`CacheWrite`], checked.
struct CheckedWrite<'a, R: Runtime> {
    qkv: Checked<'a, R>,
    query: Checked<'a, R>,
    key: CheckedCache<'a, R>,
    value: CheckedCache<'a, R>,
    /// Layout, cosines and sines.
    rotation: Option<(RotaryLayout, [Checked<'a, R>; 2])>,
    bounds: CheckedBounds<'a, R>,
    kv_heads: usize,
}

impl<'a, R: Runtime> CacheWrite<'a, R> {
    #[track_caller]
    fn check(&self, client: &ComputeClient<R>) -> Result<CheckedWrite<'a, R>, Unsupported> {
        let contract = Contract::new("cache_write", client);
        let [batch, heads, tokens, head_dim] = contract.axes("query", self.query);
        let [_, kv_heads, capacity, _] = contract.axes("key", self.key.elements);
        let shape = [batch, kv_heads, capacity, head_dim];
        let width = kv_heads.saturating_mul(2).saturating_add(heads).saturating_mul(head_dim);
        let qkv = contract.rows("qkv", self.qkv, &[batch, tokens, width])?;
        let query = contract.rows("query", self.query, &[batch, heads, tokens, head_dim])?;
        let key = self.key.check(&contract, ["key", "key_scales"], shape, qkv.dtype)?;
        let value = self.value.check(&contract, ["value", "value_scales"], shape, qkv.dtype)?;
        let rotation = match self.rotation {
            Some(rotation) => Some((rotation.layout, rotation.check(&contract, [batch, tokens, head_dim])?)),
            None => None,
        };
        let bounds = check_bounds(&contract, self.bounds, batch, [self.start, self.end], [tokens, capacity])?;
        same_type("query", &query, qkv.dtype)?;
        contract.supports(&[qkv.dtype])?;
        countable(product(&[batch, tokens, width]))?;
        Ok(CheckedWrite { qkv, query, key, value, rotation, bounds, kv_heads })
    }
}

impl<R: Runtime> Rotation<R> {
    /// Cosines and sines.
    #[track_caller]
    fn check(
        &self,
        contract: &Contract<'_, R>,
        [batch, tokens, head_dim]: [usize; 3],
    ) -> Result<[Checked<'_, R>; 2], Unsupported> {
        let [rows, _, half] = contract.axes("cos", &self.cos);
        let rows = if rows == 1 { 1 } else { batch };
        let cos = contract.rows("cos", &self.cos, &[rows, tokens, half])?;
        let sin = contract.rows("sin", &self.sin, &[rows, tokens, half])?;
        contract.require(half <= head_dim / 2, || {
            format!("`cos` has {half} pairs, expected at most half of the {head_dim} features of a head")
        });
        let strides: [&[usize]; 2] = [cos.strides(), sin.strides()];
        contract.require(broadcast_strides::<R, 3>(cos) == broadcast_strides(sin), || {
            format!("`sin` has strides {:?}, expected those of `cos`, {:?}", strides[1], strides[0])
        });
        same_type("cos", &cos, f32_type())?;
        same_type("sin", &sin, f32_type())?;
        Ok([cos, sin])
    }
}

/// One launch: reads the projection once, writes queries out and keys and values in place.
///
/// int8 elements are rounded from the floats that would otherwise be stored: features rotated and rounded to the projection's
/// type.
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
    let CheckedWrite { qkv, query, key, value, rotation, bounds, kv_heads } = arguments.check(client)?;
    let [batch, heads, tokens, head_dim] = std::array::from_fn(|axis| query.shape()[axis]);
    let half = rotation.map_or(0, |(_, [cos, _])| cos.shape()[2]);
    // A vector is on one side of a half-split pair, and holds whole interleaved ones.
    let unit = match rotation {
        None => head_dim,
        Some((RotaryLayout::Half, _)) => gcd(head_dim, half),
        Some((RotaryLayout::Interleaved, _)) => gcd(head_dim, 2 * half),
    };
    let vector = vector_size(client, &[qkv, query, key.elements, value.elements], unit);
    let parts = head_dim / vector;
    let all_heads = heads + 2 * kv_heads;
    if batch * tokens * all_heads * parts == 0 {
        return Ok(());
    }
    let each = heads_of_unit(machine, batch * tokens, all_heads, parts);
    let places = batch * tokens * all_heads.div_ceil(each as usize);
    let units = places * parts;
    let int8 = key.is_int8() || value.is_int8();
    let angles = rotation.map_or(1, |(layout, [cos, sin])| {
        let angles = if layout == RotaryLayout::Interleaved { vector.div_ceil(2) } else { vector };
        vector_size(client, &[cos, sin], angles)
    });
    let [table_batch, table_token, _] =
        rotation.map_or([0; 3], |(_, [cos, _])| broadcast_strides(cos)).map(|stride| (stride / angles) as u32);
    let sizes = SizesLaunch::new(
        if int8 { places } else { units } as u32,
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
    );
    if int8 {
        let tile = Tile::new(machine, parts, each);
        let cubes = machine.folded(places, tile.teams() as usize)?;
        // SAFETY: the tensors were checked against each other, so every head that `Sizes` counts is in all of them. The kernel
        // repeats the last head instead of going on after it, and writes no slot from `Sizes::end` on, which is at most the
        // capacity.
        unsafe {
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
            parts as u32,
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
fn heads_of_unit(machine: &Machine, tokens: usize, heads: usize, parts: usize) -> u32 {
    let fills =
        |each: usize| tokens * heads.div_ceil(each) * parts >= machine.processors as usize * UNITS_PER_PROCESSOR;
    if fills(2) { 2 } else { 1 }
}
