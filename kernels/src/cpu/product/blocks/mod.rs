//! Matrices of blocks, multiplied as they are stored.
//!
//! The floats of a few rows are rounded to 16 bits, with a scale for each 32 of them, and multiplied by the integers of the blocks. For more rows
//! blocks become f32, a tile at a time. So they do for all without AVX2. Where the caller allows that rows are rounded to 16 or 8 bits, many rows are
//! tiles of bytes on AVX-512 VNNI or AMX. On AMX many rows are multiplied as parts of bf16, and so are those stated to be bf16 by bf16 on AVX512-BF16.

#[cfg(target_arch = "x86_64")]
mod bytes;
#[cfg(target_arch = "x86_64")]
mod dot;
#[cfg(target_arch = "x86_64")]
mod few;
#[cfg(target_arch = "x86_64")]
mod formats;
#[cfg(target_arch = "x86_64")]
mod k_formats;
#[cfg(target_arch = "x86_64")]
mod pairs;
#[cfg(target_arch = "x86_64")]
mod rows;

use std::ops::Range;

use burn_deepspeed_core::block::BlockFormat;
use burn_deepspeed_core::data_type::InputBits;
use bytemuck::Pod;
use half::{bf16, f16};
use pulp::Simd;

#[cfg(target_arch = "x86_64")]
use self::rows::Bits;
use super::computed;
use super::matrix::Matrix;
#[cfg(target_arch = "x86_64")]
use super::parts::{self, InParts, Panels};
use super::problem::{PART, Path, Product, Weights, after};
use super::rounded::Rounds;
use super::runs::{Runs, all};
use super::tiles::tiles;
use crate::contract::{check_len, product};
use crate::cpu::element::Element;
use crate::cpu::places::Places;
use crate::cpu::stream::{LINE, prefetch_at, rest_sums, vector_sums};

/// Most rows of a sequence for which blocks are multiplied as they are without tiles of bytes. For more rows they become f32 once for all of
/// them.
const FEW: usize = 8;

/// Elements that become f32 at a time: the largest block.
const SOME: usize = 256;

/// A matrix from `inputs` to `outputs` features, in blocks along the inputs.
///
/// Rows of sequences of up to eight rows are rounded to 16 bits if the processor has AVX2, FMA and F16C and the format is not one of floats: an
/// element is off by at most a 65,534th of the largest magnitude among its 32 neighbours. [`rounded_product`](super::rounded_product) does the same
/// for longer sequences with AVX-512 VNNI, but for more than 16 rows with Q2_K, Q3_K and Q6_K, which take f32; or it rounds rows to 8 bits.
///
/// On a processor with AMX, sequences of 16 rows and more by bf16 or f16, and of 48 and more by other formats, are multiplied as parts of bf16, as accurately as in
/// f32; so are inputs that are [stated](Product::elements) to be bf16 by bf16 on AVX512-BF16. Magnitudes below 2^-126 then count as 0, unless they are in a row or an output
/// without any above 2^-40. A row's result depends neither on the other rows nor on the number of threads.
#[derive(Debug, Clone, Copy)]
pub struct BlockMatrix<'a> {
    /// The format of all blocks.
    pub format: BlockFormat,
    /// `[outputs, blocks of a row]`.
    pub blocks: &'a [u8],
    /// Features that go in.
    pub inputs: usize,
    /// Features that come out.
    pub outputs: usize,
}

impl<'a> BlockMatrix<'a> {
    #[inline(always)]
    fn row_bytes(&self) -> usize {
        self.inputs / self.format.elements() * self.format.bytes()
    }

    /// The blocks of an output.
    #[inline(always)]
    fn run(&self, output: usize) -> &'a [u8] {
        let bytes = self.row_bytes();
        let blocks = self.blocks;
        &blocks[output * bytes..][..bytes]
    }

    /// Writes some features of an output, which begin where 32 elements do, as f32.
    #[inline(always)]
    fn unpack(&self, output: usize, features: &Range<usize>, into: &mut [f32]) {
        let run = self.run(output);
        #[cfg(target_arch = "x86_64")]
        if dot::unpack(self.format, run, features.clone(), into) {
            return;
        }
        let (elements, bytes) = (self.format.elements(), self.format.bytes());
        if elements == 1 {
            return self.format.dequantise(&run[features.start * bytes..features.end * bytes], into);
        }
        let mut values = [0.0; SOME];
        for block in features.start / elements..features.end.div_ceil(elements) {
            self.format.dequantise(&run[block * bytes..][..bytes], &mut values[..elements]);
            let own = features.start.max(block * elements)..features.end.min((block + 1) * elements);
            let place = &mut into[own.start - features.start..own.end - features.start];
            place.copy_from_slice(&values[own.start - block * elements..own.end - block * elements]);
        }
    }
}

/// The product with blocks of one float each, unless the bytes begin in the middle of one.
fn floats<E: Element + Pod>(problem: &Product<'_, BlockMatrix<'_>>, output: &mut Places<'_>) -> Option<()> {
    let Product { input, elements: known, sequence, matrix, bias, width, first } = *problem;
    let BlockMatrix { blocks, inputs, outputs, .. } = matrix;
    let elements = bytemuck::try_cast_slice::<u8, E>(blocks).ok()?;
    let matrix = Matrix { elements, inputs, outputs, input_stride: 1, output_stride: inputs };
    super::product_into(&Product { input, elements: known, sequence, matrix, bias, width, first }, output);
    Some(())
}

impl Runs for BlockMatrix<'_> {
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "several slices at one index")]
    fn dot<S: Simd, const N: usize, const M: usize>(
        &self,
        simd: S,
        first: usize,
        rows: [&[f32]; M],
        _next: bool,
    ) -> [[f32; N]; M] {
        let mut totals = [[0.0; N]; M];
        let mut values = [[0.0; SOME]; N];
        for start in (0..self.inputs).step_by(SOME) {
            let own = start..self.inputs.min(start + SOME);
            let mut weights = [&[][..]; N];
            for n in 0..N {
                self.unpack(first + n, &own, &mut values[n][..own.len()]);
            }
            for n in 0..N {
                weights[n] = &values[n][..own.len()];
            }
            let mut inputs = [&[][..]; M];
            for m in 0..M {
                inputs[m] = &rows[m][own.clone()];
            }
            let sums = vector_sums(simd, weights, inputs, None);
            let rest = rest_sums::<S, f32, N, M>(weights, inputs);
            for m in 0..M {
                for n in 0..N {
                    totals[m][n] += simd.reduce_sum_f32s(sums[m][n]) + rest[m][n];
                }
            }
        }
        totals
    }
}

impl Weights for BlockMatrix<'_> {
    fn inputs(&self) -> usize {
        self.inputs
    }

    fn outputs(&self) -> usize {
        self.outputs
    }

    fn check(&self) {
        let Self { format, blocks, inputs, outputs } = *self;
        let row = format.row_bytes(inputs);
        assert!(row.is_some(), "product: rows of {inputs} elements are no whole number of blocks of {format}");
        check_len("product", "matrix", blocks.len(), product(&[outputs, row.unwrap_or_default()]));
    }

    fn path(&self, sequence: usize) -> Path {
        if sequence <= FEW { Path::Stream } else { Path::Tiles }
    }

    #[inline(always)]
    fn stream<S: Simd>(&self, simd: S, input: &[f32], first: usize, sums: &mut [f32]) {
        all(simd, self, input, self.inputs, first, sums);
    }

    #[inline(always)]
    fn pack(&self, outputs: &Range<usize>, features: &Range<usize>, depth: usize, place: &mut [f32]) {
        for (output, run) in outputs.clone().zip(place.chunks_exact_mut(depth)) {
            self.unpack(output, features, &mut run[..features.len()]);
        }
    }

    #[inline(always)]
    fn fetch(&self, own: &Range<usize>, block: &Range<usize>, features: &Range<usize>, _at: usize, part: usize) {
        let (elements, bytes) = (self.format.elements(), self.format.bytes());
        let (first, feature) = after(own, block, features, self.inputs);
        let (from, to) = ((feature + part * PART) * bytes / elements, (feature + (part + 1) * PART) * bytes / elements);
        // Once for each line.
        if from / LINE != to / LINE || part == 0 {
            for n in 0..own.len() {
                prefetch_at(self.blocks, (first + n) * self.row_bytes() + from);
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn in_parts(problem: &Product<'_, Self>, output: &mut Places<'_>) -> bool {
        parts::product(problem, output)
    }

    fn product(problem: &Product<'_, Self>, output: &mut Places<'_>) {
        let format = problem.matrix.format;
        #[cfg(target_arch = "x86_64")]
        if problem.sequence <= FEW && has_integers(format) {
            return rounded(problem, Bits::Sixteen, output);
        }
        let written = match format {
            BlockFormat::F32 => floats::<f32>(problem, output),
            BlockFormat::F16 => floats::<f16>(problem, output),
            BlockFormat::BF16 => floats::<bf16>(problem, output),
            _ => None,
        };
        written.unwrap_or_else(|| computed(problem, output));
    }

    fn packed(problem: &Product<'_, Self>, output: &mut Places<'_>) {
        tiles(problem, output);
    }
}

#[cfg(target_arch = "x86_64")]
impl InParts for BlockMatrix<'_> {
    fn fewest_rows(&self) -> usize {
        if matches!(self.format, BlockFormat::BF16 | BlockFormat::F16) { 16 } else { 48 }
    }

    fn is_bf16(&self) -> bool {
        self.format == BlockFormat::BF16
    }

    #[inline(always)]
    fn prefetch(&self, output: usize, features: Range<usize>) {
        let (elements, bytes) = (self.format.elements(), self.format.bytes());
        let first = output * self.row_bytes();
        let own = first + features.start / elements * bytes..first + features.end.div_ceil(elements) * bytes;
        own.step_by(LINE).for_each(|at| prefetch_at(self.blocks, at));
    }

    fn depth(&self) -> usize {
        if self.is_bf16() { parts::DEPTH } else { SOME }
    }

    fn pack_parts(&self, outputs: &Range<usize>, features: &Range<usize>, panels: Panels<'_>) {
        if self.is_bf16() {
            let bytes = size_of::<u16>() * features.start..size_of::<u16>() * features.end;
            return panels.pack_bf16(|n| &self.run(outputs.start + n)[bytes.clone()]);
        }
        match bytemuck::try_cast_slice::<u8, f16>(self.blocks) {
            Ok(numbers) if self.format == BlockFormat::F16 => {
                panels.pack_runs(self.inputs, |n| &numbers[(outputs.start + n) * self.inputs..][features.clone()]);
            }
            _ => panels.pack_unpacked(self, outputs, features),
        }
    }
}

impl Rounds for BlockMatrix<'_> {
    fn rounded(problem: &Product<'_, Self>, bits: InputBits, output: &mut Places<'_>) {
        #[cfg(target_arch = "x86_64")]
        if has_integers(problem.matrix.format) {
            return match bits {
                InputBits::Eight => rounded(problem, Bits::Eight, output),
                InputBits::Fourteen => rounded(problem, Bits::Sixteen, output),
            };
        }
        let _ = bits;
        super::product_into(problem, output);
    }
}

/// Whether rows can be rounded and multiplied with the integers of these blocks.
#[cfg(target_arch = "x86_64")]
fn has_integers(format: BlockFormat) -> bool {
    format.elements() > 1 && dot::is_available()
}

/// The product with rows that are rounded, or of more rows in f32 where that is as exact and faster.
#[cfg(target_arch = "x86_64")]
fn rounded(problem: &Product<'_, BlockMatrix<'_>>, bits: Bits, output: &mut Places<'_>) {
    match (bytes::Engine::of(problem.matrix.format, bits, problem.sequence), bits) {
        (Some(engine), _) => bytes::product(engine, problem, bits, output.whole()),
        (None, _) if problem.sequence <= FEW => few::rounded(problem, bits, output.whole()),
        (None, Bits::Eight) => few::in_f32(problem, bits, output),
        (None, Bits::Sixteen) => computed(problem, output),
    }
}
