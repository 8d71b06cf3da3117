//! Queries as integers of three bytes.

use crate::cpu::simd::round;

/// Bytes of an integer.
pub const BYTES: usize = 3;

/// The factors of the bytes of an integer.
pub const FACTORS: [f32; BYTES] = [1.0, 256.0, 65536.0];

/// The largest integer of a query, whose bytes are all 127.
const MOST: f32 = 0x7f_7f7f as f32;

/// Bytes of the widest register: rows of bytes are whole ones, with zeros after the last feature.
pub const WIDTH: usize = 64;

/// Most features, so that a sum of products of bytes stays below 2^22 in each of 16 lanes.
pub const MOST_FEATURES: usize = 63 * WIDTH;

/// Floats of scratch for so many queries.
pub fn floats(rows: usize, features: usize) -> usize {
    rows * (1 + BYTES * features.next_multiple_of(WIDTH) / 4) + features
}

/// Queries as integers.
pub struct Queries<'a> {
    pub features: usize,
    /// From one row of bytes to the next.
    pub stride: usize,
    /// `[rows, BYTES, stride]`, the lowest bytes first.
    bytes: &'a [i8],
    /// Of each row.
    pub scales: &'a [f32],
}

impl<'a> Queries<'a> {
    /// The integers of `queries`, `[rows, features]`. `None` without scratch, or if a query has an infinity or NaN.
    #[inline(always)]
    pub fn new(queries: &[f32], features: usize, scratch: &'a mut [f32]) -> Option<Self> {
        if scratch.is_empty() {
            return None;
        }
        let (rows, stride) = (queries.len() / features, features.next_multiple_of(WIDTH));
        let (bytes, rest) = scratch.split_at_mut(rows * BYTES * stride / 4);
        let (scales, whole) = rest.split_at_mut(rows);
        let bytes: &mut [i8] = bytemuck::cast_slice_mut(bytes);
        let whole: &mut [i32] = &mut bytemuck::cast_slice_mut(whole)[..features];
        for (row, query) in queries.chunks_exact(features).enumerate() {
            scales[row] = round(query, MOST, whole, |whole| whole);
            if scales[row].is_nan() {
                return None;
            }
            for at in row * BYTES..(row + 1) * BYTES {
                let bytes = &mut bytes[at * stride..][..stride];
                for (byte, whole) in bytes.iter_mut().zip(&mut *whole) {
                    *byte = *whole as i8;
                    // What is left is a multiple of 256.
                    *whole = (*whole - i32::from(*byte)) >> 8;
                }
                bytes[features..].fill(0);
            }
        }
        Some(Self { features, stride, bytes, scales })
    }

    /// The rows of bytes of a query.
    pub fn of_row(&self, row: usize) -> [&[i8]; BYTES] {
        std::array::from_fn(|byte| &self.bytes[(row * BYTES + byte) * self.stride..][..self.stride])
    }
}
