//! Decoding on tensor cores, for key heads with several queries: grouped heads, or a few tokens at once.
//!
//! On ordinary units each element of a key or value takes a multiplication for each query, so with four queries the cores limit a cache of
//! int8, and with eight any cache. Here 8 queries share a product.

mod kernel;
mod loads;
mod tile;
mod weights;

use burn_deepspeed_core::path::LARGEST_TILED_HEAD;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use self::kernel::{RaisedLaunch, decode_mma};
use self::tile::{KEYS, ROWS, Tile, VALUE_CHUNK};
use super::results::Results;
use super::{SizesLaunch, splits};
use crate::cube::attention::{Attention, AttentionSizes, CheckedAttention};
use crate::cube::contract::Checked;
use crate::cube::direct::raised;
use crate::cube::fragment::check_tensor_cores;
use crate::cube::machine::{Machine, Unsupported, countable, whole};
use crate::cube::tensors::{array, head_strides};

/// Fewest queries of a key head for which tensor cores are worth it: their products have 8 columns, however many of them are used.
const FEWEST_QUERIES: usize = 3;
/// Elements of a vector of the queries.
const QUERY_VECTOR: usize = 8;
/// Elements of a vector of a value.
const VALUE_VECTOR: usize = 8;

/// The units that multiply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Tensor cores, through fragments of `mma.m16n8k16`.
    TensorCores,
    /// Plain loops over the same fragments, for devices without tensor cores: slow, and a check of everything but the
    /// instructions.
    Emulated,
}

/// Attends, as [`launch`](super::launch) does, with this engine.
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
    engine: Engine,
    given: Option<usize>,
) -> Result<usize, Unsupported> {
    let checked = problem.check("decode", client)?;
    let tile = plan(client, machine, &checked, engine)?;
    attend(client, machine, &problem, &checked, tile, given)
}

/// The tile for a problem, or why the kernel does not take it.
pub(super) fn plan<R: Runtime>(
    client: &ComputeClient<R>,
    machine: &Machine,
    CheckedAttention { query, key, value, masks, sizes, .. }: &CheckedAttention<'_, R>,
    engine: Engine,
) -> Result<Tile, Unsupported> {
    let elements = query.dtype;
    if elements.size() != 2 {
        return Err(Unsupported::TensorCores(elements));
    }
    let int8 = [key.is_int8(), value.is_int8()];
    // The scale of a value multiplies its weight, and f16 would not hold the product of two small numbers.
    let weights = if int8[1] && engine == Engine::TensorCores { bf16_type() } else { elements };
    if engine == Engine::TensorCores {
        check_tensor_cores(client, machine, elements)?;
        check_tensor_cores(client, machine, weights)?;
    }
    sizes.equal()?;
    let queries = sizes.group() * sizes.tokens;
    if queries < FEWEST_QUERIES {
        return Err(Unsupported::FewRows { rows: queries, least: FEWEST_QUERIES });
    }
    // Elements of int8 are finite, and a weight of 0 hides them. A float may be NaN, which a product does not leave out.
    if masks.differs_by_row(sizes.tokens) && !int8[1] {
        return Err(Unsupported::MixedVisibility);
    }
    whole("features of a head", sizes.head_dim, VALUE_CHUNK)?;
    if sizes.head_dim > LARGEST_TILED_HEAD {
        return Err(Unsupported::HeadDim { head_dim: sizes.head_dim, limit: LARGEST_TILED_HEAD });
    }
    let strides = |what, tensor: &Checked<'_, R>, vector: usize| {
        let axes = tensor.shape().iter().zip(tensor.strides().iter()).take(3);
        axes.filter(|(axis, _)| **axis > 1).try_for_each(|(_, stride)| whole(what, *stride, vector))
    };
    strides("a stride of `query`", query, QUERY_VECTOR)?;
    strides("a stride of `key`", &key.elements, Tile::key_vector(int8[0]))?;
    strides("a stride of `value`", &value.elements, VALUE_VECTOR)?;
    let brain = [elements, weights].map(|elements| elements == bf16_type());
    let tile = Tile::new(engine == Engine::Emulated, sizes.head_dim, int8, brain);
    let tile = Tile { guarded: masks.hides_keys(), ..tile };
    if machine.units(tile.units()) < tile.units() {
        return Err(Unsupported::TensorCores(elements));
    }
    tile.check(machine)?;
    Ok(tile)
}

fn bf16_type() -> StorageType {
    StorageType::Scalar(ElemType::Float(FloatKind::BF16))
}

/// Launches the kernel, and the sum of the splits.
pub(super) fn attend<R: Runtime>(
    client: &ComputeClient<R>,
    machine: &Machine,
    &Attention { scale, keys, .. }: &Attention<'_, R>,
    CheckedAttention { query, key, value, context, sinks, masks, sizes }: &CheckedAttention<'_, R>,
    tile: Tile,
    given: Option<usize>,
) -> Result<usize, Unsupported> {
    let (query, context) = (*query, *context);
    let AttentionSizes { batch, kv_heads, tokens, .. } = *sizes;
    if sizes.is_empty() {
        return Ok(given.unwrap_or(1).max(1));
    }
    let group = sizes.group();
    let tiles = (group * tokens).div_ceil(ROWS as usize);
    let splits = given.unwrap_or_else(|| splits(machine, batch * kv_heads * tiles, keys)).max(1);
    let tile = Tile { whole: splits == 1, ..tile };
    countable(keys.saturating_add(splits.saturating_mul((tile.planes * KEYS) as usize)))?;
    let cubes = machine.cubes([splits * tiles, kv_heads, batch])?;
    let results = Results::new(client, machine, (context, *sinks), *sizes, splits)?;
    let sizes = SizesLaunch::new(
        tokens as u32,
        group as u32,
        splits as u32,
        scale,
        head_strides(query, QUERY_VECTOR),
        head_strides(context, 1),
    );
    let (output, output_type) = results.output();
    let weights = if tile.brain_values { bf16_type() } else { query.dtype };
    // SAFETY: the tensors were checked against each other, so rows, heads, tokens and features that `Sizes` and `Tile` count are
    // in all of them, and `plan` checked that heads consist of, and begin at, whole vectors. The kernel reads keys, values, scales and
    // masks only at slots before `masks.end`, which is at most `keys`, and they hold that many.
    unsafe {
        decode_mma::launch_unchecked::<R>(
            client,
            cubes,
            CubeDim::new_1d(tile.units()),
            tile.value_words(),
            array(query),
            key.launch_words(Tile::key_vector(tile.int8_keys)),
            value.launch_words(VALUE_VECTOR),
            masks.launch(),
            results.sinks(),
            output,
            results.stats(),
            sizes,
            RaisedLaunch::new(raised(tile.brain), raised(tile.brain_values)),
            tile,
            query.dtype,
            weights,
            output_type,
            masks.mask_type(),
            masks.bias_type(),
        );
    }
    results.combine(client);
    Ok(splits)
}
