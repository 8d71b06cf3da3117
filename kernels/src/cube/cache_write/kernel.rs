//! A unit for each vector, where keys and values are floats; and what a unit does with its vector on both paths.

use burn_deepspeed_core::layout::RotaryLayout;
use cubecl::prelude::*;

use crate::cube::cached::Cached;
use crate::cube::masks::RowStrides;
use crate::cube::tensors::HeadStrides;

/// Units of a cube.
pub(super) const UNITS: u32 = 256;

/// Scalar sizes. Strides count vectors, those of the table elements.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Sizes {
    /// What the kernel counts: vectors, or heads.
    pub count: u32,
    pub tokens: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub qkv_batch: u32,
    pub qkv_token: u32,
    pub query: HeadStrides,
    pub table_batch: u32,
    pub table_token: u32,
    pub bounds: RowStrides,
    /// The first new slot, where the bounds do not say.
    pub start: u32,
    /// The end of the new slots, or with bounds the slots of the cache.
    pub end: u32,
    /// Which tensors are there; see [`presence`](crate::cube::tensors::presence).
    #[cube(comptime)]
    #[allow(dead_code, reason = "it is part of the key of the kernel")]
    pub present: u32,
}

/// Cosines and sines.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Table {
    pub cos: Array<f32>,
    pub sin: Array<f32>,
    /// Pairs of a head.
    #[cube(comptime)]
    pub half: u32,
    #[cube(comptime)]
    pub layout: RotaryLayout,
}

/// Which head of which token; queries come first, then keys, then values.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Place {
    pub batch: u32,
    pub token: u32,
    pub head: u32,
}

/// Where a token goes in the cache.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Slot {
    pub at: u32,
    /// Whether the token exists: a row may have fewer new ones than the longest.
    pub taken: bool,
}

#[cube]
impl Sizes {
    /// The head at this place in the projection.
    pub fn place(&self, at: u32) -> Place {
        let all_heads = self.heads + 2 * self.kv_heads;
        Place { batch: at / all_heads / self.tokens, token: at / all_heads % self.tokens, head: at % all_heads }
    }

    /// The slot of a token.
    pub fn slot(&self, bounds: &ComptimeOption<Array<u32>>, place: Place) -> Slot {
        let mut start = self.start;
        let mut end = self.end;
        #[comptime]
        match bounds {
            ComptimeOption::Some(bounds) => {
                let row = place.batch * self.bounds.row;
                start = bounds[row as usize];
                // The host has not checked these: no value may lead to a write outside the cache.
                end = min(bounds[(row + self.bounds.key) as usize], self.end);
            }
            ComptimeOption::None => {}
        }
        let at = start + place.token;
        // A sum that wraps is not a slot.
        Slot { at, taken: at >= start && at < end }
    }

    /// Where a vector of a query goes.
    pub fn query(&self, place: Place, part: u32) -> usize {
        (self.query.head(place.batch, place.head) + place.token * self.query.token + part) as usize
    }
}

/// A unit moves one vector of one head of one token; neighbouring units move neighbouring vectors of the projection. In a
/// half-split pair, a unit reads both sides and writes its own, so nothing is exchanged; the second read is a cache hit.
#[cube(launch_unchecked)]
pub(super) fn cache_write<F: Float, N: Size>(
    qkv: &Array<Vector<F, N>>,
    query: &mut Array<Vector<F, N>>,
    key: &mut Cached<F, N>,
    value: &mut Cached<F, N>,
    table: &ComptimeOption<Table>,
    bounds: &ComptimeOption<Array<u32>>,
    sizes: &Sizes,
    #[comptime] parts: u32,
    #[define(F)] _elements: StorageType,
) {
    let at = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * CUBE_DIM + UNIT_POS;
    if at >= sizes.count {
        terminate!();
    }
    let part = at % parts;
    let place = sizes.place(at / parts);
    let moved = read::<F, N>(qkv, place, part, table, sizes, parts);
    if place.head < sizes.heads {
        query[sizes.query(place, part)] = moved;
    } else {
        let slot = sizes.slot(bounds, place);
        if slot.taken {
            let head = place.head - sizes.heads;
            if head >= sizes.kv_heads {
                let head = value.head(place.batch, head - sizes.kv_heads);
                value.put::<F>(head, slot.at, part, moved, 1.0f32);
            } else {
                let head = key.head(place.batch, head);
                key.put::<F>(head, slot.at, part, moved, 1.0f32);
            }
        }
    }
}

/// The vector `part` of a head, rotated if it belongs to a query or a key.
#[cube]
pub(super) fn read<F: Float, N: Size>(
    qkv: &Array<Vector<F, N>>,
    place: Place,
    part: u32,
    table: &ComptimeOption<Table>,
    sizes: &Sizes,
    #[comptime] parts: u32,
) -> Vector<F, N> {
    let source = place.batch * sizes.qkv_batch + place.token * sizes.qkv_token + place.head * parts;
    let mut moved = qkv[(source + part) as usize];
    #[comptime]
    match table {
        ComptimeOption::Some(table) => {
            if place.head < sizes.heads + sizes.kv_heads {
                let row = place.batch * sizes.table_batch + place.token * sizes.table_token;
                moved = rotated::<F, N>(moved, qkv, source, part, table, row);
            }
        }
        ComptimeOption::None => {}
    }
    moved
}

/// The vector `part` of a head, rotated; `row` is where the angles of its token begin.
#[cube]
fn rotated<F: Float, N: Size>(
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
        match comptime!(table.layout) {
            RotaryLayout::Half => {
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
            RotaryLayout::Interleaved => {
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
