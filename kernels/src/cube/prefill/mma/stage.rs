//! The contents of shared memory, and how they are copied there.

use cubecl::prelude::barrier::{copy_async, copy_async_checked};
use cubecl::prelude::*;

use super::tile::{Scoring, Sizes, Tile, tile_and_head};
use crate::cube::cached::Cached;
use crate::cube::fragment::{place, zeros};
use crate::cube::masks::Masks;

/// The queries of the cube's rows; zeros after the last row.
#[cube]
pub(super) fn stage_queries<F: Float, N: Size>(
    query: &Array<Vector<F, N>>,
    stage: &mut SharedMemory<Vector<F, N>>,
    first_row: u32,
    sizes: &Sizes,
    #[comptime] tile: Tile,
) {
    let units = comptime!(tile.units());
    let total = comptime!(tile.rows() * tile.vectors());
    let ahead = comptime!(tile.ahead());
    let even = comptime!(total.is_multiple_of(units * ahead));
    let all_rows = sizes.group * sizes.tokens;
    let (_, kv_head) = tile_and_head(tile);
    let origin = comptime!(tile.query_origin());
    let mut parts = Array::<Vector<F, N>>::new(comptime!(ahead as usize));
    #[unroll(!tile.emulate)]
    for round in 0..comptime!(total.div_ceil(units * ahead)) {
        #[unroll]
        for a in 0..ahead {
            let (own_row, part) = row_and_part((round * ahead + a) * units, tile);
            let row = first_row + own_row;
            let (token, member) = sizes.by_group.div_mod(row);
            let head = kv_head * sizes.group + member;
            let from = sizes.query.head(CUBE_POS_Z, head) + token * sizes.query.token + part;
            let in_tile = is_in_tile(own_row, even, tile);
            let there = row < all_rows && in_tile;
            if comptime!(tile.asynchronous) {
                if in_tile {
                    let to = (origin + place(own_row, part, tile.layout())) as usize;
                    let slice = query.slice(from as usize, (from + select(there, 1u32, 0u32)) as usize);
                    copy_async_checked(&slice, &mut stage.slice_mut(to, to + 1), 8u32);
                }
            } else {
                let mut part = zeros::<F, N>();
                if there {
                    part = query[from as usize];
                }
                parts[a as usize] = part;
            }
        }
        if comptime!(!tile.asynchronous) {
            #[unroll]
            for a in 0..ahead {
                let (own_row, part) = row_and_part((round * ahead + a) * units, tile);
                if is_in_tile(own_row, even, tile) {
                    stage[(origin + place(own_row, part, tile.layout())) as usize] = parts[a as usize];
                }
            }
        }
    }
}

/// The row of the queries, and the vector of it, that this unit copies after the cube copied `before` vectors.
#[cube]
fn row_and_part(before: u32, #[comptime] tile: Tile) -> (u32, u32) {
    let vectors = comptime!(tile.vectors());
    if comptime!(tile.units().is_multiple_of(vectors)) {
        // The part is always the same, and rows are constants apart.
        (UNIT_POS / vectors + before / vectors, UNIT_POS % vectors)
    } else {
        let at = UNIT_POS + before;
        (at / vectors, at % vectors)
    }
}

/// Whether the tile has this row. It has all of them if the cube copies it `even`ly.
#[cube]
fn is_in_tile(row: u32, #[comptime] even: bool, #[comptime] tile: Tile) -> bool {
    if comptime!(even) { true.runtime() } else { row < comptime!(tile.rows()) }
}

/// Where a key of the step lies: in its place, or such that a unit whose fragments have columns `2t` and `2t + 1` of two eights
/// has keys `4t` to `4t + 3` of 16. The place of a sum of numbers without common bits is the sum of their places.
#[cube]
fn row_of(key: u32, #[comptime] tile: Tile) -> u32 {
    if comptime!(tile.quads) { key / 16 * 16 + key / 2 % 2 * 8 + key / 4 % 4 * 2 + key % 2 } else { key }
}

/// A tile of keys and one of values, to the vector `origin`; zeros for keys that no query sees, which are not read.
#[cube]
pub(super) fn stage_step<F: Float, K: Numeric, V: Numeric, M: Int, E: Float, N: Size, KN: Size, VN: Size>(
    key: &Cached<K, KN>,
    value: &Cached<V, VN>,
    masks: &Masks<M, E>,
    stage: &mut SharedMemory<Vector<F, N>>,
    origin: usize,
    first_key: u32,
    end: u32,
    #[comptime] tile: Tile,
) {
    if comptime!(tile.asynchronous) {
        copy_tile::<F, K, M, E, N, KN>(key, masks, stage, origin, first_key, end, tile);
        let origin = origin + comptime!(tile.keys_vectors() as usize);
        copy_tile::<F, V, M, E, N, VN>(value, masks, stage, origin, first_key, end, tile);
    } else {
        load_tiles::<F, K, V, M, E, N, KN, VN>(key, value, masks, stage, origin, first_key, end, tile);
    }
}

/// Begins the asynchronous copy of a tile of keys or of values.
#[cube]
fn copy_tile<F: Float, C: Numeric, M: Int, E: Float, N: Size, S: Size>(
    source: &Cached<C, S>,
    masks: &Masks<M, E>,
    stage: &mut SharedMemory<Vector<F, N>>,
    origin: usize,
    first_key: u32,
    end: u32,
    #[comptime] tile: Tile,
) {
    if comptime!(matches!(tile.scoring, Scoring::Masked { interior: false })) {
        copy_rows::<F, C, M, E, N, S>(source, masks, stage, origin, first_key, end, false, tile);
    } else if first_key + tile.keys <= end {
        copy_rows::<F, C, M, E, N, S>(source, masks, stage, origin, first_key, end, true, tile);
    } else {
        copy_rows::<F, C, M, E, N, S>(source, masks, stage, origin, first_key, end, false, tile);
    }
}

/// That, for a tile whose keys may all be read if `inside`.
#[cube]
fn copy_rows<F: Float, C: Numeric, M: Int, E: Float, N: Size, S: Size>(
    source: &Cached<C, S>,
    masks: &Masks<M, E>,
    stage: &mut SharedMemory<Vector<F, N>>,
    origin: usize,
    first_key: u32,
    end: u32,
    #[comptime] inside: bool,
    #[comptime] tile: Tile,
) {
    let vectors = comptime!(tile.vectors());
    let units = comptime!(tile.units());
    let total = comptime!(tile.keys * vectors);
    let (_, kv_head) = tile_and_head(tile);
    let head = source.head(CUBE_POS_Z, kv_head);
    if comptime!(tile.even()) {
        let row_units = comptime!(tile.row_units());
        let rows = comptime!(units / row_units);
        let (row, part) = (UNIT_POS / row_units, UNIT_POS % row_units);
        let first = origin + place(row_of(row, tile), part, tile.layout()) as usize;
        let mut slot = first_key + row;
        let mut at = source.place(head, slot, part);
        #[unroll]
        for step in 0..comptime!(tile.keys.div_ceil(rows)) {
            if is_there(row + step * rows, part, rows, tile) {
                let to = step_place(first, origin, row, step * rows, part, tile);
                copy::<F, C, N, S>(source, at, stage, to, keeps::<M, E>(masks, slot, end, inside), inside);
            }
            slot += rows;
            at += rows * source.stride();
        }
    } else {
        #[unroll]
        for step in 0..comptime!(total.div_ceil(units)) {
            let at = UNIT_POS + step * units;
            let (row, part) = (at / vectors, at % vectors);
            let slot = first_key + row;
            if comptime!(total.is_multiple_of(units)) || row < tile.keys {
                let to = origin + place(row_of(row, tile), part, tile.layout()) as usize;
                let keep = keeps::<M, E>(masks, slot, end, inside);
                copy::<F, C, N, S>(source, source.place(head, slot, part), stage, to, keep, inside);
            }
        }
    }
}

/// [`stage_step`], through registers.
#[cube]
fn load_tiles<F: Float, K: Numeric, V: Numeric, M: Int, E: Float, N: Size, KN: Size, VN: Size>(
    key: &Cached<K, KN>,
    value: &Cached<V, VN>,
    masks: &Masks<M, E>,
    stage: &mut SharedMemory<Vector<F, N>>,
    origin: usize,
    first_key: u32,
    end: u32,
    #[comptime] tile: Tile,
) {
    let vectors = comptime!(tile.vectors());
    let units = comptime!(tile.units());
    let total = comptime!(tile.keys * vectors);
    let values = comptime!(tile.keys_vectors() as usize);
    let (_, kv_head) = tile_and_head(tile);
    let key_head = key.head(CUBE_POS_Z, kv_head);
    let value_head = value.head(CUBE_POS_Z, kv_head);
    // Addresses that change from step to step, and elements of int8 in flight, together take too many registers.
    let unroll = comptime!(!tile.emulate && (tile.even() || !tile.int8));
    if comptime!(tile.even()) {
        let row_units = comptime!(tile.row_units());
        let rows = comptime!(units / row_units);
        let ahead = comptime!(tile.ahead());
        let (row, part) = (UNIT_POS / row_units, UNIT_POS % row_units);
        let first = origin + place(row_of(row, tile), part, tile.layout()) as usize;
        let mut slot = first_key + row;
        let mut key_at = key.place(key_head, slot, part);
        let mut value_at = value.place(value_head, slot, part);
        let mut loaded = Loaded::<K, V, KN, VN>::new(ahead);
        #[unroll(unroll)]
        for round in 0..comptime!(tile.keys.div_ceil(rows * ahead)) {
            #[unroll]
            for a in 0..ahead {
                let step = round * ahead + a;
                if is_there(row + step * rows, part, comptime!(rows * ahead), tile) {
                    let keep = keeps::<M, E>(masks, slot, end, false);
                    let key_from = Places { element: key_at, scale: key.scale_place(key_head, slot) };
                    let value_from = Places { element: value_at, scale: value.scale_place(value_head, slot) };
                    loaded.load(key, value, key_from, value_from, keep, a);
                }
                slot += rows;
                key_at += rows * key.stride();
                value_at += rows * value.stride();
            }
            #[unroll]
            for a in 0..ahead {
                let step = round * ahead + a;
                if is_there(row + step * rows, part, comptime!(rows * ahead), tile) {
                    let to = step_place(first, origin, row, step * rows, part, tile);
                    loaded.store::<F, N>(key, value, stage, to, to + values, a);
                }
            }
        }
    } else {
        let mut loaded = Loaded::<K, V, KN, VN>::new(1u32);
        #[unroll(unroll)]
        for step in 0..comptime!(total.div_ceil(units)) {
            let at = UNIT_POS + step * units;
            let (row, part) = (at / vectors, at % vectors);
            let slot = first_key + row;
            if comptime!(total.is_multiple_of(units)) || row < tile.keys {
                let to = origin + place(row_of(row, tile), part, tile.layout()) as usize;
                let keep = keeps::<M, E>(masks, slot, end, false);
                let key_from =
                    Places { element: key.place(key_head, slot, part), scale: key.scale_place(key_head, slot) };
                let value_from =
                    Places { element: value.place(value_head, slot, part), scale: value.scale_place(value_head, slot) };
                loaded.load(key, value, key_from, value_from, keep, 0u32);
                loaded.store::<F, N>(key, value, stage, to, to + values, 0u32);
            }
        }
    }
}

/// Where part `part` of row `row + rows` goes; row `row` has it at `first`, and `rows` is a multiple of those that all units copy at
/// once. From few such places there are constant distances to all others.
#[cube]
fn step_place(first: usize, origin: usize, row: u32, rows: u32, part: u32, #[comptime] tile: Tile) -> usize {
    // Rows are swizzled alike if so many are between them.
    let period = if tile.quads { 16u32 } else { 8 };
    let beyond = rows % period;
    let mut near = first;
    if comptime!(!(tile.units() / tile.row_units()).is_multiple_of(period)) {
        near = origin + place(row_of(row + beyond, tile), part, tile.layout()) as usize;
    }
    near + ((rows - beyond) * comptime!(tile.layout().width)) as usize
}

/// Whether a tile has part `part` of row `row`, where all units together come to `rows` rows at a time.
#[cube]
fn is_there(row: u32, part: u32, #[comptime] rows: u32, #[comptime] tile: Tile) -> bool {
    let mut there = true.runtime();
    if comptime!(!tile.keys.is_multiple_of(rows)) {
        there = row < tile.keys;
    }
    if comptime!(tile.row_units() > tile.vectors()) {
        there = there && part < comptime!(tile.vectors());
    }
    there
}

/// Whether a query may see a key.
#[cube]
fn keeps<M: Int, E: Float>(masks: &Masks<M, E>, key: u32, end: u32, #[comptime] inside: bool) -> bool {
    let mut keep = true.runtime();
    if comptime!(!inside) {
        keep = key < end;
        if keep {
            keep = !masks.hides_key(CUBE_POS_Z, key);
        }
    }
    keep
}

/// One vector, or zeros, and then nothing is read.
#[cube]
fn copy<F: Float, C: Numeric, N: Size, S: Size>(
    source: &Cached<C, S>,
    at: u32,
    stage: &mut SharedMemory<Vector<F, N>>,
    to: usize,
    keep: bool,
    #[comptime] inside: bool,
) {
    if comptime!(inside) {
        copy_async(&source.floats::<F, N>(at, 1u32), &mut stage.slice_mut(to, to + 1), 8u32);
    } else {
        let vectors = select(keep, 1u32, 0u32);
        copy_async_checked(&source.floats::<F, N>(at, vectors), &mut stage.slice_mut(to, to + 1), 8u32);
    }
}

/// The indices of a vector and of its scale.
#[derive(CubeType, Clone, Copy)]
struct Places {
    element: u32,
    scale: u32,
}

/// Keys and values on their way to shared memory: several loads are in flight together.
#[derive(CubeType)]
struct Loaded<K: Numeric, V: Numeric, KN: Size, VN: Size> {
    keys: Array<Vector<K, KN>>,
    values: Array<Vector<V, VN>>,
    key_scales: Array<f32>,
    value_scales: Array<f32>,
}

#[cube]
impl<K: Numeric, V: Numeric, KN: Size, VN: Size> Loaded<K, V, KN, VN> {
    fn new(#[comptime] ahead: u32) -> Self {
        let ahead = comptime!(ahead as usize);
        Loaded::<K, V, KN, VN> {
            keys: Array::new(ahead),
            values: Array::new(ahead),
            key_scales: Array::new(ahead),
            value_scales: Array::new(ahead),
        }
    }

    /// Load `a`: a vector of keys and one of values with their scales, or zeros, and then nothing is read.
    fn load(
        &mut self,
        key: &Cached<K, KN>,
        value: &Cached<V, VN>,
        key_from: Places,
        value_from: Places,
        keep: bool,
        a: u32,
    ) {
        let a = a as usize;
        self.keys[a] = Vector::<K, KN>::new(K::from_int(0));
        self.values[a] = Vector::<V, VN>::new(V::from_int(0));
        self.key_scales[a] = 0.0f32;
        self.value_scales[a] = 0.0f32;
        if keep {
            self.keys[a] = key.at(key_from.element);
            self.values[a] = value.at(value_from.element);
            self.key_scales[a] = key.scale_at(key_from.scale);
            self.value_scales[a] = value.scale_at(value_from.scale);
        }
    }

    /// Writes load `a`, times its scales.
    fn store<F: Float, N: Size>(
        &self,
        key: &Cached<K, KN>,
        value: &Cached<V, VN>,
        stage: &mut SharedMemory<Vector<F, N>>,
        key_to: usize,
        value_to: usize,
        a: u32,
    ) {
        let a = a as usize;
        stage[key_to] = key.features::<F, N>(self.keys[a], self.key_scales[a]);
        stage[value_to] = value.features::<F, N>(self.values[a], self.value_scales[a]);
    }
}
