//! Weights as parts of bf16, in panels of 32 outputs.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::pack::{PART, PARTS, pack_bf16, pack_runs, pack_runs_of_features};
use super::split::{DEPTH, INPUTS};
use crate::cpu::element::Element;
use crate::cpu::product::panel::{self, OUTPUTS, TILE, VECTORS};
use crate::cpu::product::problem::{Weights, after};

/// Features of three parts that are packed at a time. Half of a first-level cache holds a panel of them.
const SOME: usize = 128;

/// Most panels.
pub(super) const PANELS: usize = 8;

/// Floats of the scratch of [`Panels`].
pub(super) const SCRATCH: usize = OUTPUTS * DEPTH;

/// A matrix that can be multiplied as parts of bf16.
pub(in crate::cpu::product) trait InParts: Weights {
    /// Fewest rows of a sequence for which that is faster, since the weights have to be packed.
    fn fewest_rows(&self) -> usize;

    /// Whether this matrix can be packed.
    fn has_parts(&self) -> bool {
        true
    }

    /// Whether every weight is known to be a bf16.
    fn is_bf16(&self) -> bool {
        false
    }

    /// Features that are packed at a time: whole steps, at most [`DEPTH`].
    fn depth(&self) -> usize {
        SOME
    }

    /// Prefetches some features of an output, if there is such a one, that are unpacked soon.
    fn prefetch(&self, _output: usize, _features: Range<usize>) {}

    /// What the product of an output with what was packed is multiplied by.
    fn scale(&self, _output: usize) -> f32 {
        1.0
    }

    /// Packs some features of some outputs.
    fn pack_parts(&self, outputs: &Range<usize>, features: &Range<usize>, panels: Panels<'_>) {
        panels.pack_unpacked(self, outputs, features);
    }
}

/// How a panel was packed, in bytes but for the number of parts. Its parts follow each other in a step.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Packed {
    /// Parts that are not all zero, or more.
    pub parts: usize,
    /// From a step to the next.
    pub step: usize,
    /// From the first 16 outputs to the others.
    pub vector: usize,
}

/// Bytes that a panel of so many features has room for.
pub(super) fn bytes(features: usize) -> usize {
    features.div_ceil(INPUTS) * PARTS * PART
}

/// Where the parts of some outputs go.
pub(in crate::cpu::product) struct Panels<'a> {
    features: usize,
    scratch: &'a mut [f32],
    place: &'a mut [u8],
    largest: &'a mut [f32],
    packed: &'a mut [Packed; PANELS],
}

impl<'a> Panels<'a> {
    /// Places for `features`, at most [`DEPTH`], of as many outputs as `largest` has, whose largest magnitudes are raised to those of the weights:
    /// NaN if one is NaN. `place` has [`bytes`] for each panel.
    ///
    /// # Panics
    /// If the processor does not have the instructions, or a slice has another length.
    pub(super) fn new(
        features: usize,
        scratch: &'a mut [f32],
        place: &'a mut [u8],
        largest: &'a mut [f32],
        packed: &'a mut [Packed; PANELS],
    ) -> Self {
        let panels = largest.len().div_ceil(OUTPUTS);
        assert!(panel::is_available(), "the processor has no AVX-512");
        assert!(scratch.len() == SCRATCH && (1..=DEPTH).contains(&features));
        assert!(panels <= PANELS && place.len() == panels * bytes(features));
        Self { features, scratch, place, largest, packed }
    }

    /// Packs numbers of bf16: a run of each output, counted from the first.
    pub fn pack_bf16<'e>(self, run: impl Fn(usize) -> &'e [u8]) {
        let bytes = bytes(self.features);
        let packed = Packed { parts: 1, step: TILE, vector: bytes / PARTS / VECTORS };
        let panels = self.place.chunks_exact_mut(bytes).zip(self.largest.chunks_mut(OUTPUTS));
        for (at, (place, largest)) in panels.enumerate() {
            let runs = runs(largest.len(), |n| run(at * OUTPUTS + n));
            // SAFETY: the processor has the instructions, by `new`.
            unsafe { pack_bf16(&runs, &mut place[..bytes / PARTS], largest) };
            self.packed[at] = packed;
        }
    }

    /// Packs elements: a run of each output, counted from the first, at a distance of `stride` elements. The next features follow them.
    pub fn pack_runs<'e, E: Element>(self, stride: usize, run: impl Fn(usize) -> &'e [E]) {
        let (outputs, distance) = (self.largest.len(), OUTPUTS * stride);
        let panels = self.place.chunks_exact_mut(bytes(self.features)).zip(self.largest.chunks_mut(OUTPUTS));
        for (at, (place, largest)) in panels.enumerate() {
            let first = at * OUTPUTS;
            // The next panel, or the first one of the next features.
            let ahead = if first + OUTPUTS < outputs { distance } else { self.features.wrapping_sub(at * distance) };
            let runs = runs(largest.len(), |n| run(first + n));
            // SAFETY: the processor has the instructions, by `new`.
            let parts = unsafe { pack_runs(&runs, ahead, place, largest) };
            self.packed[at] = in_steps(parts);
        }
    }

    /// Packs elements: a run of each feature, counted from the first, which has all outputs. The next features are `ahead` elements after these.
    pub fn pack_runs_of_features<'e, E: Element>(self, ahead: usize, run: impl Fn(usize) -> &'e [E]) {
        let panels = self.place.chunks_exact_mut(bytes(self.features)).zip(self.largest.chunks_mut(OUTPUTS));
        let last = panels.len() - 1;
        for (at, (place, largest)) in panels.enumerate() {
            let run = |feature| run(feature).get(at * OUTPUTS..).unwrap_or_default();
            let ahead = if at < last { OUTPUTS } else { ahead.wrapping_sub(at * OUTPUTS) };
            // SAFETY: the processor has the instructions, by `new`.
            let parts = unsafe { pack_runs_of_features(self.features, run, ahead, place, largest) };
            self.packed[at] = in_steps(parts);
        }
    }

    /// Packs what the matrix unpacks along the inputs.
    pub fn pack_unpacked<W: InParts>(self, matrix: &W, outputs: &Range<usize>, features: &Range<usize>) {
        let panels = self.place.chunks_exact_mut(bytes(self.features)).zip(self.largest.chunks_mut(OUTPUTS));
        for (at, (place, largest)) in panels.enumerate() {
            let first = outputs.start + at * OUTPUTS;
            let own = first..first + largest.len();
            let next = after(&own, outputs, features, matrix.inputs());
            Arch::new().dispatch(Unpack { matrix, outputs: own, features, next, place: &mut *self.scratch });
            let runs = runs(largest.len(), |n| &self.scratch[n * DEPTH..][..self.features]);
            // SAFETY: the processor has the instructions, by `new`.
            let parts = unsafe { pack_runs(&runs, 0, place, largest) };
            self.packed[at] = in_steps(parts);
        }
    }
}

/// The runs of a panel, of which those after the last output are empty.
fn runs<'e, E>(outputs: usize, run: impl Fn(usize) -> &'e [E]) -> [&'e [E]; OUTPUTS] {
    std::array::from_fn(|n| if n < outputs { run(n) } else { &[] })
}

/// A panel with room for all parts in each step.
fn in_steps(parts: usize) -> Packed {
    Packed { parts, step: PARTS * PART, vector: TILE }
}

struct Unpack<'a, W> {
    matrix: &'a W,
    outputs: Range<usize>,
    features: &'a Range<usize>,
    /// The first output and feature of what is unpacked after these.
    next: (usize, usize),
    place: &'a mut [f32],
}

impl<W: InParts> WithSimd for Unpack<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let (next, feature) = self.next;
        let ahead = feature..feature + self.features.len();
        for (n, (output, place)) in self.outputs.zip(self.place.chunks_exact_mut(DEPTH)).enumerate() {
            self.matrix.prefetch(next + n, ahead.clone());
            self.matrix.pack(&(output..output + 1), self.features, DEPTH, place);
        }
    }
}
