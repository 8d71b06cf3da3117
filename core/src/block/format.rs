//! The formats of blocks and their sizes.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use super::scale::scale;
use super::{floats, nibbles, quantise, super_blocks};

/// A format of blocks, under its name in `ggml`. Elements of a block are consecutive in a row, and a row is a whole number of blocks.
/// A float is a block of one element.
///
/// ```
/// use burn_deepspeed_core::block::BlockFormat;
/// let mut block = [0; 34];
/// block[..2].copy_from_slice(&half::f16::from_f32(0.5).to_le_bytes()); // the scale
/// block[2] = -3i8 as u8; // the first of 32 elements
/// let mut values = [0.0; 32];
/// BlockFormat::Q8_0.dequantise(&block, &mut values);
/// assert_eq!(values[..2], [-1.5, 0.0]);
/// ```
#[allow(non_camel_case_types, reason = "the names are those of ggml")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum BlockFormat {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// Brain floats.
    BF16,
    /// 32 elements of 4 bits from -8 to 7, and a scale.
    Q4_0,
    /// 32 elements of 4 bits from 0 to 15, a scale and a minimum.
    Q4_1,
    /// 32 elements of 5 bits from -16 to 15, and a scale.
    Q5_0,
    /// 32 elements of 5 bits from 0 to 31, a scale and a minimum.
    Q5_1,
    /// 32 elements of 8 bits, and a scale.
    Q8_0,
    /// 256 elements of 2 bits; 16 have a scale and a minimum of 4 bits.
    Q2_K,
    /// 256 elements of 3 bits from -4 to 3; 16 have a scale of 6 bits.
    Q3_K,
    /// 256 elements of 4 bits; 32 have a scale and a minimum of 6 bits.
    Q4_K,
    /// 256 elements of 5 bits; 32 have a scale and a minimum of 6 bits.
    Q5_K,
    /// 256 elements of 6 bits from -32 to 31; 16 have a scale of 8 bits.
    Q6_K,
    /// 32 elements of 4 bits that choose from a table of 16 numbers, and a scale.
    IQ4_NL,
    /// 32 floats of 4 bits (E2M1), and a power of two as their scale.
    MXFP4,
}

impl BlockFormat {
    /// Every format.
    pub const ALL: [Self; 15] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ4_NL,
        Self::MXFP4,
    ];

    /// Elements of a block.
    pub const fn elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
            _ => 32,
        }
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 | Self::IQ4_NL => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
            Self::MXFP4 => 17,
        }
    }

    /// Bytes of a row of this number of elements; `None` if they are no whole number of blocks, or more bytes than memory has.
    pub const fn row_bytes(self, elements: usize) -> Option<usize> {
        match elements.is_multiple_of(self.elements()) {
            true => (elements / self.elements()).checked_mul(self.bytes()),
            false => None,
        }
    }

    /// The formats that floats can be rounded to.
    pub fn writable() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|format| format.can_quantise())
    }

    /// Whether this crate rounds floats to the format: see [`quantise`](Self::quantise).
    pub const fn can_quantise(self) -> bool {
        !matches!(self, Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K)
    }

    /// Rounds floats to consecutive blocks. For Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 these are the bits that `gguf.quants.quantize` computes.
    /// IQ4_NL and MXFP4 have the scale that maps the largest magnitude of a block to the largest of the format (for MXFP4 the next
    /// power of two that does not exceed it), and each element the nearest value. The formats of 256 elements are read only.
    ///
    /// # Panics
    /// If `values` are no whole number of blocks, or the format [cannot](Self::can_quantise) be written.
    pub fn quantise(self, values: &[f32]) -> Vec<u8> {
        assert!(
            values.len().is_multiple_of(self.elements()) && self.can_quantise(),
            "BlockFormat::quantise: {} elements do not become blocks of {self}",
            values.len()
        );
        let mut bytes = Vec::with_capacity(values.len() / self.elements() * self.bytes());
        let one: fn(&[f32; 32], &mut Vec<u8>) = match self {
            Self::F32 => return floats::of_f32(values, f32::to_le_bytes),
            Self::F16 => return floats::of_f32(values, |value| f16::from_f32(value).to_le_bytes()),
            Self::BF16 => return floats::of_f32(values, |value| bf16::from_f32(value).to_le_bytes()),
            Self::Q4_0 => quantise::q4_0,
            Self::Q4_1 => quantise::q4_1,
            Self::Q5_0 => quantise::q5_0,
            Self::Q5_1 => quantise::q5_1,
            Self::Q8_0 => quantise::q8_0,
            Self::IQ4_NL => quantise::iq4_nl,
            Self::MXFP4 => quantise::mxfp4,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K => return bytes,
        };
        values.as_chunks().0.iter().for_each(|block| one(block, &mut bytes));
        bytes
    }

    /// The elements of consecutive blocks, with the bits that `gguf.quants.dequantize` computes in f32.
    ///
    /// # Panics
    /// If `blocks` is not a whole number of blocks, or `into` has not one place for each element.
    pub fn dequantise(self, blocks: &[u8], into: &mut [f32]) {
        assert!(
            blocks.len().is_multiple_of(self.bytes()) && blocks.len() / self.bytes() * self.elements() == into.len(),
            "BlockFormat::dequantise: {} bytes of {self} do not have {} elements",
            blocks.len(),
            into.len()
        );
        let one = match self {
            Self::F32 => return floats::f32s(blocks, into),
            Self::F16 => return floats::f16s(blocks, into),
            Self::BF16 => return floats::bf16s(blocks, into),
            Self::Q4_0 => nibbles::q4_0,
            Self::Q4_1 => nibbles::q4_1,
            Self::Q5_0 => nibbles::q5_0,
            Self::Q5_1 => nibbles::q5_1,
            Self::Q8_0 => q8_0,
            Self::Q2_K => super_blocks::q2,
            Self::Q3_K => super_blocks::q3,
            Self::Q4_K => super_blocks::q4,
            Self::Q5_K => super_blocks::q5,
            Self::Q6_K => super_blocks::q6,
            Self::IQ4_NL => nibbles::iq4_nl,
            Self::MXFP4 => nibbles::mxfp4,
        };
        let blocks = blocks.chunks_exact(self.bytes());
        blocks.zip(into.chunks_exact_mut(self.elements())).for_each(|(block, into)| one(block, into));
    }
}

/// A name that no format has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no format of blocks; known are {known}", known = known())]
pub struct UnknownFormat(pub String);

fn known() -> String {
    BlockFormat::ALL.map(String::from).join(", ")
}

impl FromStr for BlockFormat {
    type Err = UnknownFormat;

    /// Reads a name in any case: `Q4_K`, `q4_k`.
    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        let own = Self::ALL.into_iter().find(|format| format.to_string().eq_ignore_ascii_case(name));
        own.ok_or_else(|| UnknownFormat(name.into()))
    }
}

impl TryFrom<String> for BlockFormat {
    type Error = UnknownFormat;

    fn try_from(name: String) -> Result<Self, UnknownFormat> {
        name.parse()
    }
}

impl From<BlockFormat> for String {
    fn from(format: BlockFormat) -> Self {
        format.to_string().to_lowercase()
    }
}

impl fmt::Display for BlockFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// `scale | 32 bytes`.
fn q8_0(block: &[u8], into: &mut [f32]) {
    let scale = scale(block, 0);
    into.iter_mut().zip(&block[2..]).for_each(|(place, &byte)| *place = f32::from(byte as i8) * scale);
}
