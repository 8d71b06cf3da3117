//! A team of units for each head, where keys, values or both are int8.

use cubecl::prelude::*;

use super::kernel::UNITS;
use super::place::{Place, Sizes, Slot};
use super::rotation::{Angles, Table};
use crate::cube::cached::{Cached, magnitude, scale_of};
use crate::cube::lanes::lanes_max;
use crate::cube::machine::Machine;

/// Units of a team without plane operations: they read each other's results one by one.
const LANES_WITHOUT_PLANES: u32 = 16;

/// What is compiled into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    pub units: u32,
    /// Units of a team, a power of two.
    pub lanes: u32,
    /// Vectors of a head.
    pub parts: u32,
    /// Heads of a token that a team moves.
    pub each: u32,
    pub planes: bool,
}

impl Tile {
    /// The tile for heads of `parts` vectors, `each` of them to a team.
    pub fn new(machine: &Machine, parts: usize, each: u32) -> Self {
        let units = machine.even_units(UNITS);
        let widest = if machine.plane_operations { machine.plane_size } else { units.min(LANES_WITHOUT_PLANES) };
        let lanes = (parts.next_power_of_two() as u32).min(widest);
        Self { units, lanes, parts: parts as u32, each, planes: machine.plane_operations }
    }

    /// Vectors of a head that a lane holds.
    pub fn per_lane(&self) -> usize {
        self.parts.div_ceil(self.lanes) as usize
    }

    /// Heads of a cube.
    pub fn teams(&self) -> u32 {
        self.units / self.lanes
    }
}

/// Moves a projection as `cache_write` does, where keys, values or both become int8.
///
/// Tile: `lanes` neighbouring units own `each` heads of one token, one after the other, with the same angles. Lane `l` reads its vectors
/// `l`, `l + lanes`, .. of a head once and keeps them in registers, until the team knows its largest magnitude; then each writes its own,
/// and the first the scale. The launch has a team for each few heads, in the order of `CUBE_POS`; teams after the last repeat it and
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
    let lane = UNIT_POS % tile.lanes;
    let at = CUBE_POS as u32 * comptime!(tile.teams()) + UNIT_POS / tile.lanes;
    let first = sizes.place(min(at, sizes.count - 1), tile.each);
    let all_heads = sizes.heads + 2 * sizes.kv_heads;
    let slot = sizes.slot(bounds, first);
    let source = sizes.source(first);

    let mut exchange = SharedMemory::<u32>::new(comptime!(tile.units as usize));
    let mut angles = Sequence::<Angles<N>>::new();
    #[unroll]
    for p in 0..per_lane {
        angles.push(Angles::<N>::new::<T>(table, sizes, first, lane + p as u32 * tile.lanes));
    }
    #[unroll]
    for h in 0..comptime!(tile.each as usize) {
        let head = first.head + h as u32;
        let mut moved = Array::<Vector<F, N>>::new(per_lane);
        let mut largest = 0u32.runtime();
        #[unroll]
        for p in 0..per_lane {
            let part = lane + p as u32 * tile.lanes;
            moved[p] = Vector::<F, N>::new(F::from_int(0));
            if part < tile.parts && head < all_heads {
                moved[p] = angles[p].read::<F, T>(
                    qkv,
                    table,
                    source + sizes.projected(head) * tile.parts,
                    part,
                    sizes.rotates(head),
                );
            }
            largest = max(largest, magnitude::<F, N>(moved[p]));
        }
        let scale = scale_of(lanes_max(largest, &mut exchange, tile.lanes, tile.planes));

        if at < sizes.count {
            let place = Place { batch: first.batch, token: first.token, head };
            put::<F, K, V, N>(&moved, query, key, value, place, slot, scale, lane, all_heads, sizes, tile);
        }
    }
}

/// The vectors of a lane to the place of their head, of `all_heads`: among the queries, or in the slot of the cache if there is one.
#[cube]
pub(super) fn put<F: Float, K: Numeric, V: Numeric, N: Size>(
    moved: &Array<Vector<F, N>>,
    query: &mut Array<Vector<F, N>>,
    key: &mut Cached<K, N>,
    value: &mut Cached<V, N>,
    place: Place,
    slot: Slot,
    scale: f32,
    lane: u32,
    all_heads: u32,
    sizes: &Sizes,
    #[comptime] tile: Tile,
) {
    if place.head < sizes.heads {
        #[unroll]
        for p in 0..comptime!(tile.per_lane()) {
            let part = lane + p as u32 * tile.lanes;
            if part < tile.parts {
                query[sizes.query(place, part)] = moved[p];
            }
        }
    } else if slot.taken && place.head < all_heads {
        let head = place.head - sizes.heads;
        if head >= sizes.kv_heads {
            let head = head - sizes.kv_heads;
            write::<F, V, N>(moved, value, place.batch, head, slot.at, scale, lane, tile);
        } else {
            write::<F, K, N>(moved, key, place.batch, head, slot.at, scale, lane, tile);
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
    scale: f32,
    lane: u32,
    #[comptime] tile: Tile,
) {
    let head = cached.head(batch, head);
    #[unroll]
    for p in 0..comptime!(tile.per_lane()) {
        let part = lane + p as u32 * tile.lanes;
        if part < tile.parts {
            cached.put::<F>(head, slot, part, moved[p], scale);
        }
    }
    if lane == 0 {
        cached.put_scale(head, slot, scale);
    }
}
