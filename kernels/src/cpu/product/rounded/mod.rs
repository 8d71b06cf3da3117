//! Integer products: rows are rounded to 14 or 8 bits, with a scale for each, and multiplied by an int8 matrix.
//!
//! Weights are not converted to floats. An element of a row is off by at most half a step, which is the largest magnitude of the row over
//! 8191 or 127. An output is off by at most that times the sum of the magnitudes of its weights.
//!
//! `dot` multiplies a few rows, of which each element is an integer of 16 bits. `tiles` multiplies many: `rows` are bytes, those of 14
//! bits in two planes, and `weights` are in the order of the instruction, which is one of `avx_vnni`, `vnni` or `amx`, or of `neon`. Sums
//! are integers, and exact, so all of them give the same bits.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
pub(super) mod dot;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod engine;
pub(super) mod few;
#[cfg(target_arch = "aarch64")]
mod neon;
mod row;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod rows;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tiles;
#[cfg(target_arch = "x86_64")]
mod vnni;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod weights;

use burn_deepspeed_core::data_type::InputBits;

use super::int8::Int8Matrix;
use super::problem::{Product, Weights, check};
use crate::cpu::places::Places;

/// Whether this processor has the instructions, AVX2 or NEON; without them call [`product`](super::product).
pub fn has_rounded() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    cfg!(target_arch = "aarch64")
}

/// A matrix that rounded rows can be multiplied with: [`Int8Matrix`] or [`BlockMatrix`](super::BlockMatrix).
#[allow(private_bounds, reason = "the kernels are written for these")]
pub trait RoundedMatrix: Rounds {}

impl<W: Rounds> RoundedMatrix for W {}

/// A matrix that has kernels for rounded rows.
pub(crate) trait Rounds: Weights {
    /// The product with rows that are rounded to this many bits, on a processor that [can](has_rounded).
    fn rounded(problem: &Product<'_, Self>, bits: InputBits, output: &mut Places<'_>);
}

/// [`product`](super::product) with rows that are rounded. A row with an infinity or NaN gives NaN. A row's result depends neither on
/// the other rows nor on the number of threads.
///
/// int8 matrices have a step for each row. Matrices of blocks have one for each 32 inputs: to 8 bits the largest magnitude of the 32 over 127, and
/// 14 bits are the 16 of [`product`](super::product). Blocks of floats multiply rows as they are, and so do processors without FMA or F16C.
///
/// # Panics
/// If a slice does not have the length that the sizes imply, or the processor [cannot](has_rounded).
pub fn rounded_product<W: RoundedMatrix>(problem: &Product<'_, W>, bits: InputBits, output: &mut [f32]) {
    rounded_product_into(problem, bits, &mut Places::of(output));
}

/// [`rounded_product`] into a new result.
///
/// # Panics
/// If a slice, or the result, does not have the length that the sizes imply, these features of a new result were written before, or the processor
/// [cannot](has_rounded).
pub fn rounded_product_into<W: RoundedMatrix>(problem: &Product<'_, W>, bits: InputBits, output: &mut Places<'_>) {
    assert!(has_rounded(), "rounded_product: the processor has neither AVX2 nor NEON; call `product`");
    W::rounded(problem, bits, output);
}

impl Rounds for Int8Matrix<'_> {
    fn rounded(problem: &Product<'_, Self>, bits: InputBits, output: &mut Places<'_>) {
        let rows = check(problem, output.len());
        if rows * problem.matrix.outputs() == 0 {
            return;
        }
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if let Some(engine) = engine::Engine::of(rows, &problem.matrix) {
            return tiles::product(engine, problem, bits, output);
        }
        few::product(problem, bits, output.whole());
    }
}

#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests {
    use super::super::problem::InputElements;
    use super::engine::Engine;
    use super::*;

    /// All kernels compute the same integers, so their results have the same bits.
    #[test]
    fn every_engine_has_the_bits_of_the_products_of_few_rows() {
        for (rows, inputs, outputs, blocks) in [
            (16, 64, 32, [1, 64]),
            (33, 200, 70, [1, 200]),
            (70, 130, 33, [3, 40]),
            (40, 20_000, 5, [1, 20_000]),
            (1030, 7, 3, [2, 7]),
            (20, 256, 40, [1, 32]),
        ] {
            let number = |at: usize| (at.wrapping_mul(2_654_435_761) >> 7 & 0xffff) as f32 / 32768.0 - 1.0;
            let input: Vec<f32> = (0..rows * inputs).map(number).collect();
            let elements: Vec<i8> = (0..inputs * outputs).map(|at| (number(at + 99) * 128.0) as i8).collect();
            let [output_block, input_block] = blocks;
            let count = outputs.div_ceil(output_block) * inputs.div_ceil(input_block);
            let scales: Vec<f32> = (0..count).map(|at| number(at + 5)).collect();
            let matrix =
                Int8Matrix { elements: &elements, inputs, outputs, scales: &scales, output_block, input_block };
            let bias: Vec<f32> = (0..outputs).map(number).collect();
            let (width, first) = (outputs + 3, 2);
            let problem = Product {
                input: &input,
                elements: InputElements::F32,
                sequence: rows,
                matrix,
                bias: Some(&bias),
                width,
                first,
            };
            for bits in [InputBits::Eight, InputBits::Fourteen] {
                let mut expected = vec![7.0; rows * width];
                few::product(&problem, bits, &mut expected);
                for engine in Engine::ALL.iter().filter(|engine| engine.is_available()) {
                    let mut found = vec![7.0; rows * width];
                    tiles::product(*engine, &problem, bits, &mut Places::of(&mut found));
                    let differ = found.iter().zip(&expected).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
                    assert_eq!(differ, 0, "{engine:?}, {bits:?}, {rows} rows, {inputs} to {outputs}");
                }
            }
        }
    }
}
