//! The contents of shared memory, and how they are copied there.

use cubecl::prelude::barrier::{copy_async, copy_async_checked};
use cubecl::prelude::*;

use super::tile::{Sizes, Tile};
use crate::cube::cached::Cached;
use crate::cube::fragment::zeros;
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
    let vectors = comptime!(tile.vectors());
    let all_rows = sizes.group * sizes.tokens;
    for at in range_stepped(UNIT_POS, comptime!(tile.rows() * vectors), comptime!(tile.units())) {
        let row = first_row + at / vectors;
        let mut part = zeros::<F, N>();
        if row < all_rows {
            let head = CUBE_POS_Y * sizes.group + row % sizes.group;
            let token = row / sizes.group;
            let from = sizes.query.head(CUBE_POS_Z, head) + token * sizes.query.token + at % vectors;
            part = query[from as usize];
        }
        let place = comptime!(tile.query_origin()) + at / vectors * comptime!(tile.layout().width) + at % vectors;
        stage[place as usize] = part;
    }
}

/// Where a key of the step lies: in its place, or such that a unit whose fragments have columns `2t` and `2t + 1` of two eights
/// has keys `4t` to `4t + 3` of 16. The place of a sum of numbers without common bits is the sum of their places.
#[cube]
fn row_of(key: u32, #[comptime] tile: Tile) -> u32 {
    if comptime!(tile.quads) { key / 16 * 16 + key / 2 % 2 * 8 + key / 4 % 4 * 2 + key % 2 } else { key }
}

/// A tile of keys and one of values, to the vector `origin`; zeros for keys that no query sees, which are not read.
///
/// If `inside`, every key may be read.
#[cube]
pub(super) fn stage_keys<F: Float, K: Numeric, V: Numeric, M: Int, E: Float, N: Size>(
    key: &Cached<K, N>,
    value: &Cached<V, N>,
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
    let width = comptime!(tile.layout().width);
    let values = comptime!(tile.keys * width) as usize;
    let key_head = key.head(CUBE_POS_Z, CUBE_POS_Y);
    let value_head = value.head(CUBE_POS_Z, CUBE_POS_Y);
    // Addresses that change from step to step, and elements of int8 in flight, together take too many registers.
    let unroll = comptime!(!tile.emulate && (tile.even() || !tile.int8));
    if comptime!(tile.even()) {
        let rows = comptime!(units / vectors);
        let (row, part) = (UNIT_POS / vectors, UNIT_POS % vectors);
        let to = origin + (row_of(row, tile) * width + part) as usize;
        let mut slot = first_key + row;
        let mut key_at = key.place(key_head, slot, part);
        let mut value_at = value.place(value_head, slot, part);
        #[unroll(unroll)]
        for step in 0..comptime!(total.div_ceil(units)) {
            if comptime!(total.is_multiple_of(units)) || row + step * rows < tile.keys {
                let to = to + (row_of(step * rows, tile) * width) as usize;
                let keep = keeps::<M, E>(masks, slot, end, inside);
                copy::<F, K, N>(key, key_at, key.scale_place(key_head, slot), stage, to, keep, inside, tile);
                let to = to + values;
                copy::<F, V, N>(value, value_at, value.scale_place(value_head, slot), stage, to, keep, inside, tile);
            }
            slot += rows;
            key_at += rows * key.stride();
            value_at += rows * value.stride();
        }
    } else {
        #[unroll(unroll)]
        for step in 0..comptime!(total.div_ceil(units)) {
            let at = UNIT_POS + step * units;
            let (row, part) = (at / vectors, at % vectors);
            let slot = first_key + row;
            let to = origin + (row_of(row, tile) * width + part) as usize;
            if comptime!(total.is_multiple_of(units)) || row < tile.keys {
                let keep = keeps::<M, E>(masks, slot, end, inside);
                let key_at = key.place(key_head, slot, part);
                copy::<F, K, N>(key, key_at, key.scale_place(key_head, slot), stage, to, keep, inside, tile);
                let to = to + values;
                let value_at = value.place(value_head, slot, part);
                copy::<F, V, N>(value, value_at, value.scale_place(value_head, slot), stage, to, keep, inside, tile);
            }
        }
    }
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
fn copy<F: Float, C: Numeric, N: Size>(
    source: &Cached<C, N>,
    at: u32,
    scale_at: u32,
    stage: &mut SharedMemory<Vector<F, N>>,
    to: usize,
    keep: bool,
    #[comptime] inside: bool,
    #[comptime] tile: Tile,
) {
    if comptime!(tile.asynchronous && inside) {
        copy_async(&source.floats::<F>(at, 1u32), &mut stage.slice_mut(to, to + 1), 8u32);
    } else if comptime!(tile.asynchronous) {
        let vectors = select(keep, 1u32, 0u32);
        copy_async_checked(&source.floats::<F>(at, vectors), &mut stage.slice_mut(to, to + 1), 8u32);
    } else {
        let mut features = zeros::<F, N>();
        if keep {
            features = source.features_at::<F>(at, scale_at);
        }
        stage[to] = features;
    }
}
