//! Rounded rows as bytes. 16 rows are a group, in which 64 bytes of each row follow each other: a tile is contiguous.

use std::ops::Range;

use burn_deepspeed_core::data_type::InputBits;

use super::row::{MOST_INPUTS, Round};
use crate::cpu::product::int8::Int8Matrix;
use crate::cpu::product::panel::{GROUP, STEP, TILE};

/// Inputs that share a scale, and whose products are added in 32 bits.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub inputs: Range<usize>,
    /// The block of the inputs.
    pub block: usize,
    /// The first byte in a row of bytes. Every segment has whole steps, with zeros after the last input.
    pub place: usize,
}

impl Segment {
    /// The segments of a row.
    pub fn all(matrix: &Int8Matrix<'_>) -> Vec<Self> {
        let (mut segments, mut place) = (Vec::new(), 0);
        for (block, start) in (0..matrix.inputs).step_by(matrix.input_block).enumerate() {
            let end = matrix.inputs.min(start + matrix.input_block);
            for start in (start..end).step_by(MOST_INPUTS) {
                let inputs = start..end.min(start + MOST_INPUTS);
                segments.push(Self { inputs, block, place });
                place += segments[segments.len() - 1].steps() * STEP;
            }
        }
        segments
    }

    pub fn steps(&self) -> usize {
        self.inputs.len().div_ceil(STEP)
    }

    /// Bytes of a row of these segments.
    pub fn bytes(segments: &[Self]) -> usize {
        segments.last().map_or(0, |last| last.place + last.steps() * STEP)
    }
}

/// Bits of each plane but the first: an element of 8 bits has one plane, and one of 14 bits has its upper and its lower 7 bits.
pub(super) const fn lower_bits(planes: usize) -> u32 {
    if planes == 1 { 0 } else { 7 }
}

/// What is added to the upper bits: x86-64 multiplies bytes that are not negative with int8, and NEON int8 with int8.
pub(super) const fn offset(planes: usize) -> i32 {
    match planes {
        _ if cfg!(target_arch = "aarch64") => 0,
        1 => 128,
        _ => 64,
    }
}

/// Rounds the rows of a group into bytes.
pub(super) struct RoundGroup<'a, const N: usize> {
    /// `[rows, inputs]`, up to [`GROUP`] rows.
    pub rows: &'a [f32],
    pub bits: InputBits,
    pub segments: &'a [Segment],
    /// Scratch for the integers of a row.
    pub whole: &'a mut [i16],
    /// One place for each plane, the upper bits first. What is between the rows is left as it is.
    pub planes: [&'a mut [u8]; N],
    /// Receives the scales of the rows.
    pub scales: &'a mut [f32],
}

impl<const N: usize> RoundGroup<'_, N> {
    pub fn run(self) {
        let Self { rows, bits, segments, whole, mut planes, scales } = self;
        let arch = pulp::Arch::new();
        for (row, (numbers, scale)) in rows.chunks_exact(whole.len()).zip(scales).enumerate() {
            *scale = arch.dispatch(Round { row: numbers, most: bits.largest(), whole: &mut *whole });
            for segment in segments {
                let whole = &whole[segment.inputs.clone()];
                for (plane, bytes) in planes.iter_mut().enumerate() {
                    let (shift, offset, mask) = match plane {
                        0 => (lower_bits(N), offset(N), 0xff),
                        _ => (0, 0, (1 << lower_bits(N)) - 1),
                    };
                    let bytes = &mut bytes[segment.place * GROUP + row * STEP..];
                    arch.dispatch(Split { whole, shift, offset, mask, bytes });
                }
            }
        }
    }
}

/// Some bits of the integers of a segment.
struct Split<'a> {
    whole: &'a [i16],
    shift: u32,
    offset: i32,
    mask: i32,
    /// From the first byte of the row in the group on.
    bytes: &'a mut [u8],
}

impl pulp::WithSimd for Split<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _simd: S) {
        let (shift, offset, mask) = (self.shift, self.offset as i16, self.mask as i16);
        for (whole, bytes) in self.whole.chunks(STEP).zip(self.bytes.chunks_mut(TILE)) {
            let (bytes, rest) = bytes[..STEP].split_at_mut(whole.len());
            for (byte, whole) in bytes.iter_mut().zip(whole) {
                *byte = (((whole >> shift) + offset) & mask) as u8;
            }
            rest.fill(0);
        }
    }
}
