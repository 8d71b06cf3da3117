//! The 32 elements that a lane multiplies at a time: what it loads of a block, and what becomes of it.

use burn_deepspeed_core::block::BlockFormat;
use burn_deepspeed_core::divisor::gcd;
use cubecl::prelude::*;

use crate::cube::blocks::{CheckedBlocks, half, six_bits};
use crate::cube::bytes::{BYTES, byte};
use crate::cube::machine::Unsupported;

/// Elements of a chunk.
pub(super) const CHUNK: usize = 32;

/// Most parts of a block that a lane reads.
const MOST_SPANS: usize = 4;

/// How lanes read blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Chunk {
    pub format: BlockFormat,
    /// Every block begins at a multiple of this many bytes, a power of two up to 16.
    unit: u32,
    /// Words of a load.
    pub vector: u32,
}

impl Chunk {
    /// The widest loads of the rows.
    pub fn new<R: Runtime>(blocks: &CheckedBlocks<'_, R>) -> Result<Self, Unsupported> {
        let format = blocks.format;
        if spans(format)[0] == 0 {
            return Err(Unsupported::BlockFormat(format));
        }
        let unit = [blocks.first, blocks.row_bytes, format.bytes()].into_iter().fold(16, gcd) as u32;
        Ok(Self { format, unit, vector: if unit == 16 { 4 } else { 2 } })
    }

    /// Chunks of a block.
    pub fn per_block(self) -> u32 {
        (self.format.elements() / CHUNK) as u32
    }

    /// Elements from the first half of a chunk to the second, where the halves are apart: those that are in the same bytes.
    pub fn apart(self) -> Option<u32> {
        match self.format {
            BlockFormat::Q4_K | BlockFormat::Q5_K => Some(32),
            BlockFormat::Q6_K => Some(64),
            _ => None,
        }
    }

    /// Parts of a chunk that have a scale each: both halves where they are apart.
    pub fn runs(self) -> usize {
        if self.apart().is_some() { 2 } else { 1 }
    }

    /// Whether a number is added to the product of scale and element.
    pub fn has_minimum(self) -> bool {
        use BlockFormat::{Q4_1, Q4_K, Q5_1, Q5_K};
        matches!(self.format, Q4_1 | Q5_1 | Q4_K | Q5_K)
    }

    /// Bytes of a load.
    pub fn load(self) -> u32 {
        self.vector * BYTES as u32
    }

    /// Whether parts of a block begin where loads do.
    fn is_aligned(self) -> bool {
        self.unit >= self.load()
    }

    /// Loads for part `span` of a block, wherever it begins.
    fn span_loads(self, span: usize) -> usize {
        let unused = self.load().saturating_sub(self.unit);
        (spans(self.format)[span] + if spans(self.format)[span] > 0 { unused } else { 0 }).div_ceil(self.load())
            as usize
    }

    /// The first load of part `span`, of those of a chunk.
    fn first_load(self, span: usize) -> usize {
        (0..span).map(|before| self.span_loads(before)).sum()
    }

    /// Loads of a chunk.
    pub fn loads(self) -> usize {
        self.first_load(MOST_SPANS)
    }

    /// Words of a chunk after the funnel: those of all parts.
    pub fn words(self) -> usize {
        self.first_word(MOST_SPANS)
    }

    /// The first word of part `span`.
    fn first_word(self, span: usize) -> usize {
        spans(self.format)[..span].iter().map(|bytes| bytes.div_ceil(BYTES as u32) as usize).sum()
    }
}

/// Bytes of each part of a block that a lane reads: all, or its elements and what it needs of the scales. 0 for formats that the kernel
/// does not take.
fn spans(format: BlockFormat) -> [u32; MOST_SPANS] {
    use BlockFormat::{MXFP4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
    match format {
        Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | MXFP4 => [format.bytes() as u32, 0, 0, 0],
        // Scales, elements.
        BlockFormat::Q4_K => [16, 16, 0, 0],
        // Scales, fifth bits, elements.
        BlockFormat::Q5_K => [16, 16, 16, 0],
        // Lower and upper bits, 8 of the scales, the scale of the block.
        BlockFormat::Q6_K => [16, 16, 8, 2],
        _ => [0; MOST_SPANS],
    }
}

/// The first byte of part `span` for chunk `own` of a block.
#[cube]
fn begin(own: u32, #[comptime] span: usize, #[comptime] chunk: Chunk) -> u32 {
    match comptime!((chunk.format, span)) {
        (BlockFormat::Q4_K, 1) => 16u32 + own * 16u32,
        (BlockFormat::Q5_K, 1) => 16u32 + own % 2u32 * 16u32,
        (BlockFormat::Q5_K, 2) => 48u32 + own * 16u32,
        (BlockFormat::Q6_K, 0) => own * 16u32,
        (BlockFormat::Q6_K, 1) => 128u32 + own / 4u32 * 32u32 + own % 2u32 * 16u32,
        (BlockFormat::Q6_K, 2) => 192u32 + own / 4u32 * 8u32,
        (BlockFormat::Q6_K, 3) => 208u32.runtime(),
        _ => 0u32.runtime(),
    }
}

/// The byte at which part `span` of chunk `at` of a row begins.
#[cube]
fn address(row: u32, at: u32, #[comptime] span: usize, #[comptime] chunk: Chunk) -> u32 {
    let per_block = comptime!(chunk.per_block());
    row + at / per_block * comptime!(chunk.format.bytes() as u32) + begin(at % per_block, span, chunk)
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
            if comptime!(!chunk.is_aligned()) {
                // The last load may begin after the matrix, where nothing of it is needed.
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

/// Scale and minimum of run `run` of chunk `at`, whose words begin at `first`.
#[cube]
pub(super) fn scales(
    words: &Array<u32>,
    at: u32,
    #[comptime] run: u32,
    #[comptime] first: usize,
    #[comptime] chunk: Chunk,
) -> (f32, f32) {
    let word = words[first];
    match comptime!(chunk.format) {
        BlockFormat::Q4_1 | BlockFormat::Q5_1 => (half(word & 0xffffu32), half(word >> 16u32)),
        BlockFormat::MXFP4 => {
            let exponent = word & 0xffu32;
            (
                f32::reinterpret(select(exponent < 2u32, 0x0020_0000u32 << exponent, (exponent - 1u32) << 23u32)),
                0.0f32.runtime(),
            )
        }
        BlockFormat::Q4_K | BlockFormat::Q5_K => {
            let part = at % 8u32 / 2u32 * 2u32 + run;
            let own =
                six_bits(words[comptime!(first + 1)], words[comptime!(first + 2)], words[comptime!(first + 3)], part);
            let scale = half(word & 0xffffu32) * f32::cast_from(own & 0xffu32);
            (scale, -(half(word >> 16u32) * f32::cast_from(own >> 8u32)))
        }
        BlockFormat::Q6_K => {
            let own = words[comptime!(first + 8 + run as usize)] >> (at % 4u32 * 8u32);
            let scale = f32::cast_from((own & 0xffu32) ^ 0x80u32) - 128.0f32;
            (half(words[comptime!(first + 10)] & 0xffffu32) * scale, 0.0f32.runtime())
        }
        _ => (half(word & 0xffffu32), 0.0f32.runtime()),
    }
}

/// Elements `4·i` to `4·i + 4` of chunk `at`, whose words begin at `first`: a byte each.
#[cube]
pub(super) fn packed(
    words: &Array<u32>,
    at: u32,
    #[comptime] i: usize,
    #[comptime] first: usize,
    #[comptime] chunk: Chunk,
) -> u32 {
    match comptime!(chunk.format) {
        BlockFormat::Q8_0 => words[comptime!(first + i)] >> 16u32 | words[comptime!(first + i + 1)] << 16u32,
        BlockFormat::Q4_0 => {
            let both = words[comptime!(first + i % 4)] >> 16u32 | words[comptime!(first + i % 4 + 1)] << 16u32;
            nibbles(both, comptime!(i / 4))
        }
        BlockFormat::MXFP4 => {
            let both = words[comptime!(first + i % 4)] >> 8u32 | words[comptime!(first + i % 4 + 1)] << 24u32;
            twice_e2m1(nibbles(both, comptime!(i / 4)))
        }
        BlockFormat::Q6_K => {
            let low = nibbles(words[comptime!(first + i % 4)], comptime!(i / 4));
            let high = words[comptime!(first + 4 + i % 4)] >> (at % 4u32 / 2u32 * 2u32);
            if comptime!(i < 4) { low | (high & 0x0303_0303u32) << 4u32 } else { low | (high & 0x3030_3030u32) }
        }
        BlockFormat::Q5_0 => {
            let fifths = words[first] >> 16u32 | words[comptime!(first + 1)] << 16u32;
            let both = words[comptime!(first + 1 + i % 4)] >> 16u32 | words[comptime!(first + 2 + i % 4)] << 16u32;
            nibbles(both, comptime!(i / 4)) | fifth(fifths, i)
        }
        BlockFormat::Q5_1 => {
            let both = words[comptime!(first + 2 + i % 4)];
            nibbles(both, comptime!(i / 4)) | fifth(words[comptime!(first + 1)], i)
        }
        BlockFormat::Q5_K => {
            let low = nibbles(words[comptime!(first + 8 + i % 4)], comptime!(i / 4));
            let part = at % 8u32 / 2u32 * 2u32 + comptime!((i / 4) as u32);
            low | (words[comptime!(first + 4 + i % 4)] >> part & 0x0101_0101u32) << 4u32
        }
        // Q4_1 and Q4_K.
        _ => nibbles(words[comptime!(first + chunk.words() - 4 + i % 4)], comptime!(i / 4)),
    }
}

/// The fifth bits of elements `4·i` to `4·i + 4`, each in its byte: four copies of the bits, 7 apart, have one in each.
#[cube]
fn fifth(bits: u32, #[comptime] i: usize) -> u32 {
    ((bits >> comptime!(4 * i as u32) & 15u32) * 0x0204_0810u32) & 0x1010_1010u32
}

/// The lower halves of four bytes, or the upper ones.
#[cube]
fn nibbles(bytes: u32, #[comptime] which: usize) -> u32 {
    if comptime!(which == 0) { bytes & 0x0f0f_0f0fu32 } else { bytes >> 4u32 & 0x0f0f_0f0fu32 }
}

/// Twice the floats of E2M1 of these four bits, in each byte: signed integers.
///
/// The magnitudes 0 to 7 are 0 to 3, and from 4 on 4, 6, 8 and 12: what is left of the magnitude counts once more, and 3 counts 2 more.
#[cube]
fn twice_e2m1(bits: u32) -> u32 {
    let magnitude = bits & 0x0707_0707u32;
    let large = bits >> 2u32 & 0x0101_0101u32;
    let rest = magnitude & (large * 3u32);
    let most = rest & rest >> 1u32 & 0x0101_0101u32;
    let twice = magnitude + rest + (most << 1u32);
    let negative = bits >> 3u32 & 0x0101_0101u32;
    // 128 - x is (x ^ 127) + 1, and 128 + x is x ^ 128.
    ((twice ^ (0x8080_8080u32 - negative)) + negative) ^ 0x8080_8080u32
}

/// Byte `e` of packed elements as a number.
#[cube]
pub(super) fn number(packed: u32, zero: u32, raised: u32, #[comptime] e: u32, #[comptime] chunk: Chunk) -> f32 {
    match comptime!(chunk.format) {
        BlockFormat::Q8_0 | BlockFormat::MXFP4 => byte(packed, zero, e),
        BlockFormat::Q4_0 => unsigned(packed, raised, e, 8.0f32),
        BlockFormat::Q5_0 => unsigned(packed, raised, e, 16.0f32),
        BlockFormat::Q6_K => unsigned(packed, raised, e, 32.0f32),
        _ => unsigned(packed, raised, e, 0.0f32),
    }
}

/// The bits of 2^23, whose last bit counts 1.
pub(super) const RAISED: u32 = 0x4b00_0000;
/// 2^23.
const RAISED_VALUE: f32 = 8_388_608.0;

/// A byte of a word less `offset`, without a conversion: it becomes one of the last bytes of [`RAISED`]. Every step is exact.
#[cube]
fn unsigned(word: u32, raised: u32, #[comptime] at: u32, #[comptime] offset: f32) -> f32 {
    let mut half = word;
    if comptime!(at >= 2) {
        half = word >> 16u32;
    }
    if comptime!(at.is_multiple_of(2)) {
        f32::reinterpret((half & 0xffu32) | raised) - comptime!(RAISED_VALUE + offset)
    } else {
        // One byte further left, so that it counts 256 times as much.
        f32::reinterpret((half & 0xff00u32) | raised) * comptime!(1.0 / 256.0)
            - comptime!(RAISED_VALUE / 256.0 + offset)
    }
}
