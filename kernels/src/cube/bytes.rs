//! One-byte integers, four to a word, and how they become f32 in registers.
//!
//! A compiler takes vectors of bytes apart as soon as they are loaded, and so waits for each load before the next begins. Words
//! stay whole until they are needed.

use cubecl::prelude::*;

/// Bytes of a word.
pub(crate) const BYTES: usize = size_of::<u32>();

/// How a kernel loads rows of floats or of one-byte integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    /// The type with which the elements are loaded.
    pub elements: StorageType,
    /// Elements of a vector.
    pub vector: usize,
    /// Whether each of them is a word of four integers.
    pub words: bool,
}

/// The bits of [`ZERO_VALUE`], whose last bit counts 1. Its last two bytes are those of 0 with the sign bit inverted.
///
/// Kernels take it as an argument because an instruction holds only one constant, which is the mask of the byte.
pub(crate) const ZERO: u32 = 0x4b00_8080;
/// 2^23, and 128 in each of the last two bytes.
const ZERO_VALUE: f32 = 8_421_504.0;

/// The bits of [`RAISED_VALUE`], whose last bit counts 1. Kernels take it as an argument, too.
pub(crate) const RAISED: u32 = 0x4b00_0000;
/// 2^23.
pub(crate) const RAISED_VALUE: f32 = 8_388_608.0;

/// The `S` integers from `first` of what one load gives: words of four, or one in each element.
#[cube]
pub(crate) fn integers<W: Numeric, M: Size, S: Size>(
    loaded: Vector<W, M>,
    zero: u32,
    #[comptime] first: usize,
    #[comptime] words: bool,
) -> Vector<f32, S> {
    let mut integers = Vector::<f32, S>::new(0.0f32);
    if comptime!(words) {
        #[unroll]
        for e in 0..S::value() {
            let word = u32::cast_from(loaded[comptime!((first + e) / BYTES)]);
            integers[e] = byte(word, zero, comptime!(((first + e) % BYTES) as u32));
        }
    } else {
        let all = Vector::<f32, M>::cast_from(loaded);
        #[unroll]
        for e in 0..S::value() {
            integers[e] = all[first + e];
        }
    }
    integers
}

/// A byte of a word, a signed number, without a conversion: it becomes one of the last bytes of [`ZERO`], whose value is then
/// subtracted. Every step is exact.
#[cube]
pub(crate) fn byte(word: u32, zero: u32, #[comptime] at: u32) -> f32 {
    let mut half = word;
    if comptime!(at >= 2) {
        half = word >> 16u32;
    }
    if comptime!(at.is_multiple_of(2)) {
        f32::reinterpret((half & 0xffu32) ^ zero) - ZERO_VALUE
    } else {
        // One byte further left, so that it counts 256 times as much.
        f32::reinterpret((half & 0xff00u32) ^ zero) * comptime!(1.0 / 256.0) - comptime!(ZERO_VALUE / 256.0)
    }
}
