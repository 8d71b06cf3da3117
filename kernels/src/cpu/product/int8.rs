//! A matrix of int8 with scales: a quarter of the memory, so four times the speed where memory is what limits.
//!
//! Elements become f32 in registers, on their way to the product; scales come behind the sums of their block.

use std::ops::Range;

use pulp::Simd;

use super::{Path, Weights};

/// Rows of a sequence up to which a matrix is streamed; beyond, blocks of it become f32 once for all rows.
const FEW: usize = 8;

/// Outputs whose weights are met at once.
const TOGETHER: usize = 4;

/// Rows that a weight in a register meets.
const PAIR: usize = 2;

/// A matrix from `inputs` to `outputs` features, `element · scale of its block`.
///
/// Output `o` and input `i` are in block `[o / output_block, i / input_block]`.
#[derive(Debug, Clone, Copy)]
pub struct Int8Matrix<'a> {
    /// `[outputs, inputs]`.
    pub elements: &'a [i8],
    /// Features that go in.
    pub inputs: usize,
    /// Features that come out.
    pub outputs: usize,
    /// `[outputs / output_block, inputs / input_block]`, both rounded up.
    pub scales: &'a [f32],
    /// Outputs that share a scale.
    pub output_block: usize,
    /// Inputs that share a scale.
    pub input_block: usize,
}

impl<'a> Int8Matrix<'a> {
    /// The weights of an output, and the scales of its blocks.
    #[inline(always)]
    fn run(&self, output: usize) -> (&'a [i8], &'a [f32]) {
        let blocks = self.inputs.div_ceil(self.input_block);
        let (elements, scales) = (self.elements, self.scales);
        (&elements[output * self.inputs..][..self.inputs], &scales[output / self.output_block * blocks..][..blocks])
    }

    /// The sums of `N` outputs from `first` on and `M` rows.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "several slices at one index")]
    fn dot<S: Simd, const N: usize, const M: usize>(&self, simd: S, first: usize, rows: [&[f32]; M]) -> [[f32; N]; M] {
        let mut runs = [(&[][..], &[][..]); N];
        for n in 0..N {
            runs[n] = self.run(first + n);
        }
        let mut totals = [[simd.splat_f32s(0.0); N]; M];
        let mut rest = [[0.0; N]; M];
        for (block, start) in (0..self.inputs).step_by(self.input_block).enumerate() {
            let own = start..self.inputs.min(start + self.input_block);
            let mut weights = [&[][..]; N];
            for n in 0..N {
                weights[n] = &runs[n].0[own.clone()];
            }
            let mut inputs = [&[][..]; M];
            for m in 0..M {
                inputs[m] = S::as_simd_f32s(&rows[m][own.clone()]).0;
            }
            let mut sums = [[simd.splat_f32s(0.0); N]; M];
            let count = own.len() / S::F32_LANES;
            for at in 0..count {
                for n in 0..N {
                    // SAFETY: every run has the elements of all vectors, and every input as many vectors.
                    let elements = unsafe { weights[n].get_unchecked(at * S::F32_LANES..(at + 1) * S::F32_LANES) };
                    let weight = widen(simd, elements);
                    for m in 0..M {
                        // SAFETY: as above.
                        let input = unsafe { *inputs[m].get_unchecked(at) };
                        sums[m][n] = simd.mul_add_e_f32s(weight, input, sums[m][n]);
                    }
                }
            }
            let done = count * S::F32_LANES;
            for m in 0..M {
                for n in 0..N {
                    let scale = runs[n].1[block];
                    totals[m][n] = simd.mul_add_e_f32s(sums[m][n], simd.splat_f32s(scale), totals[m][n]);
                    let products = weights[n][done..].iter().zip(&rows[m][own.start + done..own.end]);
                    rest[m][n] += scale * products.map(|(weight, input)| f32::from(*weight) * input).sum::<f32>();
                }
            }
        }
        for m in 0..M {
            for n in 0..N {
                rest[m][n] += simd.reduce_sum_f32s(totals[m][n]);
            }
        }
        rest
    }

    /// The sums of `N` outputs from `at` on behind `first`, for every row.
    #[inline(always)]
    fn rows<S: Simd, const N: usize>(&self, simd: S, input: &[f32], at: usize, first: usize, sums: &mut [f32]) {
        let outputs = sums.len() / (input.len() / self.inputs);
        let mut rows = input.chunks_exact(PAIR * self.inputs);
        let mut sums = sums.chunks_exact_mut(PAIR * outputs);
        for (rows, sums) in (&mut rows).zip(&mut sums) {
            let (one, other) = rows.split_at(self.inputs);
            let [one, other] = self.dot::<S, N, PAIR>(simd, first + at, [one, other]);
            sums[at..at + N].copy_from_slice(&one);
            sums[outputs + at..][..N].copy_from_slice(&other);
        }
        if !rows.remainder().is_empty() {
            let [one] = self.dot::<S, N, 1>(simd, first + at, [rows.remainder()]);
            sums.into_remainder()[at..at + N].copy_from_slice(&one);
        }
    }
}

/// Whole numbers as floats.
#[inline(always)]
fn widen<S: Simd>(simd: S, elements: &[i8]) -> S::f32s {
    let mut wide = simd.splat_f32s(0.0);
    let places: &mut [f32] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut wide));
    for (place, element) in places.iter_mut().zip(elements) {
        *place = f32::from(*element);
    }
    wide
}

impl Weights for Int8Matrix<'_> {
    fn inputs(&self) -> usize {
        self.inputs
    }

    fn outputs(&self) -> usize {
        self.outputs
    }

    fn check(&self) {
        let Self { elements, inputs, outputs, scales, output_block, input_block } = *self;
        let size = outputs * inputs;
        assert!(elements.len() == size, "product: `matrix` has {} elements, expected {size}", elements.len());
        assert!(
            output_block > 0 && input_block > 0,
            "product: blocks of {output_block} outputs and {input_block} inputs"
        );
        let blocks = outputs.div_ceil(output_block) * inputs.div_ceil(input_block);
        assert!(scales.len() == blocks, "product: {} scales for {blocks} blocks", scales.len());
    }

    fn path(&self, sequence: usize) -> Path {
        if sequence <= FEW { Path::Stream } else { Path::Tiles }
    }

    #[inline(always)]
    fn stream<S: Simd>(&self, simd: S, input: &[f32], first: usize, sums: &mut [f32]) {
        let outputs = sums.len() / (input.len() / self.inputs);
        let whole = outputs / TOGETHER * TOGETHER;
        for at in (0..whole).step_by(TOGETHER) {
            self.rows::<S, TOGETHER>(simd, input, at, first, sums);
        }
        for at in whole..outputs {
            self.rows::<S, 1>(simd, input, at, first, sums);
        }
    }

    #[inline(always)]
    fn block<'r>(&'r self, outputs: &Range<usize>, features: &Range<usize>, room: &'r mut [f32]) -> (&'r [f32], usize) {
        for (output, run) in outputs.clone().zip(room.chunks_exact_mut(features.len())) {
            let (elements, scales) = self.run(output);
            let mut at = features.start;
            while at < features.end {
                let block = at / self.input_block;
                let end = features.end.min((block + 1) * self.input_block);
                let places = &mut run[at - features.start..end - features.start];
                for (place, element) in places.iter_mut().zip(&elements[at..end]) {
                    *place = f32::from(*element) * scales[block];
                }
                at = end;
            }
        }
        (room, features.len())
    }
}
