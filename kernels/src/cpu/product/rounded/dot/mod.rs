//! A few rows of integers of 16 bits, and a group of outputs. Sums stay in registers, and weights are widened as they are read.
//!
//! ```text
//!             4 runs of weights, widened once for all rows
//!           ┌──────────────┐
//!  row 0 →  │ 4 × 2 sums   │   32 bits for each of 8 lanes, up to 16384 elements
//!  row 1 →  │              │
//!           └──────────────┘
//! ```
//!
//! NEON with products of bytes widens nothing: it takes the rows apart.

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod plain;
mod whole;
#[cfg(target_arch = "x86_64")]
mod x86;

use burn_deepspeed_core::data_type::InputBits;

use super::row::MOST_INPUTS;
use crate::cpu::product::int8::Int8Matrix;
#[cfg(target_arch = "aarch64")]
use neon as engine;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
use plain as engine;
use whole::{PAIR, Whole};
#[cfg(target_arch = "x86_64")]
use x86 as engine;

pub(super) use engine::arrange;
pub(super) use whole::QUAD;

/// Outputs that are computed together.
pub(in crate::cpu::product) const TOGETHER: usize = 4;

/// Rows of integers of 16 bits, as [`arrange`] leaves them.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// `[rows, inputs]`, with an even number of places for each.
    pub whole: &'a [i16],
    pub bits: InputBits,
}

/// Adds the products of every row and the outputs from `first` on, each block times its scale, to `sums`, `[rows, TOGETHER]`.
pub(super) fn add_products(
    matrix: &Int8Matrix<'_>,
    first: usize,
    count: usize,
    rows: Rows<'_>,
    wide: &mut [i16],
    sums: &mut [f32],
) {
    let inputs = matrix.inputs;
    let stride = inputs.next_multiple_of(2);
    // The last output is repeated up to a whole group, and the copies are not read.
    let runs: [_; TOGETHER] = std::array::from_fn(|n| matrix.run(first + n.min(count - 1)));
    let (elements, scales) = (runs.map(|(elements, _)| elements), runs.map(|(_, scales)| scales));
    if engine::reads_bytes() || rows.whole.len() <= engine::most_rows() * stride {
        return add_blocks(matrix, elements, scales, rows, sums);
    }
    for (wide, elements) in wide.chunks_exact_mut(stride).zip(elements) {
        pulp::Arch::new().dispatch(Widen { elements, wide });
    }
    let runs = std::array::from_fn(|n| &wide[n * stride..][..inputs]);
    add_blocks(matrix, runs, scales, rows, sums);
}

/// Widens int8.
struct Widen<'a> {
    elements: &'a [i8],
    wide: &'a mut [i16],
}

impl pulp::WithSimd for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _simd: S) {
        self.wide.iter_mut().zip(self.elements).for_each(|(wide, element)| *wide = i16::from(*element));
    }
}

/// The same, with the weights as int8 or widened.
fn add_blocks<E: Whole>(
    matrix: &Int8Matrix<'_>,
    runs: [&[E]; TOGETHER],
    scales: [&[f32]; TOGETHER],
    Rows { whole: rows, bits }: Rows<'_>,
    sums: &mut [f32],
) {
    let inputs = matrix.inputs;
    let stride = inputs.next_multiple_of(2);
    for (block, start) in (0..inputs).step_by(matrix.input_block).enumerate() {
        let end = inputs.min(start + matrix.input_block);
        for start in (start..end).step_by(MOST_INPUTS) {
            let own = start..end.min(start + MOST_INPUTS);
            let runs = runs.map(|run| &run[own.clone()]);
            let add = |places: &mut [f32], totals: [i64; TOGETHER]| {
                for n in 0..TOGETHER {
                    places[n] += totals[n] as f32 * scales[n][block];
                }
            };
            let quads = if engine::most_rows() == QUAD { rows.len() / (QUAD * stride) * QUAD } else { 0 };
            let (quad_rows, rows) = rows.split_at(quads * stride);
            let (quad_sums, sums) = sums.split_at_mut(quads * TOGETHER);
            let places = quad_sums.chunks_exact_mut(QUAD * TOGETHER);
            for (quad, places) in quad_rows.chunks_exact(QUAD * stride).zip(places) {
                let quad = std::array::from_fn::<_, QUAD, _>(|m| &quad[m * stride..][own.clone()]);
                for (places, products) in places.chunks_exact_mut(TOGETHER).zip(engine::dot(runs, quad, bits)) {
                    add(places, products);
                }
            }
            let mut pairs = rows.chunks_exact(PAIR * stride);
            let mut places = sums.chunks_exact_mut(PAIR * TOGETHER);
            for (pair, places) in (&mut pairs).zip(&mut places) {
                let (one, other) = pair.split_at(stride);
                let [one, other] = engine::dot(runs, [&one[own.clone()], &other[own.clone()]], bits);
                add(&mut places[..TOGETHER], one);
                add(&mut places[TOGETHER..], other);
            }
            if !pairs.remainder().is_empty() {
                let [one] = engine::dot(runs, [&pairs.remainder()[own.clone()]], bits);
                add(places.into_remainder(), one);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::whole::rest;
    use super::*;

    /// Every engine of this processor has the sums of the definition, at lengths around those of its vectors.
    #[test]
    fn products_are_those_of_the_definition() {
        for bits in [InputBits::Eight, InputBits::Fourteen] {
            let most = bits.largest() as i64;
            for len in [1, 7, 16, 31, 32, 33, 64, 200, 16384] {
                let number = |at: usize, most: i64| at.wrapping_mul(2_654_435_761) as i64 % (2 * most + 1) - most;
                let runs: [Vec<i8>; 4] = std::array::from_fn(|n| match len {
                    // The largest sums.
                    16384 => vec![[-128, 127, -128, 127][n]; len],
                    _ => (0..len).map(|at| number(at + 31 * n, 127) as i8).collect(),
                });
                let rows: [Vec<i16>; 2] = std::array::from_fn(|m| match len {
                    16384 => vec![[-most, most][m] as i16; len],
                    _ => (0..len).map(|at| number(at + 57 * m, most) as i16).collect(),
                });
                let expected = rows.each_ref().map(|row| runs.each_ref().map(|run| rest(run, row)));
                let mut arranged = rows.clone();
                arranged.iter_mut().for_each(|row| arrange(row, bits));
                let [one, other] = arranged.each_ref().map(Vec::as_slice);
                let own = runs.each_ref().map(Vec::as_slice);
                for (name, found) in engine::every(own, [one, other], bits) {
                    assert_eq!(found, expected, "{name}, {bits:?}, {len} elements");
                }
            }
        }
    }
}
