//! The contents of shared memory, and how they are copied there.

use cubecl::prelude::barrier::copy_async_checked;
use cubecl::prelude::*;

use super::tile::{Sizes, Tile};
use crate::cube::cached::{Cached, CachedHead};
use crate::cube::masks::Masks;

/// Zeros after the features of every row: the depth of a product is a multiple of 16.
#[cube]
pub(super) fn pad<F: Float, N: Size>(stage: &mut SharedMemory<Vector<F, N>>, #[comptime] tile: Tile) {
    let vectors = comptime!(tile.vectors());
    let padding = comptime!(tile.padded() / tile.vector - tile.vectors());
    if comptime!(padding > 0) {
        let total = comptime!(tile.stage_rows() * padding);
        for at in range_stepped(UNIT_POS, total, comptime!(tile.units())) {
            let place = at / padding * comptime!(tile.layout().width) + vectors + at % padding;
            stage[place as usize] = Vector::<F, N>::new(F::from_int(0));
        }
    }
}

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
        let mut part = Vector::<F, N>::new(F::from_int(0));
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

/// A tile of keys and one of values, to the vector `origin`; zeros for keys that no query sees, which are not read.
#[cube]
pub(super) fn stage_keys<F: Float, K: Numeric, V: Numeric, M: Int, E: Float, N: Size>(
    key: &Cached<K, N>,
    value: &Cached<V, N>,
    masks: &Masks<M, E>,
    stage: &mut SharedMemory<Vector<F, N>>,
    origin: u32,
    first_key: u32,
    end: u32,
    #[comptime] tile: Tile,
) {
    let vectors = comptime!(tile.vectors());
    let units = comptime!(tile.units());
    let total = comptime!(tile.keys * vectors);
    let width = comptime!(tile.layout().width);
    let key_head = key.head(CUBE_POS_Z, CUBE_POS_Y);
    let value_head = value.head(CUBE_POS_Z, CUBE_POS_Y);
    // Addresses that change from step to step, and elements of int8 in flight, together take too many registers.
    let unroll = comptime!(!tile.emulate && (tile.even() || !tile.int8));
    #[unroll(unroll)]
    for step in 0..comptime!(total.div_ceil(units)) {
        // Written so that the compiler sees what does not change from step to step.
        let (row, part) = if comptime!(tile.even()) {
            (UNIT_POS / vectors + step * comptime!(units / vectors), UNIT_POS % vectors)
        } else {
            let at = UNIT_POS + step * units;
            (at / vectors, at % vectors)
        };
        let at = first_key + row;
        let to = origin + row * width + part;
        if comptime!(total.is_multiple_of(units)) || row < tile.keys {
            let keep = keeps::<M, E>(masks, at, end);
            copy::<F, K, N>(key, key_head, at, part, stage, to, keep, tile.asynchronous);
            let to = to + comptime!(tile.keys * width);
            copy::<F, V, N>(value, value_head, at, part, stage, to, keep, tile.asynchronous);
        }
    }
}

/// Whether a query may see a key.
#[cube]
fn keeps<M: Int, E: Float>(masks: &Masks<M, E>, key: u32, end: u32) -> bool {
    let mut keep = key < end;
    if keep {
        keep = !masks.hides_key(CUBE_POS_Z, key);
    }
    keep
}

/// One vector, or zeros, and then nothing is read.
#[cube]
fn copy<F: Float, C: Numeric, N: Size>(
    source: &Cached<C, N>,
    head: CachedHead,
    slot: u32,
    part: u32,
    stage: &mut SharedMemory<Vector<F, N>>,
    to: u32,
    keep: bool,
    #[comptime] asynchronous: bool,
) {
    if comptime!(asynchronous) {
        copy_async_checked(
            &source.floats::<F>(head, slot, part, select(keep, 1u32, 0u32)),
            &mut stage.slice_mut(to as usize, (to + 1) as usize),
            8u32,
        );
    } else {
        let mut features = Vector::<F, N>::new(F::from_int(0));
        if keep {
            features = source.features::<F>(head, slot, part);
        }
        stage[to as usize] = features;
    }
}
