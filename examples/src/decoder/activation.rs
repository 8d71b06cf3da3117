//! The activations of MLPs, as `transformers` names them.

use burn::tensor::Tensor;
use burn::tensor::activation::{relu, sigmoid};
use burn_deepspeed::load::HuggingFaceConfig;
use burn_deepspeed::{Activation as Fused, ConfigError, InferenceBackend, Operations};

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Activation {
    Relu,
    /// The square of ReLU, <https://arxiv.org/abs/2109.08668>.
    ReluSquared,
    /// One that kernels have, alone and as a gate.
    Fused(Fused),
    /// `x · sigmoid(1.702 · x)`.
    QuickGelu,
    Sigmoid,
    Tanh,
}

impl Activation {
    /// That of the MLP.
    pub fn of(config: &HuggingFaceConfig) -> Result<Self, ConfigError> {
        let key = config.fields()?.spelling(config.family.class.activation.names).to_string();
        Self::named(&config.activation, &key)
    }

    /// The activation of this name, which a file has under `key`.
    pub fn named(name: &str, key: &str) -> Result<Self, ConfigError> {
        match name {
            "relu" => Ok(Self::Relu),
            "relu2" => Ok(Self::ReluSquared),
            "gelu" => Ok(Self::Fused(Fused::Gelu)),
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Ok(Self::Fused(Fused::GeluTanh)),
            "quick_gelu" => Ok(Self::QuickGelu),
            "silu" | "swish" => Ok(Self::Fused(Fused::Silu)),
            "sigmoid" => Ok(Self::Sigmoid),
            "tanh" => Ok(Self::Tanh),
            other => Err(ConfigError::Unsupported {
                key: key.into(),
                value: format!("\"{other}\""),
                supported: "relu, relu2, gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, quick_gelu, silu, swish, \
                            sigmoid, tanh"
                    .into(),
            }),
        }
    }

    pub fn apply<B: InferenceBackend>(self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        match self {
            Self::Fused(fused) => B::Ops::activation(x, fused),
            Self::Relu => relu(x),
            Self::ReluSquared => {
                let x = relu(x);
                x.clone() * x
            }
            Self::QuickGelu => x.clone() * sigmoid(x.mul_scalar(1.702)),
            Self::Sigmoid => sigmoid(x),
            Self::Tanh => x.tanh(),
        }
    }

    /// `apply(gate) · up`.
    ///
    /// # Shapes
    /// - gate, up, output: `[B, T, E]`
    pub fn gated<B: InferenceBackend>(self, gate: Tensor<B, 3>, up: Tensor<B, 3>) -> Tensor<B, 3> {
        match self {
            Self::Fused(fused) => B::Ops::gated_activation(gate, up, fused),
            _ => self.apply(gate) * up,
        }
    }
}
