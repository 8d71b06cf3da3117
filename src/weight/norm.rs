//! The parameters of a LayerNorm or RMSNorm.

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, backend::Backend};

use super::param::{given, lazy};
use crate::error::check_shape;
use crate::spec::NormSpec;

/// The parameters of a norm that is fused with the projection after it, or with the sum before it.
#[derive(Module, Debug)]
pub struct FusedNorm<B: Backend> {
    gamma: Param<Tensor<B, 1>>,
    beta: Option<Param<Tensor<B, 1>>>,
    #[module(skip)]
    spec: NormSpec,
}

impl<B: Backend> FusedNorm<B> {
    /// A fresh norm: gamma of ones, beta of zeros. An RMSNorm has no beta.
    pub fn init(size: usize, bias: bool, spec: NormSpec, dtype: DType, device: &B::Device) -> Self {
        let bias = bias && !spec.rms;
        Self {
            gamma: lazy([size], dtype, device, move |device| Tensor::ones([size], device)),
            beta: bias.then(|| lazy([size], dtype, device, move |device| Tensor::zeros([size], device))),
            spec,
        }
    }

    /// A norm with these values, each `[E]`.
    pub fn new(gamma: Tensor<B, 1>, beta: Option<Tensor<B, 1>>, spec: NormSpec) -> Self {
        if let Some(beta) = &beta {
            check_shape("FusedNorm::new", "beta", &gamma.dims(), &beta.dims());
        }
        Self { gamma: given(gamma), beta: beta.map(given), spec }
    }

    /// The factor of each feature, `[E]`.
    pub fn gamma(&self) -> Tensor<B, 1> {
        self.gamma.val()
    }

    /// The term added to each feature, `[E]`.
    pub fn beta(&self) -> Option<Tensor<B, 1>> {
        self.beta.as_ref().map(Param::val)
    }

    /// Whether there is a beta.
    pub fn has_beta(&self) -> bool {
        self.beta.is_some()
    }

    /// Which norm, and its epsilon.
    pub fn spec(&self) -> NormSpec {
        self.spec
    }

    /// Number of features that are normalised over.
    pub fn size(&self) -> usize {
        self.gamma.lazy_shape()[0]
    }
}
