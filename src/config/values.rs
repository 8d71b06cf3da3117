//! The values that a setting takes, where it is not a number.

use burn::tensor::{DType, backend::Backend};
use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// Element type of weights, activations and KV cache; DeepSpeed's `dtype`. Beside int8 matrices the rest is of floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataType {
    /// 32-bit floats.
    Fp32,
    /// IEEE half precision.
    Fp16,
    /// Brain floats.
    Bf16,
    /// Matrices of int8; activations, norms, biases and cache of floats, see [`of_backend`](DataType::of_backend).
    Int8,
}

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

    /// Burn's element type of activations, norms, biases and cache on `device`, and of dense matrices. Beside int8 that is
    /// f32 on a CPU backend, and on CubeCL f16, else bf16, else f32, the first that the device has.
    ///
    /// # Errors
    /// [`ConfigError::UnsupportedDataType`], with the type to use instead.
    pub fn of_backend<B: Backend>(self, device: &B::Device) -> Result<DType, ConfigError> {
        let candidates: &[DType] = match self {
            Self::Fp32 => &[DType::F32],
            Self::Fp16 => &[DType::F16],
            Self::Bf16 => &[DType::BF16],
            Self::Int8 => {
                Self::require_int8::<B>(device)?;
                match is_cubecl::<B>(device) {
                    true => &[DType::F16, DType::BF16, DType::F32],
                    false => &[DType::F32],
                }
            }
        };
        let dtype = candidates.iter().find(|&&dtype| B::supports_dtype(device, dtype));
        dtype.copied().ok_or_else(|| ConfigError::UnsupportedDataType {
            backend: B::name(device),
            dtype: self,
            remedy: "set `dtype` to fp32 (a checkpoint is converted on load), or use a backend that stores it (`flex` stores fp16 and bf16)",
        })
    }

    /// An error where the backend stores no int8.
    pub(crate) fn require_int8<B: Backend>(device: &B::Device) -> Result<(), ConfigError> {
        match B::supports_dtype(device, DType::I8) {
            true => Ok(()),
            false => Err(ConfigError::UnsupportedDataType {
                backend: B::name(device),
                dtype: Self::Int8,
                remedy: "set `dtype` to fp32 or fp16 and keep the weights dense (`enable_qkv_quantization` false, no \
                         `quantize`), or build with the feature `vulkan` in place of `wgpu`, whose shaders have no 8-bit integers",
            }),
        }
    }
}

/// Whether the backend is one of CubeCL's. Burn's trait tells no more than the name: `fusion<cubecl<cuda>>`.
pub(crate) fn is_cubecl<B: Backend>(device: &B::Device) -> bool {
    B::name(device).contains("cubecl<")
}

impl std::fmt::Display for DataType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        })
    }
}

/// The norm in front of the QKV projection; DeepSpeed's `NormType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NormType {
    /// Mean and variance over the hidden size, <https://arxiv.org/abs/1607.06450>.
    LayerNorm,
    /// Accepted from a file, refused by [`DeepSpeedInferenceConfig::resolve`](crate::DeepSpeedInferenceConfig::resolve): it has no meaning in front of a projection.
    GroupNorm,
    /// Root mean square over the hidden size, <https://arxiv.org/abs/1910.07467>.
    RMSNorm,
}

/// Activation of the MLP that follows; DeepSpeed's `ActivationFuncType`. Attention does not read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
