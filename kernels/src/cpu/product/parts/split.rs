//! Rows as parts of bf16. 16 rows are a group, in which 32 elements of each row follow each other: a tile of AMX is contiguous.
//!
//! 32 rows are `[steps, room, GROUPS, GROUP, INPUTS]`, with room for one part or for three. A step has as many parts as the elements of the rows need: one
//! if all of them are bf16. The others are zeros, which are neither stored nor multiplied.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use crate::cpu::product::nearest_bf16;
use crate::cpu::product::panel::{GROUP, LANES, STEP, TILE};
use crate::cpu::scratch::{Disjoint, with_scratch};
use crate::cpu::threads;

/// Parts of an element.
pub(super) const PARTS: usize = 3;
/// Inputs of a step.
pub(super) const INPUTS: usize = STEP / size_of::<u16>();
/// Steps of a block.
pub(super) const STEPS: usize = 16;
/// Inputs of a block.
pub(in crate::cpu::product) const DEPTH: usize = STEPS * INPUTS;
/// Groups of a tile.
const GROUPS: usize = 2;
/// Rows of a tile.
pub(super) const ROWS: usize = GROUPS * GROUP;
/// Numbers of a step of a part of a group.
pub(super) const NUMBERS: usize = TILE / size_of::<u16>();
/// From a part of a step to the next, in numbers.
pub(super) const PART: usize = GROUPS * NUMBERS;

/// The bits of elements that the first part does not have, and those that the first two do not have.
const AFTER_ONE: u32 = 0xffff;
const AFTER_TWO: u32 = 0xff;

/// The parts of some rows, in whole tiles.
pub(super) struct Parts<'a> {
    /// What is after the last row, and in parts that a step does not have, is unspecified.
    numbers: &'a [u16],
    /// `[tiles, steps]`: parts that a step has, one to three.
    counts: &'a [u8],
    /// Parts that a step has room for.
    room: usize,
    rows: usize,
    inputs: usize,
}

/// Some steps of the rows of a tile.
#[derive(Clone, Copy)]
pub(super) struct TileSteps<'a> {
    pub numbers: &'a [u16],
    /// The parts that each step has.
    pub counts: &'a [u8],
    /// The parts that each has room for.
    pub room: usize,
}

impl Parts<'_> {
    /// The rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Some steps of a tile.
    pub fn steps(&self, tile: usize, steps: &Range<usize>) -> TileSteps<'_> {
        let first = tile * self.inputs.div_ceil(INPUTS);
        let own = first + steps.start..first + steps.end;
        let (room, step) = (self.room, self.room * PART);
        TileSteps { numbers: &self.numbers[own.start * step..own.end * step], counts: &self.counts[own], room }
    }

    /// Numbers of the same steps of the next tile, or of the next steps of the first. There need not be any.
    pub fn after(&self, tile: usize, steps: &Range<usize>) -> *const u16 {
        let step = if (tile + 1) * ROWS < self.rows {
            (tile + 1) * self.inputs.div_ceil(INPUTS) + steps.start
        } else {
            steps.end
        };
        self.numbers.as_ptr().wrapping_add(step * self.room * PART)
    }
}

/// What becomes of elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Elements {
    /// They are split into up to so many parts.
    Exact { parts: usize },
    /// They are rounded to bf16, and have one part.
    Rounded,
}

impl Elements {
    /// Parts that a step needs room for.
    pub fn room(self) -> usize {
        match self {
            Self::Exact { parts } => parts,
            Self::Rounded => 1,
        }
    }
}

/// Splits rows of `inputs` elements. Writes the largest magnitude of each: that of a row with a NaN, or with an element that has more parts, is NaN.
pub(super) fn with_parts<R>(
    input: &[f32],
    inputs: usize,
    elements: Elements,
    largest: &mut [f32],
    work: impl FnOnce(&Parts<'_>) -> R,
) -> R {
    let (rows, tiles) = (largest.len(), largest.len().div_ceil(ROWS));
    let steps = inputs.div_ceil(INPUTS);
    let room = elements.room();
    let tile = steps * room * PART;
    with_scratch(tiles * tile / 2 + (tiles * steps).div_ceil(4), |scratch| {
        let (numbers, counts) = scratch.split_at_mut(tiles * tile / 2);
        let numbers: &mut [u16] = bytemuck::cast_slice_mut(numbers);
        let counts: &mut [u8] = &mut bytemuck::cast_slice_mut(counts)[..tiles * steps];
        let (all_numbers, all_counts) = (Disjoint::new(numbers), Disjoint::new(counts));
        threads::each_part(largest, ROWS, |at, largest| {
            // SAFETY: every tile has its own places.
            let (numbers, counts) = unsafe { (all_numbers.part(at * tile, tile), all_counts.part(at * steps, steps)) };
            let rows = &input[at * ROWS * inputs..][..largest.len() * inputs];
            Arch::new().dispatch(Split { rows, inputs, elements, numbers, counts, largest });
        });
        work(&Parts { numbers, counts, room, rows, inputs })
    })
}

/// Splits the rows of a tile.
struct Split<'a> {
    rows: &'a [f32],
    inputs: usize,
    elements: Elements,
    numbers: &'a mut [u16],
    counts: &'a mut [u8],
    largest: &'a mut [f32],
}

impl WithSimd for Split<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self { rows, inputs, elements, numbers, counts, largest } = self;
        largest.fill(0.0);
        let most = match elements {
            Elements::Exact { parts } => parts,
            Elements::Rounded => {
                counts.fill(1);
                for ((at, row), largest) in rows.chunks_exact(inputs).enumerate().zip(largest) {
                    *largest = round(row, &mut numbers[at / GROUP * NUMBERS + at % GROUP * INPUTS..]);
                }
                return;
            }
        };
        let lost = if most == 1 { AFTER_ONE } else { 0 };
        for (block, counts) in counts.chunks_mut(STEPS).enumerate() {
            let features = block * DEPTH..inputs.min((block + 1) * DEPTH);
            let rows = || rows.chunks_exact(inputs).map(|row| &row[features.clone()]);
            // The block is read from memory here, and from a cache below.
            let mut bits = [[0; LANES]; STEPS];
            for (row, largest) in rows().zip(&mut *largest) {
                *largest = inspect(row, lost, *largest, &mut bits);
            }
            for (count, bits) in counts.iter_mut().zip(bits) {
                let bits = bits.into_iter().fold(0, |all, bits| all | bits);
                *count = if bits & AFTER_ONE == 0 || most == 1 {
                    1
                } else if bits & AFTER_TWO == 0 {
                    2
                } else {
                    3
                };
            }
            for (at, row) in rows().enumerate() {
                let place = block * STEPS * most * PART + at / GROUP * NUMBERS + at % GROUP * INPUTS;
                split(row, (counts, most), &mut numbers[place..]);
            }
        }
    }
}

/// Rounds the elements of a row to bf16. `numbers` begins with those of the row in the first step. Returns the largest magnitude, or NaN.
#[inline(always)]
fn round(row: &[f32], numbers: &mut [u16]) -> f32 {
    let mut most = [0; LANES];
    let (whole, rest) = row.as_chunks::<INPUTS>();
    let last = padded(rest);
    let steps = whole.iter().chain((!rest.is_empty()).then_some(&last));
    for (step, elements) in steps.enumerate() {
        let place = &mut numbers[step * PART..][..INPUTS];
        for (place, elements) in place.as_chunks_mut::<LANES>().0.iter_mut().zip(elements.as_chunks::<LANES>().0) {
            for lane in 0..LANES {
                let nearest = nearest_bf16(elements[lane]);
                most[lane] = (nearest & i32::MAX as u32).max(most[lane]);
                place[lane] = (nearest >> 16) as u16;
            }
        }
    }
    f32::from_bits(most.into_iter().fold(0, u32::max))
}

/// Adds the bits of each step of a row to `bits`. Returns the larger one of `largest` and the magnitudes, or NaN if an element has one of the bits
/// `lost`.
#[inline(always)]
fn inspect(row: &[f32], lost: u32, largest: f32, bits: &mut [[u32; LANES]; STEPS]) -> f32 {
    let (mut most, mut all) = ([0; LANES], [0; LANES]);
    let (whole, rest) = row.as_chunks::<INPUTS>();
    let last = padded(rest);
    let steps = whole.iter().chain((!rest.is_empty()).then_some(&last));
    for (elements, bits) in steps.zip(bits) {
        for elements in elements.as_chunks::<LANES>().0 {
            for lane in 0..LANES {
                let element = elements[lane].to_bits();
                // As integers: NaN is larger than all others.
                most[lane] = (element & i32::MAX as u32).max(most[lane]);
                all[lane] |= element;
                bits[lane] |= element;
            }
        }
    }
    if all.into_iter().any(|bits| bits & lost != 0) {
        return f32::NAN;
    }
    f32::from_bits(most.into_iter().fold(largest.to_bits(), u32::max))
}

/// Splits the elements of a block of a row. `numbers` begins with those of the row in the first step; each has room for as many parts.
#[inline(always)]
fn split(row: &[f32], (counts, room): (&[u8], usize), numbers: &mut [u16]) {
    let (whole, rest) = row.as_chunks::<INPUTS>();
    let last = padded(rest);
    let steps = whole.iter().chain((!rest.is_empty()).then_some(&last));
    for (step, (elements, count)) in steps.zip(counts).enumerate() {
        let mut elements = *elements;
        for part in 0..usize::from(*count) {
            let place = &mut numbers[(step * room + part) * PART..][..INPUTS];
            for (number, element) in place.iter_mut().zip(&mut elements) {
                // The upper half, not rounded: that could overflow. The rest is exact.
                let upper = element.to_bits() & !AFTER_ONE;
                *number = (upper >> 16) as u16;
                *element -= f32::from_bits(upper);
            }
        }
    }
}

/// A step of the last elements of a row.
#[inline(always)]
fn padded(rest: &[f32]) -> [f32; INPUTS] {
    let mut last = [0.0; INPUTS];
    last[..rest.len()].copy_from_slice(rest);
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts of each step of the only tile, and the largest magnitudes.
    fn counts(input: &[f32], inputs: usize, parts: usize) -> (Vec<u8>, Vec<f32>) {
        let mut largest = vec![7.0; input.len() / inputs];
        let counts = with_parts(input, inputs, Elements::Exact { parts }, &mut largest, |parts| {
            parts.steps(0, &(0..inputs.div_ceil(INPUTS))).counts.to_vec()
        });
        (counts, largest)
    }

    #[test]
    fn a_step_has_as_many_parts_as_the_elements_of_its_rows() {
        // A bf16, 16 bits, 24 bits, and none at all.
        for (number, count) in
            [(1.5f32, 1), (-1.0 - 1.0 / 128.0, 1), (1.0 + 1.0 / 256.0, 2), (1.0 + f32::EPSILON, 3), (-0.0, 1)]
        {
            for (row, input) in [(0, 0), (16, 600), (32, 650)] {
                let (rows, inputs) = (33, 651);
                let mut elements = vec![0.5; rows * inputs];
                elements[row * inputs + input] = number;
                let mut expected = vec![1; inputs.div_ceil(INPUTS)];
                if row < ROWS {
                    expected[input / INPUTS] = count;
                }
                let (found, largest) = counts(&elements, inputs, PARTS);
                assert_eq!(found, expected, "{number} in row {row}");
                assert_eq!(largest[row], number.abs().max(0.5));
            }
        }
    }

    #[test]
    fn a_row_that_has_more_parts_than_are_made_has_a_nan_for_its_largest_magnitude() {
        let mut input = vec![0.5; 17 * 40];
        input[3 * 40 + 39] = 1.0 + 1.0 / 256.0;
        let (counts, largest) = counts(&input, 40, 1);
        assert_eq!(counts, [1, 1]);
        assert!(largest[3].is_nan());
        assert_eq!(largest.iter().filter(|largest| **largest == 0.5).count(), 16);
    }
}
