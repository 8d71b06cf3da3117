//! Queries as pairs of bf16.

use super::{HALF, LANES, SIDE, Tile};
use crate::cpu::flash::queries::{Queries, Row};
use crate::cpu::transpose::into_lanes;

/// Most parts of a query.
const PARTS: usize = 3;

/// The bits of numbers that the first part does not have, and those that the first two do not have.
const AFTER_ONE: u32 = 0xffff;
const AFTER_TWO: u32 = 0xff;

/// The queries of a task, and memory for them.
#[derive(Default)]
pub(in crate::cpu::flash) struct PackedQueries {
    /// Of each tile of queries `[LANES / 16, PARTS, steps]`, the smallest part first. If it has fewer, those that are left over are at the end.
    tiles: Vec<Tile>,
    forms: Vec<Form>,
    /// `[head_dim, LANES]`.
    lanes: Vec<f32>,
}

/// What a tile of queries consists of.
#[derive(Debug, Clone, Copy, Default)]
struct Form {
    parts: usize,
    /// A bit for each lane whose query is not finite.
    extreme: u64,
}

/// A tile of queries.
#[derive(Clone, Copy)]
pub(in crate::cpu::flash) struct PackedTile<'a> {
    tiles: &'a [Tile],
    /// Parts that each number has.
    pub parts: usize,
    /// A bit for each lane whose query is not finite.
    pub extreme: u64,
}

impl<'a> PackedTile<'a> {
    /// The tiles from 16 columns on, and from one group of columns to the next.
    pub fn columns(&self, group: usize) -> (&'a [Tile], usize) {
        let stride = self.tiles.len() / (LANES / HALF);
        (&self.tiles[group * stride..], stride)
    }
}

impl PackedQueries {
    /// Makes room for tiles of queries.
    pub fn resize(&mut self, tiles: usize, head_dim: usize) {
        self.tiles.resize(tiles * length(head_dim), Tile::default());
        self.forms.resize(tiles, Form::default());
        self.lanes.resize(head_dim * LANES, 0.0);
    }

    /// Packs the queries of a tile, unscaled.
    #[inline(always)]
    pub fn pack(&mut self, tile: usize, queries: &Queries<'_>, rows: &[Row]) {
        let head_dim = queries.problem.head_dim;
        into_lanes(|lane| queries.query(rows[lane]), LANES, &mut self.lanes);
        let place = &mut self.tiles[tile * length(head_dim)..][..length(head_dim)];
        self.forms[tile] = split(&self.lanes, place);
    }

    /// A packed tile.
    pub fn tile(&self, tile: usize, head_dim: usize) -> PackedTile<'_> {
        let Form { parts, extreme } = self.forms[tile];
        PackedTile { tiles: &self.tiles[tile * length(head_dim)..][..length(head_dim)], parts, extreme }
    }
}

/// Tiles of a tile of queries.
fn length(head_dim: usize) -> usize {
    LANES / HALF * PARTS * head_dim.div_ceil(SIDE)
}

/// Splits queries, `[head_dim, LANES]`, into as many parts as the longest of their numbers has.
#[inline(always)]
fn split(lanes: &[f32], tiles: &mut [Tile]) -> Form {
    let rows = lanes.as_chunks::<LANES>().0;
    let steps = rows.len().div_ceil(SIDE);
    let (mut all, mut largest) = ([0; LANES], [0; LANES]);
    for row in rows {
        for lane in 0..LANES {
            let bits = row[lane].to_bits();
            all[lane] |= bits;
            largest[lane] = (bits & i32::MAX as u32).max(largest[lane]);
        }
    }
    let bits = all.into_iter().fold(0, |all, bits| all | bits);
    let parts = match bits {
        bits if bits & AFTER_ONE == 0 => 1,
        bits if bits & AFTER_TWO == 0 => 2,
        _ => PARTS,
    };
    let zeros = [0.0; LANES];
    for at in 0..steps * HALF {
        let (step, pair) = (at / HALF, at % HALF);
        let row = |row: usize| rows.get(row).unwrap_or(&zeros);
        let (mut even, mut odd) = (*row(2 * at), *row(2 * at + 1));
        for part in (0..parts).rev() {
            let mut words = [0; LANES];
            for lane in 0..LANES {
                // The upper halves, not rounded: that could overflow. The rest is exact.
                let [one, other] = [even[lane].to_bits() & !AFTER_ONE, odd[lane].to_bits() & !AFTER_ONE];
                words[lane] = one >> 16 | other;
                even[lane] -= f32::from_bits(one);
                odd[lane] -= f32::from_bits(other);
            }
            for (column, words) in words.as_chunks::<HALF>().0.iter().enumerate() {
                tiles[(column * PARTS + part) * steps + step].0[pair] = *words;
            }
        }
    }
    let is_extreme = |(lane, largest): (usize, &u32)| u64::from(*largest >= f32::INFINITY.to_bits()) << lane;
    Form { parts, extreme: largest.iter().enumerate().map(is_extreme).sum() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_query_add_up_to_it() {
        for (head_dim, bits, parts) in [(1, 8, 1), (40, 8, 1), (33, 16, 2), (64, 24, 3)] {
            let mask = u32::MAX << (24 - bits);
            let number = |at: usize| (at.wrapping_mul(2_654_435_761) & 0xffff_ffff) as f32 / 2_147_483_648.0 - 1.0;
            let mut lanes: Vec<f32> =
                (0..head_dim * LANES).map(|at| f32::from_bits(number(at).to_bits() & mask)).collect();
            // A lane has infinities.
            lanes[7] = f32::NEG_INFINITY;
            let mut tiles = vec![Tile([[u32::MAX; HALF]; HALF]); length(head_dim)];
            let form = split(&lanes, &mut tiles);
            assert_eq!((form.parts, form.extreme), (parts, 1 << 7));
            let steps = head_dim.div_ceil(SIDE);
            for at in 0..steps * SIDE * LANES {
                let (feature, lane) = (at / LANES, at % LANES);
                let number = |part: usize| {
                    let tile = tiles[(lane / HALF * PARTS + part) * steps + feature / SIDE];
                    f32::from_bits(u32::from(tile.numbers()[feature % SIDE / 2][2 * (lane % HALF) + feature % 2]) << 16)
                };
                if lane != 7 {
                    let sum: f32 = (0..parts).map(number).sum();
                    assert_eq!(sum, lanes.get(at).copied().unwrap_or(0.0), "feature {feature}, lane {lane}");
                }
            }
        }
    }
}
