//! What a lane loads, and the fragments that it makes of it.

use cubecl::prelude::*;

use super::tile::{KEYS, ROWS, SHARERS, Tile};
use crate::cube::cached::{Cached, CachedHead};
use crate::cube::decode::Sizes;
use crate::cube::direct::{Quad, bytes};
use crate::cube::fragment::{LANES, Pair};
use crate::cube::masks::Masks;

/// Eights of features of a vector of 8 words.
const WORDS: u32 = 2;

/// The lane's place among those that share a key.
#[cube]
pub(super) fn sharer() -> u32 {
    UNIT_POS % LANES % SHARERS
}

/// The lane's place among the lanes of that number: a key of an eight, a row of the queries, or features of a value.
#[cube]
pub(super) fn eighth() -> u32 {
    UNIT_POS % LANES / SHARERS
}

/// The queries as the B of each product of a key, two registers each. Lane `l` has query `l / 4`.
///
/// The elements are in the order of those of the keys: see [`left`](crate::cube::direct::left).
#[cube]
pub(super) fn queries<F: Float>(
    query: &Array<Vector<u32, Quad>>,
    first_row: u32,
    sizes: &Sizes,
    #[comptime] tile: Tile,
) -> Array<Vector<F, Pair>> {
    let mut queries = Array::<Vector<F, Pair>>::new(comptime!(tile.query_registers()));
    // After the last row it is read again, and its results dropped.
    let row = min(first_row + eighth() % ROWS, sizes.group * sizes.tokens - 1);
    let head = CUBE_POS_Y * sizes.group + row % sizes.group;
    let begin = sizes.query.head(CUBE_POS_Z, head) + row / sizes.group * sizes.query.token;
    // Vectors of 8 elements that belong to one vector of a key.
    let vectors = comptime!(tile.key_parts() / WORDS);
    #[unroll(!tile.emulate)]
    for chunk in 0..comptime!(tile.key_chunks()) {
        #[unroll(!tile.emulate)]
        for v in 0..vectors {
            let words = query[(begin + (chunk * SHARERS + sharer()) * vectors + v) as usize];
            #[unroll(!tile.emulate)]
            for half in 0..WORDS {
                let to = (((chunk * vectors + v) * WORDS + half) * 2) as usize;
                let first = Vector::<F, Pair>::reinterpret(words[(half * 2) as usize]);
                let second = Vector::<F, Pair>::reinterpret(words[(half * 2 + 1) as usize]);
                if comptime!(tile.int8_keys) {
                    queries[to] = pair::<F>(first[0], second[0]);
                    queries[to + 1] = pair::<F>(first[1], second[1]);
                } else {
                    queries[to] = first;
                    queries[to + 1] = second;
                }
            }
        }
    }
    queries
}

#[cube]
fn pair<F: Float>(first: F, second: F) -> Vector<F, Pair> {
    let mut pair = Vector::<F, Pair>::empty();
    pair[0] = first;
    pair[1] = second;
    pair
}

/// Whether a slot before `stop` holds a key that some query may see.
#[cube]
pub(super) fn kept<M: Int, E: Float>(masks: &Masks<M, E>, slot: u32, stop: u32) -> bool {
    let mut kept = slot < stop;
    if kept {
        kept = !masks.hides_key(CUBE_POS_Z, slot);
    }
    kept
}

/// The vectors of a head at a slot that are this lane's: the first of them is `lane`, and the next one `apart` vectors on.
///
/// Keys that are hidden from every query become zeros, and are not read. After the last key it is read again: its scores are hidden.
#[cube]
fn load<M: Int, E: Float, N: Size>(
    loaded: &mut Array<Vector<u32, N>>,
    to: u32,
    cached: &Cached<u32, N>,
    head: CachedHead,
    masks: &Masks<M, E>,
    slot: u32,
    stop: u32,
    lane: u32,
    #[comptime] apart: u32,
    #[comptime] chunks: u32,
    #[comptime] tile: Tile,
) {
    if comptime!(tile.guarded) {
        #[unroll(!tile.emulate)]
        for chunk in 0..chunks {
            loaded[(to + chunk) as usize] = Vector::<u32, N>::new(0u32);
        }
        if kept::<M, E>(masks, slot, stop) {
            #[unroll(!tile.emulate)]
            for chunk in 0..chunks {
                loaded[(to + chunk) as usize] = cached.part(head, slot, lane + chunk * apart);
            }
        }
    } else {
        let slot = min(slot, stop - 1);
        #[unroll(!tile.emulate)]
        for chunk in 0..chunks {
            loaded[(to + chunk) as usize] = cached.part(head, slot, lane + chunk * apart);
        }
    }
}

/// Four lanes load a key: lane `l` has keys `l / 4` and `l / 4 + 8` of a step.
#[cube]
pub(super) fn load_keys<M: Int, E: Float>(
    loaded: &mut Array<Vector<u32, Quad>>,
    key: &Cached<u32, Quad>,
    head: CachedHead,
    masks: &Masks<M, E>,
    first: u32,
    stop: u32,
    #[comptime] tile: Tile,
) {
    let chunks = comptime!(tile.key_chunks());
    #[unroll(!tile.emulate)]
    for half in 0..comptime!(KEYS / 8) {
        let slot = first + half * 8 + eighth();
        load::<M, E, Quad>(loaded, half * chunks, key, head, masks, slot, stop, sharer(), SHARERS, chunks, tile);
    }
}

/// Eight lanes load a value: a lane has the four of a step whose weights it has as the right operand.
#[cube]
pub(super) fn load_values<M: Int, E: Float, N: Size>(
    loaded: &mut Array<Vector<u32, N>>,
    value: &Cached<u32, N>,
    head: CachedHead,
    masks: &Masks<M, E>,
    first: u32,
    stop: u32,
    #[comptime] tile: Tile,
) {
    let chunks = comptime!(tile.value_chunks());
    #[unroll(!tile.emulate)]
    for v in 0..comptime!(KEYS / SHARERS) {
        let slot = first + v / 2 * 8 + sharer() * 2 + v % 2;
        load::<M, E, N>(loaded, v * chunks, value, head, masks, slot, stop, eighth(), 8u32, chunks, tile);
    }
}

/// 16 features of four values as two A: features `2i` and `2i + 1` of the vectors of all lanes, for `i` from `2 · pair` on.
///
/// `from` is the first vector of the lane's first value, and the next value's is `chunks` on.
#[cube]
pub(super) fn value_fragments<P: Float, N: Size>(
    loaded: &Array<Vector<u32, N>>,
    from: u32,
    pair: u32,
    raised: u32,
    #[comptime] tile: Tile,
) -> Array<Vector<P, Pair>> {
    let chunks = comptime!(tile.value_chunks());
    let mut fragments = Array::<Vector<P, Pair>>::new(8usize);
    // The features of each value in two registers, of which one has those of even and one those of odd places.
    let mut even = Array::<Vector<P, Pair>>::new(4usize);
    let mut odd = Array::<Vector<P, Pair>>::new(4usize);
    #[unroll(!tile.emulate)]
    for v in 0..4u32 {
        let words = loaded[(from + v * chunks) as usize];
        if comptime!(tile.int8_values) {
            let word = words[pair as usize];
            even[v as usize] = bytes::<P>(word, raised, tile.brain_values);
            odd[v as usize] = bytes::<P>(word >> 8u32, raised, tile.brain_values);
        } else {
            let first = Vector::<P, Pair>::reinterpret(words[(pair * 2) as usize]);
            let second = Vector::<P, Pair>::reinterpret(words[(pair * 2 + 1) as usize]);
            even[v as usize] = self::pair::<P>(first[0], second[0]);
            odd[v as usize] = self::pair::<P>(first[1], second[1]);
        }
    }
    #[unroll]
    for i in 0..2usize {
        #[unroll]
        for late in 0..2usize {
            fragments[i * 4 + late * 2] = self::pair::<P>(even[late * 2][i], even[late * 2 + 1][i]);
            fragments[i * 4 + late * 2 + 1] = self::pair::<P>(odd[late * 2][i], odd[late * 2 + 1][i]);
        }
    }
    fragments
}
