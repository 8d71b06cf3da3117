//! Keys and values in floats.

use cubecl::prelude::*;

use super::place::{Place, Sizes};
use super::rotation::{Angles, Table};
use crate::cube::cached::Cached;

/// Units of a cube.
pub(super) const UNITS: u32 = 256;

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
            moved[h] =
                angles.read::<F, T>(qkv, table, source + sizes.projected(head) * parts, part, sizes.rotates(head));
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
