//! Rows as parts of bf16. 16 rows are a group, in which 32 elements of each row follow each other: a tile is contiguous.
//!
//! A group is `[steps, PARTS, GROUP, INPUTS]`.

use pulp::{Arch, Simd, WithSimd};

use crate::cpu::product::panel::{GROUP, STEP, TILE};
use crate::cpu::scratch::{Disjoint, with_scratch};
use crate::cpu::threads;

/// Parts of an element.
pub(super) const PARTS: usize = 3;
/// Inputs of a step.
pub(super) const INPUTS: usize = STEP / size_of::<u16>();
/// Numbers of a step of a group.
pub(super) const NUMBERS: usize = PARTS * TILE / size_of::<u16>();
/// Rows of a tile.
pub(super) const ROWS: usize = 2 * GROUP;

/// The parts of some rows, in whole tiles.
pub(super) struct Parts<'a> {
    /// Groups. What is after the last row is unspecified.
    numbers: &'a [u16],
    rows: usize,
    inputs: usize,
}

impl Parts<'_> {
    /// The rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers of a group.
    pub fn group(&self) -> usize {
        self.inputs.div_ceil(INPUTS) * NUMBERS
    }

    /// The two groups of a tile, from the step of an input on.
    pub fn tile(&self, tile: usize, input: usize) -> &[u16] {
        &self.numbers[2 * tile * self.group()..][..2 * self.group()][input / INPUTS * NUMBERS..]
    }
}

/// Splits rows of `inputs` elements, and writes the largest magnitude of each: that of a row with a NaN is NaN.
pub(super) fn with_parts<R>(
    input: &[f32],
    inputs: usize,
    largest: &mut [f32],
    work: impl FnOnce(&Parts<'_>) -> R,
) -> R {
    let rows = largest.len();
    let group = inputs.div_ceil(INPUTS) * NUMBERS;
    with_scratch(rows.div_ceil(ROWS) * 2 * group / 2, |scratch| {
        let numbers: &mut [u16] = bytemuck::cast_slice_mut(scratch);
        let places = Disjoint::new(numbers);
        threads::each_part(largest, GROUP, |at, largest| {
            // SAFETY: every group has its own place.
            let numbers = unsafe { places.part(at * group, group) };
            let rows = &input[at * GROUP * inputs..][..largest.len() * inputs];
            Arch::new().dispatch(Split { rows, inputs, numbers, largest });
        });
        work(&Parts { numbers, rows, inputs })
    })
}

/// Splits the rows of a group.
struct Split<'a> {
    rows: &'a [f32],
    inputs: usize,
    numbers: &'a mut [u16],
    largest: &'a mut [f32],
}

impl WithSimd for Split<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self { rows, inputs, numbers, largest } = self;
        for (row, (elements, largest)) in rows.chunks_exact(inputs).zip(largest).enumerate() {
            let mut most = [0; INPUTS];
            let (whole, rest) = elements.as_chunks::<INPUTS>();
            let mut last = [0.0; INPUTS];
            last[..rest.len()].copy_from_slice(rest);
            let steps = numbers.as_chunks_mut::<NUMBERS>().0;
            for (elements, numbers) in whole.iter().chain((!rest.is_empty()).then_some(&last)).zip(steps) {
                step(elements, row, numbers, &mut most);
            }
            // As integers: NaN is larger than all others.
            *largest = f32::from_bits(most.into_iter().fold(0, u32::max));
        }
    }
}

/// Splits the elements of a step of a row, the first part first.
#[inline(always)]
fn step(elements: &[f32; INPUTS], row: usize, numbers: &mut [u16; NUMBERS], most: &mut [u32; INPUTS]) {
    let mut elements = *elements;
    for (most, element) in most.iter_mut().zip(&elements) {
        *most = (*most).max(element.abs().to_bits());
    }
    for part in numbers.chunks_exact_mut(NUMBERS / PARTS) {
        for (number, element) in part[row * INPUTS..][..INPUTS].iter_mut().zip(&mut elements) {
            // The upper half, not rounded: that could overflow. The rest is exact.
            let upper = element.to_bits() & 0xffff_0000;
            *number = (upper >> 16) as u16;
            *element -= f32::from_bits(upper);
        }
    }
}
