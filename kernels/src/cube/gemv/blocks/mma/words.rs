//! The words of a row of blocks in shared memory, wherever the row begins.

use burn_deepspeed_core::block::UNIT_BYTES;
use cubecl::prelude::*;

use super::tile::Tile;
use crate::cube::blocks::half_of;
use crate::cube::bytes::BYTES;
use crate::cube::direct::Quad;

/// A word of the matrix in shared memory.
pub(super) type Word = Const<1>;

/// What a lane reads of the span of a row.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Row {
    /// Its first word.
    first: u32,
    /// Bytes of this word before those of the span; 0 where rows have whole words.
    begin: u32,
}

/// The span that begins `byte` bytes after word `first`.
#[cube]
pub(super) fn row(first: u32, byte: u32, #[comptime] tile: Tile) -> Row {
    if comptime!(tile.has_whole_words()) {
        Row { first: (first + byte / BYTES as u32) % comptime!(most_words(tile)), begin: 0u32.runtime() }
    } else {
        Row { first, begin: byte }
    }
}

/// More words than there are, a power of two. The remainder of this tells the compiler how large addresses become, so that it adds constants to
/// them for free.
fn most_words(tile: Tile) -> u32 {
    (tile.staged() as u32 * 4).next_power_of_two()
}

#[cube]
impl Row {
    /// The 4 bytes from byte `at` of the span on.
    pub fn four(&self, staged: &SharedMemory<Vector<u32, Word>>, #[comptime] at: u32, #[comptime] tile: Tile) -> u32 {
        let (word, byte) = comptime!((at / BYTES as u32, at % BYTES as u32));
        if comptime!(!tile.has_whole_words()) {
            let begin = self.begin + byte;
            let from = (self.first + begin / BYTES as u32) % comptime!(most_words(tile)) + word;
            funnel(staged[from as usize][0], staged[(from + 1) as usize][0], begin % BYTES as u32 * 8u32)
        } else if comptime!(byte == 0) {
            staged[(self.first + word) as usize][0]
        } else {
            let from = self.first + word;
            let shift = comptime!(byte * 8);
            staged[from as usize][0] >> shift | staged[(from + 1) as usize][0] << comptime!(32 - shift)
        }
    }

    /// The 16 bytes from byte `at` of the span on, where both are whole loads.
    pub fn sixteen(&self, staged: &SharedMemory<Vector<u32, Word>>, #[comptime] at: u32) -> Vector<u32, Quad> {
        let whole = staged.to_slice().with_vector_size::<Quad>();
        whole[(self.first / 4u32 + comptime!(at / UNIT_BYTES as u32)) as usize]
    }

    /// The f16 at byte `at`.
    pub fn half<H: Float>(
        &self,
        staged: &SharedMemory<Vector<u32, Word>>,
        #[comptime] at: u32,
        #[comptime] tile: Tile,
    ) -> f32 {
        if comptime!(tile.has_whole_words()) {
            half_of::<H>(self.four(staged, comptime!(at / 4 * 4), tile), comptime!(at % 4 == 2), true)
        } else {
            half_of::<H>(self.four(staged, at, tile), false, true)
        }
    }

    /// Byte `at`.
    pub fn byte(&self, staged: &SharedMemory<Vector<u32, Word>>, #[comptime] at: u32, #[comptime] tile: Tile) -> u32 {
        if comptime!(tile.has_whole_words()) {
            self.four(staged, comptime!(at / 4 * 4), tile) >> comptime!(at % 4 * 8) & 0xffu32
        } else {
            self.four(staged, at, tile) & 0xffu32
        }
    }
}

/// The 32 bits from bit `shift` of two words on; `shift` is less than 32.
#[cube]
fn funnel(low: u32, high: u32, shift: u32) -> u32 {
    u32::cast_from((u64::cast_from(high) << 32u64 | u64::cast_from(low)) >> u64::cast_from(shift))
}
