//! Products of rows with a matrix, in f32, int8 or blocks.
//!
//! A few rows are memory-bound: the matrix is read once, in long runs, for all of them. More rows are computed as parts of bf16 on AMX where there is
//! any. Without it they are computed in the lanes of tiles, and many f32 rows by the `gemm` crate where that is faster.

#[cfg(target_arch = "x86_64")]
pub(super) mod amx;
mod blocks;
mod groups;
mod int8;
mod matrix;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) mod panel;
#[cfg(target_arch = "x86_64")]
mod parts;
mod problem;
mod rounded;
mod runs;
mod tiles;

use pulp::{Arch, Simd, WithSimd};

use self::problem::{MULTIPLE, Path, Weights, check};
use super::places::Places;
use super::scratch::{Disjoint, with_scratch};
use super::threads;
pub use blocks::BlockMatrix;
pub use int8::Int8Matrix;
pub use matrix::Matrix;
pub use problem::{InputElements, Product};
pub use rounded::{RoundedMatrix, has_rounded, rounded_product, rounded_product_into};

/// Rows that are multiplied with the matrix together.
const ROWS: usize = 16;

/// Most outputs of a task: long runs, which the hardware prefetches.
const MOST_OUTPUTS: usize = 4096;

/// Most sums of a task: they are read and written for every few inputs.
const MOST_SUMS: usize = 16 * 1024;

/// Fewest outputs of a task: the hardware does not prefetch shorter runs in time.
const FEWEST_OUTPUTS: usize = 128;

/// A matrix that rows can be multiplied with: [`Matrix`], [`Int8Matrix`] or [`BlockMatrix`].
#[allow(private_bounds, reason = "the kernels are written for these")]
pub trait AnyMatrix: Weights {}

impl<W: Weights> AnyMatrix for W {}

/// Computes `input · matrix + bias` into the features `first..first + outputs` of `output`, `[rows, width]`.
///
/// # Panics
/// If a slice does not have the length that the sizes imply.
pub fn product<W: AnyMatrix>(problem: &Product<'_, W>, output: &mut [f32]) {
    product_into(problem, &mut Places::of(output));
}

/// [`product`] into a new result.
///
/// # Panics
/// If a slice, or the result, does not have the length that the sizes imply, or these features of a new result were written before.
pub fn product_into<W: AnyMatrix>(problem: &Product<'_, W>, output: &mut Places<'_>) {
    if !W::in_parts(problem, output) {
        with_rounded_input(problem, |problem| W::product(problem, output));
    }
}

/// Calls `work` with the same problem, in which elements that are to be rounded to bf16 have been.
fn with_rounded_input<W: Weights, R>(problem: &Product<'_, W>, work: impl FnOnce(&Product<'_, W>) -> R) -> R {
    /// Numbers of a task.
    const SOME: usize = 1 << 16;
    if problem.elements != InputElements::RoundToBf16 {
        return work(problem);
    }
    with_scratch(problem.input.len(), |rounded| {
        threads::each_part(rounded, SOME, |part, places| {
            Arch::new().dispatch(RoundToBf16 { numbers: &problem.input[part * SOME..][..places.len()], places });
        });
        work(&Product { input: rounded, elements: InputElements::Bf16, ..*problem })
    })
}

struct RoundToBf16<'a> {
    numbers: &'a [f32],
    places: &'a mut [f32],
}

impl WithSimd for RoundToBf16<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        for (place, number) in self.places.iter_mut().zip(self.numbers) {
            *place = f32::from_bits(nearest_bf16(*number));
        }
    }
}

/// The bits of the nearest bf16, as an f32; ties to even.
#[inline(always)]
fn nearest_bf16(number: f32) -> u32 {
    let bits = number.to_bits();
    // Half a unit of the last bit, or less where that is even.
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    // A NaN could become another number.
    let quiet = (bits | 0x0040_0000) & 0xffff_0000;
    if number.is_nan() { quiet } else { nearest }
}

/// [`product`] for the implementations of [`Weights::product`], which are compiled here and not in every program that calls them.
fn computed<W: Weights>(problem: &Product<'_, W>, output: &mut Places<'_>) {
    let rows = check(problem, output.len());
    if rows * problem.matrix.outputs() == 0 {
        return;
    }
    match problem.matrix.path(problem.sequence) {
        Path::Stream => stream(problem, rows, output.whole()),
        Path::Tiles => tiles::tiles(problem, output),
        Path::Packed => W::packed(problem, output),
    }
}

/// A few rows.
fn stream<W: Weights>(problem: &Product<'_, W>, rows: usize, output: &mut [f32]) {
    let Product { input, matrix, bias, .. } = *problem;
    let (inputs, outputs) = (matrix.inputs(), matrix.outputs());

    let fair = outputs.div_ceil(4 * rayon::current_num_threads()).next_multiple_of(MULTIPLE);
    let most = (MOST_SUMS / rows.min(ROWS) / MULTIPLE * MULTIPLE).min(MOST_OUTPUTS);
    let each = fair.clamp(FEWEST_OUTPUTS, most);
    let output = Disjoint::new(output);
    threads::each(outputs.div_ceil(each), |task| {
        let range = task * each..outputs.min((task + 1) * each);
        with_scratch(rows.min(ROWS) * range.len(), |scratch| {
            for (group, input) in input.chunks(ROWS * inputs).enumerate() {
                let sums = &mut scratch[..input.len() / inputs * range.len()];
                sums.fill(0.0);
                Arch::new().dispatch(Task { matrix, input, first: range.start, sums });
                for (row, sums) in sums.chunks_exact(range.len()).enumerate() {
                    let place = problem.place(group * ROWS + row, range.start);
                    // SAFETY: no other task has these features.
                    let output = unsafe { output.part(place, range.len()) };
                    output.copy_from_slice(sums);
                    if let Some(bias) = bias {
                        output.iter_mut().zip(&bias[range.clone()]).for_each(|(output, bias)| *output += bias);
                    }
                }
            }
        });
    });
}

/// Some outputs of a few rows: `sums` is `[rows, outputs]`.
struct Task<'a, W> {
    matrix: W,
    input: &'a [f32],
    first: usize,
    sums: &'a mut [f32],
}

impl<W: Weights> WithSimd for Task<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.matrix.stream(simd, self.input, self.first, self.sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_as_half_rounds_them() {
        // Every exponent with ties, their neighbours and both signs.
        for upper in 0..=u32::from(u16::MAX) {
            for lower in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let number = f32::from_bits(upper << 16 | lower);
                let (found, expected) = (nearest_bf16(number), half::bf16::from_f32(number).to_f32());
                let are_nan = f32::from_bits(found).is_nan() && expected.is_nan();
                assert!(found == expected.to_bits() || are_nan, "{number}");
                assert_eq!(found & 0xffff, 0);
            }
        }
    }
}
