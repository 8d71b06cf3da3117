//! Splits a packed projection, turns queries and keys, and writes keys and values into the cache.

use cubecl::prelude::*;
use cubecl::std::tensor::TensorHandle;

use super::attention::{HeadStrides, head_strides};
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
    /// `[B, K, capacity, H]`, as the keys.
    pub value: &'a TensorHandle<R>,
    /// Turns queries and keys.
    pub rotation: Option<&'a Rotation<R>>,
    /// `[B, 2]` of u32 or i32, dense: the slot of each row's first new token, and the keys of the row behind its last.
    pub bounds: Option<&'a TensorHandle<R>>,
    /// The first new slot, where `bounds` does not say.
    pub start: u32,
    /// Behind the last new slot, where `bounds` does not say.
    pub end: u32,
}

#[derive(CubeType, CubeLaunch)]
struct Sizes {
    elements: u32,
    tokens: u32,
    heads: u32,
    kv_heads: u32,
    qkv_batch: u32,
    qkv_token: u32,
    query: HeadStrides,
    key: HeadStrides,
    value: HeadStrides,
    table_batch: u32,
    table_token: u32,
    start: u32,
    end: u32,
}

#[derive(CubeType, CubeLaunch)]
struct Table {
    cos: Array<f32>,
    sin: Array<f32>,
    /// Pairs of a head.
    #[cube(comptime)]
    half: u32,
    #[cube(comptime)]
    pairs: RotaryPairs,
}

/// One launch: reads the projection once, writes queries out and keys and values in place.
///
/// # Errors
/// [`Unsupported`]; nothing was launched.
pub fn launch<R: Runtime>(
    client: &ComputeClient<R>,
    machine: &Machine,
    arguments: CacheWrite<'_, R>,
) -> Result<(), Unsupported> {
    let CacheWrite { qkv, query, key, value, rotation, bounds, start, end } = arguments;
    let [batch, heads, tokens, head_dim] = std::array::from_fn(|axis| query.shape()[axis]);
    let kv_heads = key.shape()[1];
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
    let elements = batch * tokens * (heads + 2 * kv_heads) * parts;
    if elements > u32::MAX as usize {
        return Err(Unsupported::TooLarge { elements });
    }
    let units = machine.units(UNITS);
    let cubes = elements.div_ceil(units as usize);
    let across = cubes.min(machine.max_cubes[0] as usize);
    let table = rotation
        .map(|rotation| TableLaunch::new(array(&rotation.cos), array(&rotation.sin), half as u32, rotation.pairs));
    let table_stride = |axis: usize| {
        rotation.map_or(0, |rotation| match rotation.cos.shape()[axis] {
            1 => 0,
            _ => rotation.cos.strides()[axis] as u32,
        })
    };
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
            array(key),
            array(value),
            table.into(),
            bounds.map(array).into(),
            SizesLaunch::new(
                elements as u32,
                tokens as u32,
                heads as u32,
                kv_heads as u32,
                (qkv.strides()[0] / vector) as u32,
                (qkv.strides()[1] / vector) as u32,
                head_strides(query, vector),
                head_strides(key, vector),
                head_strides(value, vector),
                table_stride(0),
                table_stride(1),
                start,
                end,
            ),
            parts as u32,
            qkv.dtype,
        );
    }
    Ok(())
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// A unit moves one vector of one head of one token; neighbouring units move neighbouring vectors of the projection. Of a
/// half-split pair a unit reads both sides and writes its own, so nothing is exchanged; the second read is a cache hit.
#[cube(launch_unchecked)]
fn cache_write<F: Float, N: Size>(
    qkv: &Array<Vector<F, N>>,
    query: &mut Array<Vector<F, N>>,
    key: &mut Array<Vector<F, N>>,
    value: &mut Array<Vector<F, N>>,
    table: &ComptimeOption<Table>,
    bounds: &ComptimeOption<Array<u32>>,
    sizes: &Sizes,
    #[comptime] parts: u32,
    #[define(F)] _elements: StorageType,
) {
    let at = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * CUBE_DIM + UNIT_POS;
    if at >= sizes.elements {
        terminate!();
    }
    let all_heads = sizes.heads + 2 * sizes.kv_heads;
    let part = at % parts;
    let head = at / parts % all_heads;
    let token = at / (parts * all_heads) % sizes.tokens;
    let batch = at / (parts * all_heads) / sizes.tokens;

    let source = batch * sizes.qkv_batch + token * sizes.qkv_token + head * parts;
    let is_query = head < sizes.heads;
    let is_value = head >= sizes.heads + sizes.kv_heads;
    let mut moved = qkv[(source + part) as usize];
    #[comptime]
    match table {
        ComptimeOption::Some(table) => {
            if !is_value {
                let row = batch * sizes.table_batch + token * sizes.table_token;
                moved = turned::<F, N>(moved, qkv, source, part, table, row);
            }
        }
        ComptimeOption::None => {}
    }
    if is_query {
        query[(sizes.query.head(batch, head) + token * sizes.query.token + part) as usize] = moved;
    } else {
        let mut slot = sizes.start + token;
        let mut end = sizes.end;
        #[comptime]
        match bounds {
            ComptimeOption::Some(bounds) => {
                slot = bounds[(batch * 2) as usize] + token;
                end = bounds[(batch * 2 + 1) as usize];
            }
            ComptimeOption::None => {}
        }
        // A row may have fewer new tokens than the widest.
        if slot < end {
            if is_value {
                let head = head - sizes.heads - sizes.kv_heads;
                value[(sizes.value.head(batch, head) + slot * sizes.value.token + part) as usize] = moved;
            } else {
                let head = head - sizes.heads;
                key[(sizes.key.head(batch, head) + slot * sizes.key.token + part) as usize] = moved;
            }
        }
    }
}

/// The vector `part` of a head, turned; `row` is where the angles of its token begin.
#[cube]
fn turned<F: Float, N: Size>(
    own: Vector<F, N>,
    qkv: &Array<Vector<F, N>>,
    source: u32,
    part: u32,
    table: &Table,
    row: u32,
) -> Vector<F, N> {
    let vector = own.size();
    let half = comptime!(table.half);
    let mut result = own;
    let feature = part * vector as u32;
    if feature < 2 * half {
        match comptime!(table.pairs) {
            RotaryPairs::Half => {
                let second = feature >= half;
                let reach = comptime!(half / vector as u32);
                let partner = qkv[(source + select(second, part - reach, part + reach)) as usize];
                let first_angle = row + select(second, feature - half, feature);
                let sign = select(second, 1.0f32, -1.0f32);
                #[unroll]
                for e in 0..vector {
                    let angle = first_angle as usize + e;
                    let side = f32::cast_from(partner[e]) * table.sin[angle] * sign;
                    result[e] = F::cast_from(f32::cast_from(own[e]) * table.cos[angle] + side);
                }
            }
            RotaryPairs::Interleaved => {
                if comptime!(vector == 1) {
                    let odd = feature % 2 == 1;
                    let partner = qkv[(source + select(odd, part - 1, part + 1)) as usize];
                    let angle = (row + feature / 2) as usize;
                    let sign = select(odd, 1.0f32, -1.0f32);
                    let side = f32::cast_from(partner[0]) * table.sin[angle] * sign;
                    result[0] = F::cast_from(f32::cast_from(own[0]) * table.cos[angle] + side);
                } else {
                    #[unroll]
                    for pair in 0..comptime!(vector / 2) {
                        let angle = (row + feature / 2) as usize + pair;
                        let a = f32::cast_from(own[2 * pair]);
                        let b = f32::cast_from(own[2 * pair + 1]);
                        result[2 * pair] = F::cast_from(a * table.cos[angle] - b * table.sin[angle]);
                        result[2 * pair + 1] = F::cast_from(b * table.cos[angle] + a * table.sin[angle]);
                    }
                }
            }
        }
    }
    result
}
