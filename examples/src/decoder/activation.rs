//! The activations of MLPs, as `transformers` names them.

use burn::tensor::Tensor;
use burn::tensor::activation::{gelu_approximate, relu, silu};
use burn_deepspeed::load::HuggingFaceConfig;
use burn_deepspeed::{ConfigError, InferenceBackend, Operations};

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Activation {
    Relu,
    /// The square of ReLU, <https://arxiv.org/abs/2109.08668>.
    ReluSquared,
    Gelu,
    GeluTanh,
    Silu,
}

impl Activation {
    pub fn of(config: &HuggingFaceConfig) -> Result<Self, ConfigError> {
        match config.activation.as_str() {
            "relu" => Ok(Self::Relu),
            "relu2" => Ok(Self::ReluSquared),
            "gelu" => Ok(Self::Gelu),
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Ok(Self::GeluTanh),
            "silu" | "swish" => Ok(Self::Silu),
            other => Err(ConfigError::Unsupported {
                key: config.fields()?.spelling(config.family.class.activation.names).into(),
                value: format!("\"{other}\""),
                supported: "relu, relu2, gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, silu, swish".into(),
            }),
        }
    }

    pub fn apply<B: InferenceBackend>(self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        match self {
            Self::Relu => relu(x),
            Self::ReluSquared => relu(x).square(),
            Self::Gelu => B::Ops::gelu(x),
            Self::GeluTanh => gelu_approximate(x),
            Self::Silu => silu(x),
        }
    }
}
