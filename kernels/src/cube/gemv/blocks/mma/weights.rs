//! Elements of blocks as left operands, and what their products are multiplied with.
//!
//! An f16 below 2^-14 counts by 2^-24, so the bits of an element of up to 10 bits are that many times 2^-24: no conversion is needed, and
//! tensor cores multiply such numbers exactly. What a format subtracts from the bits is subtracted with the sum of the inputs. Elements of the
//! upper halves of bytes stay where they are and count 16 times as much; their inputs are divided by 16. Minima of Q4_K and Q5_K are a left
//! operand of their own, which multiplies the sums of the inputs of units.

use burn_deepspeed_core::block::BlockFormat;
use cubecl::prelude::*;

use super::tile::{SMALL, Tile, UNIT};
use super::unit_sums::SUM_UNIT;
use super::words::{Row, Word};
use crate::cube::blocks::factors::Factors;
use crate::cube::blocks::{half_of, has_minimum};
use crate::cube::bytes::byte;
use crate::cube::gemv::blocks::elements::half_power;

/// Units that share words, and how many words of a row a lane has for them: a word has the elements of one lane for one or two products.
fn shared(format: BlockFormat) -> (usize, usize) {
    use BlockFormat::{Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
    match format {
        Q8_0 | Q5_0 | Q5_1 => (1, 2),
        Q4_K => (2, 2),
        // Lower and upper bits, and scales.
        Q6_K => (4, 8),
        // Lower bits, and a fifth bit of each element of the block.
        Q5_K => (8, 10),
        _ => (1, 1),
    }
}

/// Units that share words.
pub(super) fn group(format: BlockFormat) -> usize {
    shared(format).0
}

/// Words of a row for a group of units.
pub(super) fn group_words(format: BlockFormat) -> usize {
    shared(format).1
}

/// Words of a row for the factors of a span.
pub(super) fn factor_words(format: BlockFormat) -> usize {
    match format {
        BlockFormat::Q4_K | BlockFormat::Q5_K => 4,
        BlockFormat::Q6_K => 1,
        _ => 0,
    }
}

/// The first byte of the block that has unit `unit` of a span.
fn block(format: BlockFormat, unit: usize) -> u32 {
    (unit * UNIT / format.elements() * format.bytes()) as u32
}

/// The words for group `group` of a row, to `to`. `own` is the row, with every byte as many words further as the lane's place among four.
#[cube]
pub(super) fn load(
    words: &mut Array<u32>,
    staged: &SharedMemory<Vector<u32, Word>>,
    row: &Row,
    own: &Row,
    share: u32,
    #[comptime] group: usize,
    #[comptime] to: usize,
    #[comptime] tile: Tile,
) {
    let first = comptime!(block(tile.format, group * shared(tile.format).0));
    match comptime!(tile.format) {
        BlockFormat::Q4_0 => {
            words[to] = own.four(staged, comptime!(first + 2), tile);
        }
        BlockFormat::Q4_1 => {
            words[to] = own.four(staged, comptime!(first + 4), tile);
        }
        BlockFormat::Q5_0 => {
            words[to] = own.four(staged, comptime!(first + 6), tile);
            words[to + 1] = row.four(staged, comptime!(first + 2), tile) >> (share * 4u32);
        }
        BlockFormat::Q5_1 => {
            words[to] = own.four(staged, comptime!(first + 8), tile);
            words[to + 1] = row.four(staged, comptime!(first + 4), tile) >> (share * 4u32);
        }
        BlockFormat::Q8_0 => {
            words[to] = own.four(staged, comptime!(first + 2), tile);
            words[to + 1] = own.four(staged, comptime!(first + 18), tile);
        }
        BlockFormat::MXFP4 => {
            words[to] = own.four(staged, comptime!(first + 1), tile);
        }
        BlockFormat::Q4_K => {
            let at = comptime!(16 + 32 * group as u32);
            words[to] = own.four(staged, at, tile);
            words[to + 1] = own.four(staged, comptime!(at + 16), tile);
        }
        BlockFormat::Q5_K => {
            #[unroll]
            for w in 0..8usize {
                words[to + w] = own.four(staged, comptime!(48 + 16 * w as u32), tile);
            }
            words[to + 8] = own.four(staged, 16u32, tile);
            words[to + 9] = own.four(staged, 32u32, tile);
        }
        // Q6_K: the lower bits of 128 elements, the upper ones, and their scales.
        _ => {
            #[unroll]
            for w in 0..4usize {
                words[to + w] = own.four(staged, comptime!((64 * group + 16 * w) as u32), tile);
            }
            words[to + 4] = own.four(staged, comptime!(128 + 32 * group as u32), tile);
            words[to + 5] = own.four(staged, comptime!(144 + 32 * group as u32), tile);
            words[to + 6] = row.four(staged, comptime!(192 + 8 * group as u32), tile);
            words[to + 7] = row.four(staged, comptime!(196 + 8 * group as u32), tile);
        }
    }
}

/// Elements 0 and 2 of the four that this lane has for product `product` of unit `unit` of its group, or 1 and 3 with `odd`: as the halves
/// of a word.
#[cube]
pub(super) fn pair(
    words: &Array<u32>,
    #[comptime] unit: usize,
    #[comptime] product: usize,
    #[comptime] odd: bool,
    #[comptime] from: usize,
    #[comptime] tile: Tile,
) -> u32 {
    match comptime!(tile.format) {
        BlockFormat::Q8_0 => {
            // 128 added to each.
            let word = shifted(words[from + product], comptime!(if odd { 8 } else { 0 }));
            (word & 0x00ff_00ffu32) ^ 0x0080_0080u32
        }
        BlockFormat::MXFP4 => {
            // Sign, exponent and fraction of E2M1 become those of an f16.
            let place = comptime!(4 * product as i32 + if odd { 8 } else { 0 });
            let magnitude = shifted(words[from], comptime!(place - 9)) & 0x0e00_0e00u32;
            magnitude | shifted(words[from], comptime!(place - 12)) & 0x8000_8000u32
        }
        BlockFormat::Q4_0 | BlockFormat::Q4_1 => nibbles(words[from], comptime!(product == 1), odd),
        BlockFormat::Q5_0 | BlockFormat::Q5_1 => {
            // The bits of elements 0 and 1 in the lower half, those of 2 and 3 in the upper one.
            let fifths = shifted(words[from + 1], comptime!(16 * product as i32)) & 15u32;
            let fifths = fifths | fifths << 14u32;
            let upper = comptime!(product == 1);
            let to = comptime!(i32::from(upper) * 4 + 4 - i32::from(odd));
            let mask = comptime!(if upper { 0x0100_0100u32 } else { 0x0010_0010 });
            nibbles(words[from], upper, odd) | shifted(fifths, comptime!(-to)) & mask
        }
        BlockFormat::Q4_K => nibbles(words[from + product], comptime!(unit == 1), odd),
        BlockFormat::Q5_K => {
            let upper = comptime!(unit % 2 == 1);
            let place = comptime!(unit as i32 + if odd { 8 } else { 0 });
            let to = comptime!(if upper { 8 } else { 4 });
            let mask = comptime!(if upper { 0x0100_0100u32 } else { 0x0010_0010 });
            let low = nibbles(words[from + comptime!(unit / 2 * 2 + product)], upper, odd);
            low | shifted(words[from + 8 + product], comptime!(place - to)) & mask
        }
        // Q6_K.
        _ => {
            let upper = comptime!(unit >= 2);
            let place = comptime!(2 * unit as i32 + if odd { 8 } else { 0 });
            let to = comptime!(if upper { 8 } else { 4 });
            let mask = comptime!(if upper { 0x0300_0300u32 } else { 0x0030_0030 });
            let low = nibbles(words[from + comptime!(unit % 2 * 2 + product)], upper, odd);
            low | shifted(words[from + 4 + product], comptime!(place - to)) & mask
        }
    }
}

/// The lower halves of bytes 0 and 2, or the upper ones, which stay where they are; with `odd` those of bytes 1 and 3.
#[cube]
fn nibbles(word: u32, #[comptime] upper: bool, #[comptime] odd: bool) -> u32 {
    let word = shifted(word, comptime!(if odd { 8 } else { 0 }));
    if comptime!(upper) { word & 0x00f0_00f0u32 } else { word & 0x000f_000fu32 }
}

/// A word shifted by this many bits to the right, or to the left if it is negative.
#[cube]
fn shifted(word: u32, #[comptime] by: i32) -> u32 {
    if comptime!(by > 0) {
        word >> comptime!(by as u32)
    } else if comptime!(by < 0) {
        word << comptime!(-by as u32)
    } else {
        word
    }
}

/// Whether the factors of runs are integers, which those of the block multiply.
pub(super) fn has_block_factors(format: BlockFormat) -> bool {
    factor_words(format) > 0
}

/// The words for the factors of a span of a row, to `to`.
#[cube]
pub(super) fn load_factors(
    words: &mut Array<u32>,
    staged: &SharedMemory<Vector<u32, Word>>,
    row: &Row,
    #[comptime] to: usize,
    #[comptime] tile: Tile,
) {
    let first = comptime!(if tile.format == BlockFormat::Q6_K { 208 } else { 0 });
    if comptime!(factor_words(tile.format) == 4 && tile.has_whole_loads()) {
        let found = row.sixteen(staged, first);
        #[unroll]
        for w in 0..4usize {
            words[to + w] = found[w];
        }
    } else {
        #[unroll]
        for w in 0..comptime!(factor_words(tile.format)) {
            words[to + w] = row.four(staged, comptime!(first + 4 * w as u32), tile);
        }
    }
}

/// The factors of the block that a span is.
#[cube]
pub(super) fn block_factors<H: Float>(words: &Array<u32>, #[comptime] from: usize, #[comptime] tile: Tile) -> Factors {
    let mut scale = half_of::<H>(words[from], false, true);
    let mut minimum = 0.0f32.runtime();
    if comptime!(has_minimum(tile.format)) {
        scale *= comptime!(1.0 / SMALL);
        minimum = half_of::<H>(words[from], true, true) * comptime!(-1.0 / SUM_UNIT);
    }
    Factors { scale, minimum }
}

/// The factors of unit `unit` of a span, or with Q6_K those of product `product` of it. The words for the factors of the span begin at `from`, those
/// of the group at `group_from`.
#[cube]
pub(super) fn factors<H: Float>(
    held: &Array<u32>,
    words: &Array<u32>,
    staged: &SharedMemory<Vector<u32, Word>>,
    row: &Row,
    zero: u32,
    #[comptime] unit: usize,
    #[comptime] product: usize,
    #[comptime] from: usize,
    #[comptime] group_from: usize,
    #[comptime] tile: Tile,
) -> Factors {
    let first = comptime!(block(tile.format, unit));
    let mut minimum = 0.0f32.runtime();
    let scale = match comptime!(tile.format) {
        BlockFormat::Q4_1 | BlockFormat::Q5_1 => {
            let word = row.four(staged, first, tile);
            minimum = half_of::<H>(word, true, true);
            half_of::<H>(word, false, true)
        }
        BlockFormat::MXFP4 => {
            let exponent = row.byte(staged, first, tile);
            half_power(exponent)
        }
        BlockFormat::Q4_K | BlockFormat::Q5_K => {
            // As the bits of an element, which count 2^-24.
            let scales = six_bits(held, from, comptime!(unit >= 4));
            let half = comptime!(unit % 4 / 2);
            let pair = shifted(scales, comptime!(unit as i32 % 2 * 8)) & 0x00ff_00ffu32;
            half_of::<H>(pair, comptime!(half == 1), true)
        }
        BlockFormat::Q6_K => {
            let at = comptime!(2 * unit + product);
            byte(words[group_from + 6 + comptime!(at / 4 % 2)], zero, comptime!(at as u32 % 4))
        }
        // Q4_0, Q5_0 and Q8_0.
        _ => row.half::<H>(staged, first, tile),
    };
    Factors { scale, minimum }
}

/// The minima of units `share` and `share + 4` of a span, as the halves of a word: what a left operand has of the units in their
/// [order](super::unit_sums::sums_as_right).
#[cube]
pub(super) fn minimum_pair(held: &Array<u32>, share: u32, #[comptime] from: usize) -> u32 {
    let (minima, rest) = (held[from + 2] >> (share * 8u32), held[from + 3] >> (share * 8u32));
    minima & 0x3fu32 | (rest << 12u32) & 0x000f_0000u32 | (minima << 14u32) & 0x0030_0000u32
}

/// The scales of the first 4 units, or of the last 4: 6 bits each, in their bytes.
#[cube]
fn six_bits(words: &Array<u32>, #[comptime] from: usize, #[comptime] last: bool) -> u32 {
    let scales = words[from + 1];
    if comptime!(last) {
        words[from + 3] & 0x0f0f_0f0fu32 | scales >> 2u32 & 0x3030_3030u32
    } else {
        scales & 0x3f3f_3f3fu32
    }
}
