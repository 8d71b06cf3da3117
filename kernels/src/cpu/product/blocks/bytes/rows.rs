//! Rounded rows as bytes. 16 rows are a group, in which 32 bytes of each row follow each other: a tile is contiguous.

use super::shape::Shape;
use crate::cpu::product::blocks::rows::{Bits, CHUNK};
use crate::cpu::product::panel::GROUP;
use crate::cpu::simd::round;

/// Bytes of a chunk of a group, in one plane.
pub(super) const TILE: usize = GROUP * CHUNK;

/// A group of rows.
#[derive(Clone, Copy)]
pub(super) struct Group<'a> {
    /// `[chunks, planes, GROUP, CHUNK]`, the upper bytes first.
    pub bytes: &'a [u8],
    /// `[steps, GROUP]`: what the integers are multiplied by; zeros after the last row.
    pub scales: &'a [[f32; GROUP]],
    /// `[steps, GROUP]`: the sum of the elements of a step, if outputs have minima.
    pub sums: &'a [[f32; GROUP]],
}

/// Floats in whose place the bytes of a group are.
fn of_bytes<const N: usize>(shape: Shape) -> usize {
    shape.chunks * N * TILE / size_of::<f32>()
}

/// Floats of a group.
pub(super) fn floats<const N: usize>(shape: Shape) -> usize {
    of_bytes::<N>(shape) + shape.steps() * GROUP * if shape.minima { 2 } else { 1 }
}

impl<'a> Group<'a> {
    /// What [`RoundGroup`] has written.
    pub fn of<const N: usize>(place: &'a [f32], shape: Shape) -> Self {
        let (bytes, factors) = place.split_at(of_bytes::<N>(shape));
        let (scales, sums) = factors.as_chunks().0.split_at(shape.steps());
        Self { bytes: bytemuck::cast_slice(bytes), scales, sums }
    }
}

/// Rounds the rows of a group.
pub(super) struct RoundGroup<'a, const N: usize> {
    /// `[rows, inputs]`, up to [`GROUP`] rows.
    pub rows: &'a [f32],
    pub inputs: usize,
    pub bits: Bits,
    /// Bits of the first plane to flip.
    pub flip: u8,
    pub shape: Shape,
    /// [`floats`] for the group. Bytes of rows after the last are left as they are.
    pub place: &'a mut [f32],
}

impl<const N: usize> pulp::WithSimd for RoundGroup<'_, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _simd: S) {
        let Self { rows, inputs, bits, flip, shape, place } = self;
        let (bytes, factors) = place.split_at_mut(of_bytes::<N>(shape));
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(bytes);
        factors.fill(0.0);
        let (scales, sums) = factors.as_chunks_mut::<GROUP>().0.split_at_mut(shape.steps());
        bytes[inputs / CHUNK * N * TILE..].fill(0);
        let mut whole = [0i16; CHUNK];
        for (row, numbers) in rows.chunks_exact(inputs).enumerate() {
            for (chunk, numbers) in numbers.as_chunks::<CHUNK>().0.iter().enumerate() {
                let scale = round(numbers, bits.largest(), &mut whole, |whole| whole as i16);
                for (plane, bytes) in bytes[chunk * N * TILE..].as_chunks_mut::<TILE>().0[..N].iter_mut().enumerate() {
                    let bytes = &mut bytes[row * CHUNK..][..CHUNK];
                    if plane == 0 {
                        let shift = 8 * (N - 1);
                        bytes.iter_mut().zip(&whole).for_each(|(byte, whole)| *byte = (whole >> shift) as u8 ^ flip);
                    } else {
                        bytes.iter_mut().zip(&whole).for_each(|(byte, whole)| *byte = *whole as u8);
                    }
                }
                for part in 0..shape.parts {
                    let step = chunk * shape.parts + part;
                    scales[step][row] = scale;
                    if shape.minima {
                        let whole = &whole[part * shape.depth()..][..shape.depth()];
                        sums[step][row] = whole.iter().map(|&whole| i32::from(whole)).sum::<i32>() as f32 * scale;
                    }
                }
            }
        }
    }
}
