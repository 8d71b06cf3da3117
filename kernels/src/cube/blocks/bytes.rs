//! Bytes that are read in words. Blocks of 17, 18, 34 and 210 bytes begin anywhere in a word.

use cubecl::prelude::*;

use super::problem::CheckedBlocks;
use crate::cube::tensors::array;

/// The bytes of a matrix.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct Bytes {
    words: Array<u32>,
    /// The last word.
    last: u32,
}

/// The bytes of a matrix as a kernel takes them.
pub(crate) fn bytes<R: Runtime>(blocks: &CheckedBlocks<'_, R>) -> BytesLaunch<R> {
    let words = blocks.bytes.shape()[0] / size_of::<u32>();
    BytesLaunch::new(array(blocks.bytes), words.saturating_sub(1) as u32)
}

#[cube]
impl Bytes {
    /// The 4 bytes from `at` on. Those after the end of the matrix are unspecified.
    pub fn four(&self, at: u32) -> u32 {
        let (word, shift) = (at / 4u32, at % 4u32 * 8u32);
        let next = min(word + 1u32, self.last);
        // In two steps, since a shift by all 32 bits is undefined.
        self.words[word as usize] >> shift | self.words[next as usize] << (31u32 - shift) << 1u32
    }

    /// The byte at `at`.
    pub fn byte(&self, at: u32) -> u32 {
        self.words[(at / 4u32) as usize] >> (at % 4u32 * 8u32) & 0xffu32
    }
}
