//! The values that a setting takes, where it is not a number.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::block::BlockFormat;
use crate::data_type::{DataType, MatrixFormat};
use crate::error::ConfigError;

impl DataType {
    const NAMES: [(&str, Self); 9] = [
        ("fp32", Self::Fp32),
        ("float32", Self::Fp32),
        ("float", Self::Fp32),
        ("fp16", Self::Fp16),
        ("float16", Self::Fp16),
        ("half", Self::Fp16),
        ("bf16", Self::Bf16),
        ("bfloat16", Self::Bf16),
        ("int8", Self::Int8),
    ];

    /// Reads DeepSpeed's, PyTorch's or Hugging Face's spelling: `fp16`, `half`, `float16`, `torch.float16`.
    ///
    /// # Errors
    /// [`ConfigError::UnknownValue`] for anything else.
    pub fn parse(name: &str) -> Result<Self, ConfigError> {
        let bare = name.strip_prefix("torch.").unwrap_or(name);
        Self::NAMES.iter().find(|(known, _)| *known == bare).map(|(_, dtype)| *dtype).ok_or_else(|| {
            ConfigError::UnknownValue {
                key: "dtype".into(),
                value: format!("`{name}`"),
                accepted: "fp32, fp16, bf16 or int8".into(),
            }
        })
    }
}

impl FromStr for MatrixFormat {
    type Err = ConfigError;

    /// Reads `dtype`, `stored`, or the name of a [format](BlockFormat) that floats can be rounded to.
    fn from_str(name: &str) -> Result<Self, ConfigError> {
        let blocks = |name: &str| name.parse().ok().filter(|format: &BlockFormat| format.can_quantise());
        match name {
            "dtype" => Ok(Self::OfDtype),
            "stored" => Ok(Self::Stored),
            name => blocks(name).map(Self::Blocks).ok_or_else(|| {
                let formats: Vec<String> = BlockFormat::writable().map(String::from).collect();
                let (key, value) = ("matrix_format".into(), format!("`{name}`"));
                ConfigError::UnknownValue { key, value, accepted: format!("dtype, stored, {}", formats.join(", ")) }
            }),
        }
    }
}

impl TryFrom<String> for MatrixFormat {
    type Error = ConfigError;

    fn try_from(name: String) -> Result<Self, ConfigError> {
        name.parse()
    }
}

/// The norm before the QKV projection; DeepSpeed's `NormType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum NormType {
    /// Mean and variance over the hidden size, <https://arxiv.org/abs/1607.06450>.
    LayerNorm,
    /// Read from a file, and refused by [`resolve`](crate::config::DeepSpeedInferenceConfig::resolve): no kernel normalises groups before a
    /// projection.
    GroupNorm,
    /// Root mean square over the hidden size, <https://arxiv.org/abs/1910.07467>.
    RMSNorm,
}

/// Activation of the MLP that follows; DeepSpeed's `ActivationFuncType`. Attention does not read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum MlpActivation {
    /// Not known.
    UNKNOWN,
    /// GELU.
    GELU,
    /// ReLU.
    ReLU,
    /// Gated GELU.
    GatedGELU,
    /// Gated SiLU.
    GatedSILU,
}

/// Which keys a query sees under `local_attention`, for a `window_size` of W. In JSON `backward`, `symmetric` or `chunked`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WindowKind {
    /// The last W keys, its own included: `sliding_window` of a decoder.
    #[default]
    Backward,
    /// Those at a distance of at most W / 2, rounded down, before it and after it: `local_attention` of ModernBERT. Only without
    /// `triangular_masking`.
    Symmetric,
    /// Those of its own chunk of W tokens, up to itself: `attention_chunk_size` of Llama 4. Chunks count from the first token of a row
    /// that the mask over keys does not hide. Only with `triangular_masking`.
    Chunked,
}
