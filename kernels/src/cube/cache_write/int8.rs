//! A team of units for each head, where keys, values or both are int8.

use cubecl::prelude::*;

use super::kernel::UNITS;
use super::place::{Place, Sizes, Slot};
use super::rotation::{Angles, Share, Table, is_there, part_of, partner, rotate_rounded};
use crate::cube::cached::{Cached, Divisor, magnitude};
use crate::cube::lanes::lanes_max;
use crate::cube::machine::Machine;

/// Units of a team without plane operations: they read each other's results one by one.
const LANES_WITHOUT_PLANES: u32 = 16;

/// The vector `p` of those that a lane holds of a head; at least [`Share::parts`] if there is none.
#[cube]
pub(super) fn lane_part(lane: u32, p: u32, #[comptime] tile: Tile) -> u32 {
    let together = comptime!(tile.share.together());
    part_of(lane + p / together * tile.lanes, p % together, tile.whole(), tile.share)
}

/// Whether a vector from [`lane_part`] is there.
#[cube]
pub(super) fn lane_has(part: u32, #[comptime] tile: Tile) -> bool {
    is_there(part, tile.whole(), tile.share)
}

/// What is compiled into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    pub units: u32,
    /// Units of a team, a power of two.
    pub lanes: u32,
    pub share: Share,
    /// Heads of a token that a team moves.
    pub each: u32,
    pub planes: bool,
    /// Whether `fma` rounds once.
    pub fused: bool,
}

impl Tile {
    /// The tile for heads that are shared so, `each` of them to a team.
    pub fn new(machine: &Machine, share: Share, each: u32) -> Self {
        let units = machine.even_units(UNITS);
        let widest = if machine.plane_operations { machine.plane_size } else { units.min(LANES_WITHOUT_PLANES) };
        let lanes = share.units().next_power_of_two().min(widest);
        Self { units, lanes, share, each, planes: machine.plane_operations, fused: machine.fused }
    }

    /// Shares of a head that a lane has.
    pub fn shares(&self) -> u32 {
        self.share.units().div_ceil(self.lanes)
    }

    /// Whether every lane has all its shares.
    pub fn whole(&self) -> bool {
        self.shares() * self.lanes == self.share.units()
    }

    /// Vectors of a head that a lane holds.
    pub fn per_lane(&self) -> u32 {
        self.shares() * self.share.together()
    }

    /// Heads of a cube.
    pub fn teams(&self) -> u32 {
        self.units / self.lanes
    }
}

/// Moves a projection as `cache_write` does, where keys, values or both become int8.
///
/// Tile: `lanes` neighbouring units own `each` heads of one token, one after the other, with the same angles. Lane `l` reads its
/// [shares](Share) `l`, `l + lanes`, .. of a head once and keeps them in registers, until the team knows its largest magnitude; then each
/// writes its own, and the first the scale. The launch has a team for each few heads, in the order of `CUBE_POS`; teams after the last repeat it and
/// write nothing, since every unit must reach the exchange.
#[cube(launch_unchecked)]
pub(super) fn cache_write_int8<F: Float, K: Numeric, V: Numeric, N: Size, T: Size>(
    qkv: &Array<Vector<F, N>>,
    query: &mut Array<Vector<F, N>>,
    key: &mut Cached<K, N>,
    value: &mut Cached<V, N>,
    table: &ComptimeOption<Table<T>>,
    bounds: &ComptimeOption<Array<u32>>,
    sizes: &Sizes,
    #[comptime] tile: Tile,
    #[define(F)] _elements: StorageType,
    #[define(K)] _key_type: StorageType,
    #[define(V)] _value_type: StorageType,
) {
    let per_lane = comptime!(tile.per_lane());
    let (parts, together) = comptime!((tile.share.parts, tile.share.together()));
    let lane = UNIT_POS % tile.lanes;
    let at = CUBE_POS as u32 * comptime!(tile.teams()) + UNIT_POS / tile.lanes;
    let first = sizes.place(min(at, sizes.count - 1), tile.each);
    let all_heads = sizes.heads + 2 * sizes.kv_heads;
    let slot = sizes.slot(bounds, first);
    let source = sizes.source(first);

    let mut exchange = SharedMemory::<u32>::new(comptime!(tile.units as usize));
    let mut angles = Sequence::<Angles<N>>::new();
    #[unroll]
    for s in 0..tile.shares() {
        angles.push(Angles::<N>::new::<T>(table, sizes, first, lane_part(lane, s * together, tile)));
    }
    #[unroll]
    for h in 0..comptime!(tile.each as usize) {
        let head = first.head + h as u32;
        let from = source + sizes.projected(head) * parts;
        let mut moved = Array::<Vector<F, N>>::new(comptime!(per_lane as usize));
        let mut partners = Array::<Vector<F, N>>::new(comptime!(per_lane as usize));
        #[unroll]
        for p in 0..per_lane {
            let part = lane_part(lane, p, tile);
            moved[p as usize] = Vector::<F, N>::new(F::from_int(0));
            partners[p as usize] = Vector::<F, N>::new(F::from_int(0));
            if lane_has(part, tile) && head < all_heads {
                moved[p as usize] = qkv[(from + part) as usize];
                if comptime!(tile.share.apart) {
                    partners[p as usize] = qkv[(from + partner::<T>(table, part)) as usize];
                }
            }
        }
        if comptime!(table.is_some()) && sizes.rotates(head) {
            #[unroll]
            for s in 0..comptime!(tile.shares() as usize) {
                let begin = comptime!(s * together as usize);
                let own = lane_part(lane, begin as u32, tile);
                rotate_rounded::<F, N, T>(&angles[s], table, &mut moved, &partners, begin, own, tile.share);
            }
        }
        let mut largest = 0u32.runtime();
        #[unroll]
        for p in 0..per_lane {
            largest = max(largest, magnitude::<F, N>(moved[p as usize]));
        }
        let largest = lanes_max(largest, &mut exchange, tile.lanes, tile.planes);

        if at < sizes.count {
            let place = Place { batch: first.batch, token: first.token, head };
            put::<F, K, V, N>(&moved, query, key, value, place, slot, largest, lane, all_heads, sizes, tile);
        }
    }
}

/// The vectors of a lane to the place of their head, of `all_heads`: among the queries, or in the slot of the cache if there is one. The largest
/// magnitude of the head has the bits `largest`, where elements may be int8.
#[cube]
pub(super) fn put<F: Float, K: Numeric, V: Numeric, N: Size>(
    moved: &Array<Vector<F, N>>,
    query: &mut Array<Vector<F, N>>,
    key: &mut Cached<K, N>,
    value: &mut Cached<V, N>,
    place: Place,
    slot: Slot,
    largest: u32,
    lane: u32,
    all_heads: u32,
    sizes: &Sizes,
    #[comptime] tile: Tile,
) {
    if place.head < sizes.heads {
        let to = sizes.query(place);
        #[unroll]
        for p in 0..tile.per_lane() {
            let part = lane_part(lane, p, tile);
            if lane_has(part, tile) {
                query[(to + part) as usize] = moved[p as usize];
            }
        }
    } else if slot.taken && place.head < all_heads {
        let head = place.head - sizes.heads;
        if head >= sizes.kv_heads {
            let head = head - sizes.kv_heads;
            write::<F, V, N>(moved, value, place.batch, head, slot.at, largest, lane, tile);
        } else {
            write::<F, K, N>(moved, key, place.batch, head, slot.at, largest, lane, tile);
        }
    }
}

/// The vectors of a lane, and the scale.
#[cube]
fn write<F: Float, C: Numeric, N: Size>(
    moved: &Array<Vector<F, N>>,
    cached: &mut Cached<C, N>,
    batch: u32,
    head: u32,
    slot: u32,
    largest: u32,
    lane: u32,
    #[comptime] tile: Tile,
) {
    let head = cached.head(batch, head);
    let divisor = Divisor::new(largest, tile.fused);
    #[unroll]
    for p in 0..tile.per_lane() {
        let part = lane_part(lane, p, tile);
        if lane_has(part, tile) {
            cached.put_divided::<F>(head, slot, part, moved[p as usize], divisor);
        }
    }
    if lane == 0 {
        cached.put_scale(head, slot, divisor.scale);
    }
}
