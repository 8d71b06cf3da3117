//! The integers of 32 outputs in the order of the instructions, and their factors.

use std::arch::x86_64::{
    __m512i, _mm256_storeu_si256, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_mullo_epi32, _mm512_set1_epi8,
    _mm512_set1_epi32, _mm512_setzero_si512, _mm512_storeu_si512,
};
use std::ops::Range;

use super::shape::Shape;
use crate::cpu::product::blocks::BlockMatrix;
use crate::cpu::product::blocks::formats::{Factors, Format};
use crate::cpu::product::blocks::rows::{CHUNK, GROUP};
use crate::cpu::product::panel::{LANES, OUTPUTS, STEP, VECTORS, pack};
use crate::cpu::scratch::with_scratch;

/// Chunks of a group.
const CHUNKS: usize = GROUP / CHUNK;

/// Bytes of a chunk of a vector of outputs.
pub(super) const TILE: usize = LANES * CHUNK;

/// 32 outputs.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    /// `[VECTORS, chunks, CHUNK / 4, LANES, 4]`.
    pub bytes: &'a [u8],
    /// `[steps, OUTPUTS]`; zeros after the last output.
    pub scales: &'a [[f32; OUTPUTS]],
    /// `[steps, OUTPUTS]`.
    pub minima: &'a [[f32; OUTPUTS]],
    /// `[steps, OUTPUTS]`: -128 times the sums of the integers, which undo that bytes of rows have no sign.
    pub offsets: &'a [[i32; OUTPUTS]],
}

/// The panels of some outputs.
pub(super) struct Panels<'a> {
    shape: Shape,
    floats: &'a [f32],
}

/// Floats of a panel.
pub(super) fn floats(shape: Shape) -> usize {
    of_bytes(shape) + shape.steps() * OUTPUTS * 3
}

/// Floats in whose place the bytes of a panel are.
fn of_bytes(shape: Shape) -> usize {
    shape.chunks * VECTORS * TILE / size_of::<f32>()
}

impl Panels<'_> {
    /// Packs the weights of some outputs.
    ///
    /// # Panics
    /// If the matrix has no such outputs, or another format.
    pub fn with<F: Format>(
        matrix: &BlockMatrix<'_>,
        outputs: Range<usize>,
        shape: Shape,
        work: impl FnOnce(&Panels<'_>),
    ) {
        let (count, runs) = (outputs.len().div_ceil(OUTPUTS), OUTPUTS * matrix.inputs / size_of::<f32>());
        with_scratch(count * floats(shape) + runs, |scratch| {
            let (panels, runs) = scratch.split_at_mut(count * floats(shape));
            for (place, first) in panels.chunks_exact_mut(floats(shape)).zip(outputs.clone().step_by(OUTPUTS)) {
                let own = first..outputs.end.min(first + OUTPUTS);
                // SAFETY: the processor has the instructions: `product` has checked it.
                unsafe { pack_panel::<F>(matrix, own, shape, bytemuck::cast_slice_mut(runs), place) };
            }
            work(&Panels { shape, floats: panels });
        });
    }

    pub fn count(&self) -> usize {
        self.floats.len() / floats(self.shape)
    }

    pub fn panel(&self, at: usize) -> Panel<'_> {
        let own = &self.floats[at * floats(self.shape)..][..floats(self.shape)];
        let (bytes, factors) = own.split_at(of_bytes(self.shape));
        let (scales, rest) = factors.split_at(self.shape.steps() * OUTPUTS);
        let (minima, offsets) = rest.split_at(self.shape.steps() * OUTPUTS);
        let offsets: &[i32] = bytemuck::cast_slice(offsets);
        Panel {
            bytes: bytemuck::cast_slice(bytes),
            scales: scales.as_chunks().0,
            minima: minima.as_chunks().0,
            offsets: offsets.as_chunks().0,
        }
    }
}

/// `runs` is scratch for a byte of every input of a panel.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
fn pack_panel<F: Format>(
    matrix: &BlockMatrix<'_>,
    outputs: Range<usize>,
    shape: Shape,
    runs: &mut [u8],
    place: &mut [f32],
) {
    let chunks = matrix.inputs / CHUNK;
    let (bytes, factors) = place.split_at_mut(of_bytes(shape));
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(bytes);
    if outputs.len() < OUTPUTS || chunks < shape.chunks {
        factors.fill(0.0);
    }
    let (scales, rest) = factors.split_at_mut(shape.steps() * OUTPUTS);
    let (minima, offsets) = rest.split_at_mut(shape.steps() * OUTPUTS);
    let (scales, minima) = (scales.as_chunks_mut::<OUTPUTS>().0, minima.as_chunks_mut::<OUTPUTS>().0);
    for (o, place) in outputs.clone().zip(runs.chunks_exact_mut(matrix.inputs)).enumerate() {
        let (output, place) = place;
        let run = matrix.run(output);
        assert_eq!(run.len(), chunks * F::GROUP / CHUNKS);
        for (group, places) in place.chunks_mut(GROUP).enumerate() {
            let own = &run[group * F::GROUP..run.len().min((group + 1) * F::GROUP)];
            let mut factors = Factors::ZERO;
            // SAFETY: the processor has the instructions, and a run has whole blocks.
            unsafe { F::factors(own, &mut factors) };
            let steps = group * CHUNKS * F::PARTS..group * CHUNKS * F::PARTS + places.len() / CHUNK * F::PARTS;
            for (at, scales) in scales[steps.clone()].iter_mut().enumerate() {
                scales[o] = factors.scales[at];
            }
            if F::MINIMA {
                for (at, minima) in minima[steps].iter_mut().enumerate() {
                    minima[o] = factors.minima[at * 2 / F::PARTS];
                }
            }
            for (chunk, place) in places.as_chunks_mut::<CHUNK>().0.iter_mut().enumerate() {
                // SAFETY: the group has the chunk, since it has as many bytes, and the place 32.
                unsafe { _mm256_storeu_si256(place.as_mut_ptr().cast(), F::elements(own.as_ptr(), chunk)) };
            }
        }
    }
    let run = |n: usize| &runs[n * matrix.inputs..][..matrix.inputs];
    let runs = std::array::from_fn(|n| if n < outputs.len() { run(n) } else { &[] });
    pack(&runs, bytes, |total, _| total);
    let offsets: &mut [i32] = bytemuck::cast_slice_mut(offsets);
    offset(bytes, shape, offsets.as_chunks_mut().0);
}

/// -128 times the sums of the integers of each step.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn offset(bytes: &[u8], shape: Shape, offsets: &mut [[i32; OUTPUTS]]) {
    let ones = _mm512_set1_epi8(1);
    let vectors = bytes.chunks_exact(shape.chunks * TILE);
    for (v, bytes) in vectors.enumerate() {
        for (bytes, offsets) in bytes.chunks_exact(shape.depth() * LANES).zip(&mut *offsets) {
            let mut sum: __m512i = _mm512_setzero_si512();
            for column in bytes.as_chunks::<STEP>().0 {
                // SAFETY: the column has 64 bytes.
                let column = unsafe { _mm512_loadu_si512(column.as_ptr().cast()) };
                sum = _mm512_dpbusd_epi32(sum, ones, column);
            }
            let place = &mut offsets.as_chunks_mut::<LANES>().0[v];
            // SAFETY: the place has 16 sums.
            unsafe {
                _mm512_storeu_si512(place.as_mut_ptr().cast(), _mm512_mullo_epi32(sum, _mm512_set1_epi32(-128)));
            }
        }
    }
}
