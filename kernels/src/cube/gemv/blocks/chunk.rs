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

/// Whether blocks of a format have 32 elements, and not 256; an error if the kernels do not multiply them as they are stored.
pub(super) fn is_small(format: BlockFormat) -> Result<bool, Unsupported> {
    use BlockFormat::{MXFP4, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
    match format {
        Q4_K | Q5_K | Q6_K => Ok(false),
        Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | MXFP4 => Ok(true),
        _ => Err(Unsupported::BlockFormat(format)),
    }
}

/// How lanes read blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Chunk {
    pub format: BlockFormat,
    /// Blocks of a chunk; 0 where a chunk is part of a block.
    blocks: u32,
    /// What a chunk begins with, every part of a block if it is part of one, begins at a multiple of this many bytes, a power of two up
    /// to 16.
    unit: u32,
    /// Rows begin at a multiple of this many bytes, a power of two up to 16.
    row_unit: u32,
    /// Words of a load from memory.
    pub vector: u32,
    /// Whether scales become f32 as f16, or by their bits.
    pub halves: bool,
}

impl Chunk {
    /// The widest loads, and as many blocks as begin at a word if the rows have whole numbers of these.
    pub fn new<R: Runtime>(machine: &Machine, blocks: &CheckedBlocks<'_, R>) -> Result<Self, Unsupported> {
        let format = blocks.format;
        let all = blocks.row_bytes / format.bytes();
        let begins = |many: &usize| {
            let starts = [blocks.first, many * format.bytes()];
            all.is_multiple_of(*many) && starts.iter().all(|start| start.is_multiple_of(BYTES))
        };
        let many = if is_small(format)? { [1, 2, 4].into_iter().find(begins).unwrap_or(1) } else { 0 };
        let row_unit = blocks.row_unit();
        let unit = gcd(row_unit, many.max(1) * format.bytes()) as u32;
        let chunk =
            Self { format, blocks: many as u32, unit, row_unit: row_unit as u32, vector: 4, halves: machine.halves };
        // Elsewhere shared memory has one width of vectors.
        Ok(if machine.any_width { chunk } else { Self { vector: chunk.width(), ..chunk } })
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

    /// Bytes of a load from memory.
    pub fn load(self) -> u32 {
        self.vector * BYTES as u32
    }

    /// Words that a lane reads from shared memory at a time.
    pub fn width(self) -> u32 {
        (self.unit / BYTES as u32).max(1)
    }

    /// Whether the words of a chunk are those of memory; otherwise their bytes are moved.
    pub fn is_whole(self) -> bool {
        self.unit >= BYTES as u32
    }

    /// Whether they may be moved by one byte.
    pub fn has_odd_bytes(self) -> bool {
        self.unit == 1
    }

    /// Whether rows begin where loads do.
    pub fn has_whole_loads(self) -> bool {
        self.row_unit >= self.load()
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

    /// Words of a chunk: those of all parts.
    pub fn words(self) -> usize {
        self.first_word(MOST_SPANS)
    }

    /// Parts of what a lane reads.
    pub fn spans(self) -> usize {
        (0..MOST_SPANS).filter(|span| self.span(*span) > 0).count()
    }

    /// Words of part `span`.
    pub fn span_words(self, span: usize) -> usize {
        self.span(span).div_ceil(BYTES as u32) as usize
    }

    /// The first word of part `span`.
    pub fn first_word(self, span: usize) -> usize {
        (0..span).map(|before| self.span_words(before)).sum()
    }

    /// Loads that have the chunks of this many lanes, wherever a row begins.
    pub fn all_loads(self, lanes: u32) -> u32 {
        let bytes = lanes * self.elements() as u32 / self.format.elements() as u32 * self.format.bytes() as u32;
        // Words whose bytes are moved need those of the next one.
        let after = if self.is_whole() { 0 } else { BYTES as u32 };
        (bytes + after + self.load().saturating_sub(self.row_unit)).div_ceil(self.load())
    }

    /// Loads of each lane.
    pub fn loads(self, lanes: u32) -> usize {
        self.all_loads(lanes).div_ceil(lanes) as usize
    }

    /// The byte of a chunk where block `block` of it begins.
    pub fn begin(self, block: usize) -> usize {
        block * self.format.bytes()
    }
}

/// The byte at which part `span` of chunk `at` of a row begins.
#[cube]
pub(super) fn address(row: u32, at: u32, #[comptime] span: usize, #[comptime] chunk: Chunk) -> u32 {
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
