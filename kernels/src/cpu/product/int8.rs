//! A matrix of int8 with scales: a quarter of the memory, so four times the speed where products are memory-bound.
//!
//! Elements become f32 in registers; scales multiply the sums of their block.

use std::ops::Range;

use pulp::Simd;

use super::computed;
#[cfg(target_arch = "x86_64")]
use super::parts::{self, InParts, Panels};
use super::problem::{PART, Path, Product, Weights, after, few_widened};
use super::runs::{Runs, all};
use super::tiles::tiles;
use crate::contract::{check_len, product};
use crate::cpu::places::Places;
use crate::cpu::stream::{LINE, prefetch_at, rest_sums, vector_sums};

/// A matrix from `inputs` to `outputs` features, `element · scale of its block`.
///
/// Output `o` and input `i` are in block `[o / output_block, i / input_block]`.
///
/// On a processor with AMX, sequences of 64 rows and more, or 32 if an output has one scale, are multiplied as parts of bf16, as a
/// [`Matrix`](super::Matrix) is.
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
    pub(super) fn run(&self, output: usize) -> (&'a [i8], &'a [f32]) {
        let blocks = self.inputs.div_ceil(self.input_block);
        let (elements, scales) = (self.elements, self.scales);
        (&elements[output * self.inputs..][..self.inputs], &scales[output / self.output_block * blocks..][..blocks])
    }
}

impl Int8Matrix<'_> {
    /// Whether an output has one scale.
    #[cfg(target_arch = "x86_64")]
    fn has_one_scale(&self) -> bool {
        self.input_block >= self.inputs
    }
}

impl Runs for Int8Matrix<'_> {
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "several slices at one index")]
    fn dot<S: Simd, const N: usize, const M: usize>(
        &self,
        simd: S,
        first: usize,
        rows: [&[f32]; M],
        next: bool,
    ) -> [[f32; N]; M] {
        let next = next.then_some(N * self.inputs);
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
                inputs[m] = &rows[m][own.clone()];
            }
            let sums = vector_sums(simd, weights, inputs, next);
            let remainder = rest_sums::<S, i8, N, M>(weights, inputs);
            for m in 0..M {
                for n in 0..N {
                    let scale = runs[n].1[block];
                    totals[m][n] = simd.mul_add_e_f32s(sums[m][n], simd.splat_f32s(scale), totals[m][n]);
                    rest[m][n] += scale * remainder[m][n];
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
}

#[cfg(target_arch = "x86_64")]
impl InParts for Int8Matrix<'_> {
    fn fewest_rows(&self) -> usize {
        if self.has_one_scale() { 32 } else { 64 }
    }

    fn scale(&self, output: usize) -> f32 {
        if self.has_one_scale() { self.scales[output / self.output_block] } else { 1.0 }
    }

    #[inline(always)]
    fn prefetch(&self, output: usize, features: Range<usize>) {
        let first = output * self.inputs;
        (first + features.start..first + features.end).step_by(LINE).for_each(|at| prefetch_at(self.elements, at));
    }

    fn pack_parts(&self, outputs: &Range<usize>, features: &Range<usize>, panels: Panels<'_>) {
        if self.has_one_scale() {
            // An integer of 8 bits is a bf16.
            panels.pack_runs(self.inputs, |n| &self.run(outputs.start + n).0[features.clone()]);
        } else {
            panels.pack_unpacked(self, outputs, features);
        }
    }
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
        check_len("product", "matrix", elements.len(), product(&[outputs, inputs]));
        assert!(
            output_block > 0 && input_block > 0,
            "product: blocks of {output_block} outputs and {input_block} inputs"
        );
        let blocks = outputs.div_ceil(output_block) * inputs.div_ceil(input_block);
        assert!(scales.len() == blocks, "product: {} scales for {blocks} blocks", scales.len());
    }

    fn path(&self, sequence: usize) -> Path {
        // For more rows, blocks are converted to f32 once for all of them.
        if sequence <= few_widened() { Path::Stream } else { Path::Tiles }
    }

    #[inline(always)]
    fn stream<S: Simd>(&self, simd: S, input: &[f32], first: usize, sums: &mut [f32]) {
        all(simd, self, input, self.inputs, first, sums);
    }

    #[inline(always)]
    fn pack(&self, outputs: &Range<usize>, features: &Range<usize>, depth: usize, place: &mut [f32]) {
        let mut at = features.start;
        while at < features.end {
            let block = at / self.input_block;
            let own = at..features.end.min((block + 1) * self.input_block);
            at = own.end;
            for (output, run) in outputs.clone().zip(place.chunks_exact_mut(depth)) {
                let (elements, scales) = self.run(output);
                let (elements, scale) = (&elements[own.clone()], scales[block]);
                let places = &mut run[own.start - features.start..][..elements.len()];
                for (place, element) in places.iter_mut().zip(elements) {
                    *place = f32::from(*element) * scale;
                }
            }
        }
    }

    #[inline(always)]
    fn fetch(&self, own: &Range<usize>, block: &Range<usize>, features: &Range<usize>, _at: usize, part: usize) {
        let (first, feature) = after(own, block, features, self.inputs);
        if (part * PART).is_multiple_of(LINE) {
            for n in 0..own.len() {
                prefetch_at(self.elements, (first + n) * self.inputs + feature + part * PART);
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn in_parts(problem: &Product<'_, Self>, output: &mut Places<'_>) -> bool {
        parts::product(problem, output)
    }

    fn product(problem: &Product<'_, Self>, output: &mut Places<'_>) {
        computed(problem, output);
    }

    fn packed(problem: &Product<'_, Self>, output: &mut Places<'_>) {
        tiles(problem, output);
    }
}
