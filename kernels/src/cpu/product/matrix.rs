//! A matrix of floats.
//!
//! ```text
//!            outputs of a task                       features
//!          ┌───────────────────┐                ┌──────────────┐
//! 8 inputs │ one run of memory │ ↓    4 outputs │ ──────────▶  │
//! 8 inputs │                   │                │              │
//!          └───────────────────┘                └──────────────┘
//!           `[in, out]`: sums in the            `[out, in]`: sums in
//!           first-level cache                    registers
//! ```

use std::ops::Range;

use pulp::Simd;

use super::computed;
#[cfg(target_arch = "x86_64")]
use super::parts::{self, InParts, Panels};
use super::problem::{DEPTH, Layout, PART, Path, Product, WIDTH, Weights, after, few_widened, has_wide_vectors};
use super::runs::{Runs, all};
use super::tiles::tiles;
use crate::contract::extent;
use crate::cpu::element::Element;
use crate::cpu::places::Places;
use crate::cpu::stream::{Columns, add_rows, dot, prefetch_at};

/// Most rows of a sequence for which an `[out, in]` matrix is streamed. `benches/project.rs` measures these limits.
const FEW_ALONG_INPUTS: usize = 8;

/// The same for `[in, out]`, which has to be transposed for a tile.
const FEW_ALONG_OUTPUTS: usize = 24;

/// Most rows of a sequence that are computed in tiles. For more rows, the `gemm` crate packs the matrix, unless it is `[out, in]` and vectors
/// have 16 floats: then tiles are faster for any number of rows.
const MANY: usize = 128;

/// Inputs whose weights are added together.
const TERMS: usize = 8;

/// A matrix from `inputs` to `outputs` features.
///
/// On a processor with AMX, sequences of 64 rows and more are multiplied as parts of bf16, as accurately as in f32. Magnitudes below 2^-126 then count as 0,
/// unless they are in a row or an output without any above 2^-40. A row's result depends neither on the other rows nor on the number of threads.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a, E = f32> {
    /// Its elements: f32, or `f16` or `bf16` of the crate `half`.
    pub elements: &'a [E],
    /// Features that go in.
    pub inputs: usize,
    /// Features that come out.
    pub outputs: usize,
    /// From one input to the next, in elements.
    pub input_stride: usize,
    /// From one output to the next. One of the two strides is 1 where the matrix is to be streamed.
    pub output_stride: usize,
}

impl<E: Element> Weights for Matrix<'_, E> {
    fn inputs(&self) -> usize {
        self.inputs
    }

    fn outputs(&self) -> usize {
        self.outputs
    }

    fn check(&self) {
        let needed = extent(&[self.inputs, self.outputs], &[self.input_stride, self.output_stride]);
        let len = self.elements.len();
        assert!(needed <= len, "product: `matrix` has {len} elements, its strides need {needed}");
    }

    fn path(&self, sequence: usize) -> Path {
        let few = match (self.input_stride, self.output_stride) {
            (1, _) if E::as_f32s(self.elements).is_none() => few_widened(),
            (1, _) => FEW_ALONG_INPUTS,
            (_, 1) => FEW_ALONG_OUTPUTS,
            _ => 0,
        };
        match sequence {
            sequence if sequence <= few => Path::Stream,
            sequence if sequence <= MANY || E::as_f32s(self.elements).is_none() => Path::Tiles,
            _ if self.input_stride == 1 && has_wide_vectors() => Path::Tiles,
            _ => Path::Packed,
        }
    }

    #[inline(always)]
    fn stream<S: Simd>(&self, simd: S, input: &[f32], first: usize, sums: &mut [f32]) {
        if self.output_stride == 1 {
            let whole = self.inputs / TERMS * TERMS;
            for at in (0..whole).step_by(TERMS) {
                self.add::<S, TERMS>(simd, input, at, first, sums);
            }
            for at in whole..self.inputs {
                self.add::<S, 1>(simd, input, at, first, sums);
            }
        } else {
            all(simd, self, input, self.inputs, first, sums);
        }
    }

    fn layout(&self) -> Layout {
        if self.output_stride == 1 && self.input_stride != 1 { Layout::Across } else { Layout::Along }
    }

    fn in_place(&self) -> Option<(&[f32], usize)> {
        E::as_f32s(self.elements).filter(|_| self.input_stride == 1).map(|elements| (elements, self.output_stride))
    }

    #[inline(always)]
    fn pack(&self, outputs: &Range<usize>, features: &Range<usize>, depth: usize, place: &mut [f32]) {
        let Self { elements, input_stride, output_stride, .. } = *self;
        if input_stride == 1 {
            for (output, run) in outputs.clone().zip(place.chunks_exact_mut(depth)) {
                widen(&elements[output * output_stride..][features.clone()], run);
            }
        } else if output_stride == 1 {
            for (feature, run) in features.clone().zip(place.chunks_exact_mut(WIDTH)) {
                let (run, rest) = run.split_at_mut(outputs.len());
                widen(&elements[feature * input_stride..][outputs.clone()], run);
                rest.fill(0.0);
            }
        } else {
            for (output, run) in outputs.clone().zip(place.chunks_exact_mut(depth)) {
                for (feature, element) in features.clone().zip(run) {
                    *element = elements[feature * input_stride + output * output_stride].widen();
                }
            }
        }
    }

    #[inline(always)]
    fn fetch(&self, own: &Range<usize>, block: &Range<usize>, features: &Range<usize>, at: usize, part: usize) {
        let Self { elements, inputs, input_stride, output_stride, .. } = *self;
        if input_stride == 1 {
            let (first, feature) = after(own, block, features, inputs);
            for n in 0..own.len() {
                prefetch_at(elements, (first + n) * output_stride + feature + part * PART);
            }
        } else if output_stride == 1 {
            // Lines of the next features, distributed over the parts of all groups.
            let (groups, lines) = (block.len().div_ceil(own.len()), block.len().div_ceil(PART));
            let (parts, part) = (groups * (DEPTH / PART), at * (DEPTH / PART) + part);
            for line in part * lines * DEPTH / parts..(part + 1) * lines * DEPTH / parts {
                let feature = features.end + line / lines;
                prefetch_at(elements, feature * input_stride + block.start + line % lines * PART);
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

    /// On the `gemm` crate, if elements are f32.
    fn packed(problem: &Product<'_, Self>, output: &mut Places<'_>) {
        let Product { input, matrix, bias, width, first, .. } = *problem;
        let Matrix { inputs, outputs, .. } = matrix;
        let Some(elements) = E::as_f32s(matrix.elements) else { return tiles(problem, output) };
        let output = output.whole();
        let rows = input.len() / inputs;
        if let Some(bias) = bias {
            for row in output.chunks_exact_mut(width) {
                row[first..first + outputs].copy_from_slice(bias);
            }
        }
        let alpha = if bias.is_some() { 1.0 } else { 0.0 };
        // SAFETY: rows, columns and strides are within the slices, whose lengths were checked; only `output` is written.
        unsafe {
            gemm::gemm(
                rows,
                outputs,
                inputs,
                output.as_mut_ptr().add(first),
                1,
                width as isize,
                bias.is_some(),
                input.as_ptr(),
                1,
                inputs as isize,
                elements.as_ptr(),
                matrix.output_stride as isize,
                matrix.input_stride as isize,
                alpha,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::Rayon(0),
            );
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl<E: Element> InParts for Matrix<'_, E> {
    fn fewest_rows(&self) -> usize {
        64
    }

    fn has_parts(&self) -> bool {
        self.input_stride == 1 || self.output_stride == 1
    }

    fn pack_parts(&self, outputs: &Range<usize>, features: &Range<usize>, panels: Panels<'_>) {
        let Self { elements, input_stride, output_stride, .. } = *self;
        if input_stride == 1 {
            panels.pack_runs(output_stride, |n| &elements[(outputs.start + n) * output_stride..][features.clone()]);
        } else {
            panels.pack_runs_of_features(features.len() * input_stride, |n| {
                &elements[(features.start + n) * input_stride..][outputs.clone()]
            });
        }
    }
}

#[allow(private_bounds, reason = "the kernels are written for these")]
impl<E: Element> Matrix<'_, E> {
    /// `[in, out]`: adds the weights of `N` inputs from `at` on, each a run of memory, to the sums of every row.
    #[inline(always)]
    fn add<S: Simd, const N: usize>(&self, simd: S, input: &[f32], at: usize, first: usize, sums: &mut [f32]) {
        let Self { elements, inputs, input_stride, .. } = *self;
        let outputs = sums.len() / (input.len() / inputs);
        let runs: [&[E]; N] = std::array::from_fn(|n| &elements[(at + n) * input_stride + first..][..outputs]);
        add_rows(simd, runs, input, Columns { stride: inputs, first: at }, sums);
    }
}

/// Writes as many elements in f32.
#[inline(always)]
fn widen<E: Element>(elements: &[E], places: &mut [f32]) {
    places.iter_mut().zip(elements).for_each(|(place, element)| *place = element.widen());
}

/// `[out, in]`.
impl<E: Element> Runs for Matrix<'_, E> {
    #[inline(always)]
    fn dot<S: Simd, const N: usize, const M: usize>(
        &self,
        simd: S,
        first: usize,
        rows: [&[f32]; M],
        next: bool,
    ) -> [[f32; N]; M] {
        let Self { elements, inputs, output_stride, .. } = *self;
        let runs: [&[E]; N] = std::array::from_fn(|n| &elements[(first + n) * output_stride..][..inputs]);
        dot(simd, runs, rows, next.then_some(N * output_stride))
    }
}
