//! The elements that a lane multiplies at a time, and what it loads for them.

use burn_deepspeed_core::block::BlockFormat;
use burn_deepspeed_core::divisor::gcd;
use cubecl::prelude::*;

use crate::cube::blocks::CheckedBlocks;
use crate::cube::bytes::BYTES;
use crate::cube::machine::{Machine, Unsupported};

/// Most parts of a block that a lane reads.
const MOST_SPANS: usize = 4;
/// Elements of a block of all formats but those with blocks of 256.
pub(super) const SMALL: usize = 32;

/// How lanes read blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Chunk {
    pub format: BlockFormat,
    /// Blocks of a chunk; 0 where a chunk is part of a block.
    blocks: u32,
    /// What a chunk begins with, every part of a block if it is part of one, begins at a multiple of this many bytes, a power of two up
    /// to 16.
    unit: u32,
    /// Words of a load.
    pub vector: u32,
    /// Whether scales become f32 as f16, or by their bits.
    pub halves: bool,
}

impl Chunk {
    /// The widest loads of the rows, and as many blocks as begin at a word if the rows have whole numbers of these.
    pub fn new<R: Runtime>(machine: &Machine, blocks: &CheckedBlocks<'_, R>) -> Result<Self, Unsupported> {
        use BlockFormat::{MXFP4, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
        let format = blocks.format;
        let all = blocks.row_bytes / format.bytes();
        let begins = |many: &usize| {
            let starts = [blocks.first, many * format.bytes()];
            all.is_multiple_of(*many) && starts.iter().all(|start| start.is_multiple_of(BYTES))
        };
        let many = match format {
            Q4_K | Q5_K | Q6_K => 0,
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | MXFP4 => [1, 2, 4].into_iter().find(begins).unwrap_or(1),
            _ => return Err(Unsupported::BlockFormat(format)),
        };
        let unit = [blocks.first, blocks.row_bytes, many.max(1) * format.bytes()].into_iter().fold(16, gcd) as u32;
        Ok(Self { format, blocks: many as u32, unit, vector: if unit == 16 { 4 } else { 2 }, halves: machine.halves })
    }

    /// Elements of a chunk.
    pub fn elements(self) -> usize {
        match self.format {
            BlockFormat::Q4_K | BlockFormat::Q5_K => 128,
            BlockFormat::Q6_K => 64,
            _ => self.blocks as usize * SMALL,
        }
    }

    /// Elements from the first half of a chunk to the second, where the halves are apart: those that are in the same bytes.
    pub fn apart(self) -> Option<u32> {
        (self.format == BlockFormat::Q6_K).then_some(64)
    }

    /// Parts of a chunk that have a scale each.
    pub fn runs(self) -> usize {
        match self.format {
            BlockFormat::Q4_K | BlockFormat::Q5_K | BlockFormat::Q6_K => 4,
            _ => self.blocks as usize,
        }
    }

    /// Whether a number is added to the product of scale and element.
    pub fn has_minimum(self) -> bool {
        use BlockFormat::{Q4_1, Q4_K, Q5_1, Q5_K};
        matches!(self.format, Q4_1 | Q5_1 | Q4_K | Q5_K)
    }

    /// Sums of inputs that a chunk needs of a row: one for each minimum.
    pub fn totals(self) -> usize {
        if self.has_minimum() { self.runs() } else { 0 }
    }

    /// Bytes of a load.
    pub fn load(self) -> u32 {
        self.vector * BYTES as u32
    }

    /// Whether parts of a block begin where loads do.
    fn is_aligned(self) -> bool {
        self.unit >= self.load()
    }

    /// Bytes of part `span` of what a lane reads: whole blocks, or its elements and what it needs of the scales.
    fn span(self, span: usize) -> u32 {
        let spans = match self.format {
            // Scales, elements.
            BlockFormat::Q4_K => [16, 64, 0, 0],
            // Scales, fifth bits, elements.
            BlockFormat::Q5_K => [16, 32, 64, 0],
            // Lower and upper bits, 8 of the scales, the scale of the block.
            BlockFormat::Q6_K => [32, 32, 8, 2],
            _ => [self.blocks * self.format.bytes() as u32, 0, 0, 0],
        };
        spans[span]
    }

    /// Loads for part `span`, wherever it begins.
    fn span_loads(self, span: usize) -> usize {
        match self.span(span) {
            0 => 0,
            bytes => (bytes + self.load().saturating_sub(self.unit)).div_ceil(self.load()) as usize,
        }
    }

    /// The first load of part `span`, of those of a chunk.
    fn first_load(self, span: usize) -> usize {
        (0..span).map(|before| self.span_loads(before)).sum()
    }

    /// Loads of a chunk.
    pub fn loads(self) -> usize {
        self.first_load(MOST_SPANS)
    }

    /// Words of a chunk once they are aligned: those of all parts.
    pub fn words(self) -> usize {
        self.first_word(MOST_SPANS)
    }

    /// The first word of part `span`.
    fn first_word(self, span: usize) -> usize {
        (0..span).map(|before| self.span(before).div_ceil(BYTES as u32) as usize).sum()
    }

    /// The byte of a chunk where block `block` of it begins.
    pub fn begin(self, block: usize) -> usize {
        block * self.format.bytes()
    }
}

/// The byte at which part `span` of chunk `at` of a row begins.
#[cube]
fn address(row: u32, at: u32, #[comptime] span: usize, #[comptime] chunk: Chunk) -> u32 {
    if comptime!(chunk.blocks > 0) {
        row + at * comptime!(chunk.begin(chunk.blocks as usize) as u32)
    } else {
        let per_block = comptime!((chunk.format.elements() / chunk.elements()) as u32);
        let own = at % per_block;
        let begin = match comptime!((chunk.format, span)) {
            (BlockFormat::Q4_K, 1) => 16u32 + own * 64u32,
            (BlockFormat::Q5_K, 1) => 16u32.runtime(),
            (BlockFormat::Q5_K, 2) => 48u32 + own * 64u32,
            (BlockFormat::Q6_K, 0) => own * 32u32,
            (BlockFormat::Q6_K, 1) => 128u32 + own / 2u32 * 32u32,
            (BlockFormat::Q6_K, 2) => 192u32 + own / 2u32 * 8u32,
            (BlockFormat::Q6_K, 3) => 208u32.runtime(),
            _ => 0u32.runtime(),
        };
        row + at / per_block * comptime!(chunk.format.bytes() as u32) + begin
    }
}

/// Loads chunk `at` of the row that begins at byte `row`, to `loaded` from `to` on.
#[cube]
pub(super) fn load<M: Size>(
    loaded: &mut Array<Vector<u32, M>>,
    matrix: &Array<Vector<u32, M>>,
    row: u32,
    at: u32,
    last: u32,
    #[comptime] to: usize,
    #[comptime] chunk: Chunk,
) {
    #[unroll]
    for span in 0..MOST_SPANS {
        let first = address(row, at, span, chunk) / comptime!(chunk.load());
        #[unroll]
        for l in 0..comptime!(chunk.span_loads(span)) {
            let mut vector = first + comptime!(l as u32);
            if comptime!(!chunk.is_aligned() && l + 1 == chunk.span_loads(span)) {
                // It may begin after the matrix, where nothing of it is needed.
                vector = min(vector, last);
            }
            loaded[comptime!(to + chunk.first_load(span) + l)] = matrix[vector as usize];
        }
    }
}

/// The words of a chunk: each part from its first byte on, `words` from `to` on.
#[cube]
pub(super) fn align<M: Size>(
    words: &mut Array<u32>,
    loaded: &Array<Vector<u32, M>>,
    row: u32,
    at: u32,
    #[comptime] to: usize,
    #[comptime] from: usize,
    #[comptime] chunk: Chunk,
) {
    let vector = comptime!(chunk.vector as usize);
    #[unroll]
    for span in 0..MOST_SPANS {
        let first = comptime!(from + chunk.first_load(span));
        let count = comptime!(chunk.first_word(span + 1) - chunk.first_word(span));
        let held = comptime!(chunk.span_loads(span) * vector);
        let to = comptime!(to + chunk.first_word(span));
        if comptime!(count > 0) {
            let address = address(row, at, span, chunk);
            // Each step needs one word more than the next one makes.
            let mut whole = Array::<u32>::new(comptime!(count + 2));
            #[unroll]
            for w in 0..comptime!(count + 2) {
                let mut word = 0u32.runtime();
                if comptime!(w < held) {
                    word = loaded[comptime!(first + w / vector)][comptime!(w % vector)];
                }
                if comptime!(chunk.unit < chunk.load() && w + 1 < held) {
                    let next = loaded[comptime!(first + (w + 1) / vector)][comptime!((w + 1) % vector)];
                    word = select(address & 4u32 == 0u32, word, next);
                }
                whole[w] = word;
            }
            if comptime!(chunk.unit < 4) {
                #[unroll]
                for w in 0..comptime!(count + 1) {
                    let shifted = whole[w] >> 16u32 | whole[comptime!(w + 1)] << 16u32;
                    whole[w] = select(address & 2u32 == 0u32, whole[w], shifted);
                }
            }
            if comptime!(chunk.unit < 2) {
                #[unroll]
                for w in 0..count {
                    let shifted = whole[w] >> 8u32 | whole[comptime!(w + 1)] << 24u32;
                    whole[w] = select(address & 1u32 == 0u32, whole[w], shifted);
                }
            }
            #[unroll]
            for w in 0..count {
                words[comptime!(to + w)] = whole[w];
            }
        }
    }
}
