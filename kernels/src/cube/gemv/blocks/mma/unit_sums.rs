//! Sums of the inputs of units, which minima multiply.

use cubecl::prelude::*;
use half::f16;

use super::tile::{Tile, UNIT, UNITS, UPPER};
use crate::cube::fragment::{LANES, Pair, mma};

/// What an input counts in the sum of its unit: 32 of the largest are less than 2^14.
pub(super) const SUM_UNIT: f32 = 1.0 / UNIT as f32;

/// Makes the sums of fragments zeros.
#[cube]
pub(super) fn clear(sums: &mut Array<Vector<f32, Pair>>, #[comptime] many: usize) {
    #[unroll]
    for s in 0..many {
        sums[s] = Vector::new(0.0f32);
    }
}

/// Adds up the inputs of unit `unit` of a span: `columns` are the B of its two products, of each fragment. Row `r` of the sums is column `r` of the first
/// fragment, and row `r + 8` that of the second one, if there is one. Column `c` is that of unit [`unit_of_column`] of `c`; `own_unit` is that of
/// [`own_unit`].
#[cube]
pub(super) fn add_unit<H: Float>(
    sums: &mut Array<Vector<f32, Pair>>,
    columns: &Array<Vector<H, Pair>>,
    own_unit: u32,
    #[comptime] unit: usize,
    #[comptime] tile: Tile,
) {
    let mut none = SharedMemory::<f32>::new(4usize);
    let second = comptime!(4 * (tile.fragments() - 1));
    // Ones, in the column of the unit.
    let factor = comptime!(if tile.has_upper(unit * UNIT) { SUM_UNIT * UPPER } else { SUM_UNIT });
    let factors = comptime!(f16::from_f32(factor).to_bits() as u32 * 0x1_0001);
    let own = select(own_unit == comptime!(unit as u32), factors, 0u32);
    let mut right = Array::<Vector<H, Pair>>::new(2usize);
    let mut left = Array::<Vector<H, Pair>>::new(8usize);
    #[unroll]
    for w in 0..2usize {
        right[w] = Vector::reinterpret(own);
    }
    #[unroll]
    for w in 0..4usize {
        left[comptime!(2 * w)] = columns[w];
        left[comptime!(2 * w + 1)] = columns[comptime!(second + w)];
    }
    #[unroll]
    for product in 0..2u32 {
        mma::<H>(&left, 4 * product, &right, 0u32, sums, 0u32, &mut none, false);
    }
}

/// The sums of the units of a span in the columns of a fragment as a B, with which minima are multiplied: its depth is the units in the order of
/// [`unit_of_column`], and then what their sums have more than 11 bits.
#[cube]
pub(super) fn sums_as_right<H: Float>(sums: Vector<f32, Pair>) -> Array<Vector<H, Pair>> {
    let mut right = Array::<Vector<H, Pair>>::new(2usize);
    right[0] = Vector::cast_from(sums);
    right[1] = Vector::cast_from(sums - Vector::<f32, Pair>::cast_from(right[0]));
    right
}

/// The unit in whose column this lane has ones.
#[cube]
pub(super) fn own_unit() -> u32 {
    unit_of_column(UNIT_POS % LANES / 4u32)
}

/// The unit of a span whose sums are at depth `column` of [`sums_as_right`]: those of the same place in the first and the last four are neighbours,
/// as their minima are in a block.
#[cube]
fn unit_of_column(column: u32) -> u32 {
    column / 2u32 + column % 2u32 * comptime!(UNITS as u32 / 2)
}
