//! Products one by one.

use burn_deepspeed_core::data_type::InputBits;

use super::whole::{PAIR, Whole, rest};

/// Leaves the integers as they are.
pub fn arrange(_row: &mut [i16], _bits: InputBits) {}

/// Whether weights stay bytes for any number of rows.
pub fn reads_bytes() -> bool {
    true
}

/// Rows that are multiplied together.
pub fn most_rows() -> usize {
    PAIR
}

/// The products of the runs and each of the rows, which have their length.
pub fn dot<E: Whole, const N: usize, const M: usize>(
    runs: [&[E]; N],
    rows: [&[i16]; M],
    _bits: InputBits,
) -> [[i64; N]; M] {
    rows.map(|row| runs.map(|run| rest(run, row)))
}

/// The products by each way that there is.
#[cfg(test)]
pub fn every<const N: usize, const M: usize>(
    runs: [&[i8]; N],
    rows: [&[i16]; M],
    bits: InputBits,
) -> Vec<(&'static str, [[i64; N]; M])> {
    vec![("plain", dot(runs, rows, bits))]
}
