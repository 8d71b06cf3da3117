//! Keys and values in floats.

use cubecl::prelude::*;

use super::place::{Place, Sizes};
use super::rotation::{Angles, Share, Table, is_there, part_of, partner, rotate_rounded};
use crate::cube::cached::{Cached, CachedHead};

/// Units of a cube.
pub(super) const UNITS: u32 = 256;

/// A unit moves its [share](Share) of `each` heads of one token, with the same angles; neighbouring units move neighbouring vectors of the
/// projection. Nothing is exchanged: a unit has both features of a pair, or reads the other one again.
#[cube(launch_unchecked)]
pub(super) fn cache_write<F: Float, N: Size, T: Size>(
    qkv: &Array<Vector<F, N>>,
    query: &mut Array<Vector<F, N>>,
    key: &mut Cached<F, N>,
    value: &mut Cached<F, N>,
    table: &ComptimeOption<Table<T>>,
    bounds: &ComptimeOption<Array<u32>>,
    sizes: &Sizes,
    #[comptime] share: Share,
    #[comptime] each: u32,
    #[define(F)] _elements: StorageType,
) {
    let at = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * CUBE_DIM + UNIT_POS;
    if at >= sizes.count {
        terminate!();
    }
    let (parts, units, together) = comptime!((share.parts, share.units(), share.together()));
    let unit = at % units;
    let first = sizes.place(at / units, each);
    let slot = sizes.slot(bounds, first);
    let source = sizes.source(first);
    let all_heads = sizes.heads + 2 * sizes.kv_heads;
    let own = part_of(unit, 0u32, true, share);
    let angles = Angles::<N>::new::<T>(table, sizes, first, own);
    // All loads first, so that they are in flight together.
    let mut moved = Array::<Vector<F, N>>::new(comptime!((each * together) as usize));
    let mut partners = Array::<Vector<F, N>>::new(comptime!((each * together) as usize));
    #[unroll]
    for h in 0..each {
        let head = first.head + h;
        let from = source + sizes.projected(head) * parts;
        #[unroll]
        for which in 0..together {
            let to = comptime!((h * together + which) as usize);
            let part = part_of(unit, which, true, share);
            moved[to] = Vector::<F, N>::new(F::from_int(0));
            partners[to] = Vector::<F, N>::new(F::from_int(0));
            if head < all_heads && is_there(part, true, share) {
                moved[to] = qkv[(from + part) as usize];
                if comptime!(share.apart) {
                    partners[to] = qkv[(from + partner::<T>(table, part)) as usize];
                }
            }
        }
    }
    #[unroll]
    for h in 0..each {
        if comptime!(table.is_some()) && sizes.rotates(first.head + h) {
            rotate_rounded::<F, N, T>(
                &angles,
                table,
                &mut moved,
                &partners,
                comptime!((h * together) as usize),
                own,
                share,
            );
        }
    }
    #[unroll]
    for h in 0..each {
        let place = Place { batch: first.batch, token: first.token, head: first.head + h };
        let from = comptime!((h * together) as usize);
        if place.head < sizes.heads {
            let to = sizes.query(place);
            #[unroll]
            for which in 0..together {
                let part = part_of(unit, which, true, share);
                if is_there(part, true, share) {
                    query[(to + part) as usize] = moved[from + which as usize];
                }
            }
        } else if slot.taken {
            let head = place.head - sizes.heads;
            if head < sizes.kv_heads {
                put::<F, N>(&moved, from, key, key.head(place.batch, head), slot.at, unit, share);
            } else if head < 2 * sizes.kv_heads {
                let head = value.head(place.batch, head - sizes.kv_heads);
                put::<F, N>(&moved, from, value, head, slot.at, unit, share);
            }
        }
    }
}

/// The vectors of a unit, from `from` on, to the slot of a head.
#[cube]
fn put<F: Float, N: Size>(
    moved: &Array<Vector<F, N>>,
    from: usize,
    cached: &mut Cached<F, N>,
    head: CachedHead,
    slot: u32,
    unit: u32,
    #[comptime] share: Share,
) {
    #[unroll]
    for which in 0..share.together() {
        let part = part_of(unit, which, true, share);
        if is_there(part, true, share) {
            cached.put::<F>(head, slot, part, moved[from + which as usize]);
        }
    }
}
