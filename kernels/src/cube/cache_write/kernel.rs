//! Keys and values in floats; and what both kernels know of a projection.

use cubecl::prelude::*;

use super::rotation::{Angles, Table};
use crate::cube::cached::Cached;
use crate::cube::masks::RowStrides;
use crate::cube::tensors::HeadStrides;

/// Units of a cube.
pub(super) const UNITS: u32 = 256;

/// Scalar sizes. Strides count vectors, those of the table elements.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Sizes {
    /// What the kernel counts: vectors of a few heads, or few heads.
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
    /// The first head at this place, where each place has `each` heads of a token.
    pub fn place(&self, at: u32, #[comptime] each: u32) -> Place {
        let places = (self.heads + 2 * self.kv_heads).div_ceil(each);
        let token = at / places;
        Place { batch: token / self.tokens, token: token % self.tokens, head: at % places * each }
    }

    /// Where the projection of a token begins.
    pub fn source(&self, place: Place) -> u32 {
        place.batch * self.qkv_batch + place.token * self.qkv_token
    }

    /// Whether the head is one of those that are rotated: queries and keys.
    pub fn rotates(&self, head: u32) -> bool {
        head < self.heads + self.kv_heads
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

/// A unit moves the same vector of `each` heads of one token, with the same angles; neighbouring units move neighbouring vectors of the
/// projection. In a half-split pair, a unit reads both sides and writes its own, so nothing is exchanged; the second read is a cache
/// hit.
#[cube(launch_unchecked)]
pub(super) fn cache_write<F: Float, N: Size, T: Size>(
    qkv: &Array<Vector<F, N>>,
    query: &mut Array<Vector<F, N>>,
    key: &mut Cached<F, N>,
    value: &mut Cached<F, N>,
    table: &ComptimeOption<Table<T>>,
    bounds: &ComptimeOption<Array<u32>>,
    sizes: &Sizes,
    #[comptime] parts: u32,
    #[comptime] each: u32,
    #[define(F)] _elements: StorageType,
) {
    let at = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * CUBE_DIM + UNIT_POS;
    if at >= sizes.count {
        terminate!();
    }
    let part = at % parts;
    let first = sizes.place(at / parts, each);
    let slot = sizes.slot(bounds, first);
    let source = sizes.source(first);
    let angles = Angles::<N>::new::<T>(table, sizes, first, part);
    // All loads first, so that they are in flight together.
    let mut moved = Array::<Vector<F, N>>::new(comptime!(each as usize));
    #[unroll]
    for h in 0..comptime!(each as usize) {
        let head = first.head + h as u32;
        moved[h] = Vector::<F, N>::new(F::from_int(0));
        if head < sizes.heads + 2 * sizes.kv_heads {
            moved[h] = angles.read::<F, T>(qkv, table, source + head * parts, part, sizes.rotates(head));
        }
    }
    #[unroll]
    for h in 0..comptime!(each as usize) {
        let place = Place { batch: first.batch, token: first.token, head: first.head + h as u32 };
        if place.head < sizes.heads {
            query[sizes.query(place, part)] = moved[h];
        } else if slot.taken {
            let head = place.head - sizes.heads;
            if head < sizes.kv_heads {
                let head = key.head(place.batch, head);
                key.put::<F>(head, slot.at, part, moved[h], 1.0f32);
            } else if head < 2 * sizes.kv_heads {
                let head = value.head(place.batch, head - sizes.kv_heads);
                value.put::<F>(head, slot.at, part, moved[h], 1.0f32);
            }
        }
    }
}
