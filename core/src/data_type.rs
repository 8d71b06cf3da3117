//! The element types that a configuration names.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::block::BlockFormat;
use crate::element::ElementType;

/// Element type of weights, activations and KV cache; DeepSpeed's `dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataType {
    /// 32-bit floats.
    Fp32,
    /// IEEE half precision.
    Fp16,
    /// Brain floats.
    Bf16,
    /// Matrices of int8. Activations, norms, biases and cache remain floats.
    Int8,
}

impl DataType {
    /// The element type of a tensor of this type.
    pub fn element(self) -> ElementType {
        match self {
            Self::Fp32 => ElementType::F32,
            Self::Fp16 => ElementType::F16,
            Self::Bf16 => ElementType::BF16,
            Self::Int8 => ElementType::I8,
        }
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        })
    }
}

/// How the matrices of projections are kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum MatrixFormat {
    /// As the element type says: floats of that type, or int8.
    #[default]
    OfDtype,
    /// Each row as its file stores it, in blocks or in floats of 32 or 16 bits. A fresh matrix is f32.
    Stored,
    /// The same, but floats are rounded to these blocks.
    Blocks(BlockFormat),
}

impl MatrixFormat {
    /// The blocks that floats are rounded to.
    pub fn wanted(self) -> Option<BlockFormat> {
        match self {
            Self::Blocks(format) => Some(format),
            Self::OfDtype | Self::Stored => None,
        }
    }
}

impl From<MatrixFormat> for String {
    fn from(format: MatrixFormat) -> Self {
        format.to_string()
    }
}

impl fmt::Display for MatrixFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OfDtype => f.write_str("dtype"),
            Self::Stored => f.write_str("stored"),
            Self::Blocks(format) => f.write_str(&String::from(*format)),
        }
    }
}

/// Bits that the inputs of projections are rounded to: with a scale for each token where the matrix is int8, and for each 32 features of one where
/// it is in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InputBits {
    /// Integers up to 127, as PyTorch's dynamic quantisation has them.
    Eight,
    /// Integers up to 8191, and up to 32767 with blocks, whose inputs have 16 bits.
    Fourteen,
}

impl InputBits {
    /// The largest integer with an int8 matrix: a step is the largest magnitude of a token over this.
    pub fn largest(self) -> f32 {
        match self {
            Self::Eight => 127.0,
            Self::Fourteen => 8191.0,
        }
    }
}

/// Whether the inputs of projections are rounded, so that kernels multiply what they become: those of int8 or of blocks of integers to integers,
/// those of matrices of 16 bits to bf16.
///
/// In JSON `false`, 14, 8 or `"bf16"`; `true` is 14.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "RoundingValue", into = "RoundingValue")]
pub enum ActivationRounding {
    /// They stay as they are, but for those of a few tokens next to blocks of integers, which kernels of the CPU may round to 16 bits.
    #[default]
    Never,
    /// The inputs of matrices of int8, or of blocks of integers, to this many bits.
    To(InputBits),
    /// The inputs of matrices of bf16 or f16, to bf16.
    Bf16,
}

impl ActivationRounding {
    /// The bits that inputs of int8 matrices are rounded to.
    pub fn bits(self) -> Option<InputBits> {
        match self {
            Self::Never | Self::Bf16 => None,
            Self::To(bits) => Some(bits),
        }
    }
}

impl From<bool> for ActivationRounding {
    /// `true` is 14 bits.
    fn from(rounds: bool) -> Self {
        if rounds { Self::To(InputBits::Fourteen) } else { Self::Never }
    }
}

impl From<InputBits> for ActivationRounding {
    fn from(bits: InputBits) -> Self {
        Self::To(bits)
    }
}

/// How a file writes [`ActivationRounding::Bf16`].
const BF16: &str = "bf16";

/// How a file writes an [`ActivationRounding`].
#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged, expecting = "`round_activations` must be false, true, 14, 8 or \"bf16\"")]
enum RoundingValue {
    Rounds(bool),
    Bits(u64),
    Name(String),
}

impl TryFrom<RoundingValue> for ActivationRounding {
    type Error = String;

    fn try_from(value: RoundingValue) -> Result<Self, String> {
        match value {
            RoundingValue::Rounds(rounds) => Ok(rounds.into()),
            RoundingValue::Bits(14) => Ok(InputBits::Fourteen.into()),
            RoundingValue::Bits(8) => Ok(InputBits::Eight.into()),
            RoundingValue::Name(name) if name == BF16 => Ok(Self::Bf16),
            RoundingValue::Bits(other) => Err(refused(other)),
            RoundingValue::Name(other) => Err(refused(format!("{other:?}"))),
        }
    }
}

fn refused(value: impl fmt::Display) -> String {
    format!("`round_activations` is {value}; false, true (14 bits), 14, 8 and \"{BF16}\" are accepted")
}

impl From<ActivationRounding> for RoundingValue {
    fn from(rounding: ActivationRounding) -> Self {
        match rounding {
            ActivationRounding::Never => Self::Rounds(false),
            ActivationRounding::To(InputBits::Fourteen) => Self::Bits(14),
            ActivationRounding::To(InputBits::Eight) => Self::Bits(8),
            ActivationRounding::Bf16 => Self::Name(BF16.into()),
        }
    }
}

/// Element types that a configuration asks for in the KV cache, for keys and values separately; `None` is that of the
/// activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct KvCacheType {
    /// Of the keys.
    pub key: Option<DataType>,
    /// Of the values.
    pub value: Option<DataType>,
}

impl KvCacheType {
    /// Both in int8, with a scale for each head of each token.
    pub const INT8: Self = Self { key: Some(DataType::Int8), value: Some(DataType::Int8) };

    /// The element types of a cache next to activations of `activations`.
    pub fn types(self, activations: ElementType) -> CacheTypes {
        let side = |dtype: Option<DataType>| dtype.map_or(activations, DataType::element);
        CacheTypes { key: side(self.key), value: side(self.value) }
    }
}

impl From<DataType> for KvCacheType {
    fn from(both: DataType) -> Self {
        Self { key: Some(both), value: Some(both) }
    }
}

/// Element types of the keys and the values in a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheTypes {
    /// Of the keys.
    pub key: ElementType,
    /// Of the values.
    pub value: ElementType,
}

impl From<ElementType> for CacheTypes {
    fn from(both: ElementType) -> Self {
        Self { key: both, value: both }
    }
}

impl fmt::Display for CacheTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key == self.value {
            true => write!(f, "{}", self.key),
            false => write!(f, "keys {}, values {}", self.key, self.value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_false_true_a_number_of_bits_or_bf16() {
        let read = |text: &str| serde_json::from_str::<ActivationRounding>(text).map_err(|error| error.to_string());
        assert_eq!(read("false"), Ok(ActivationRounding::Never));
        assert_eq!(read("true"), Ok(ActivationRounding::To(InputBits::Fourteen)));
        for (text, bits) in [("14", InputBits::Fourteen), ("8", InputBits::Eight)] {
            assert_eq!(read(text), Ok(bits.into()));
            assert_eq!(serde_json::to_string(&ActivationRounding::To(bits)).expect("it is a number"), text);
        }
        assert_eq!(serde_json::to_string(&ActivationRounding::Never).expect("it is a bool"), "false");
        assert_eq!(read("\"bf16\""), Ok(ActivationRounding::Bf16));
        assert_eq!(serde_json::to_string(&ActivationRounding::Bf16).expect("it is a name"), "\"bf16\"");
        assert!(read("16").is_err_and(|error| error.contains("`round_activations` is 16")));
        assert!(
            read("\"8\"").is_err_and(|error| error.contains("is \"8\"; false, true (14 bits), 14, 8 and \"bf16\""))
        );
        assert!(read("[8]").is_err_and(|error| error.contains("false, true, 14, 8 or \"bf16\"")));
    }
}
