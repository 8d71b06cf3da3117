//! The definition of norm and QKV projection, in tensor operations.

use burn::tensor::{DType, FloatDType, Tensor, backend::Backend};

use crate::error::check_shape;
use crate::ops::projection::project;
use crate::weight::{FusedNorm, QkvWeight, SeparateQkv, Weight};
use crate::zeros::{cast, zeros};

/// What [`Operations::qkv_gemm`](crate::ops::Operations::qkv_gemm) returns.
#[derive(Debug, Clone)]
pub struct QkvGemmOutput<B: Backend> {
    /// `q | k | v`, `[B, T, (N + 2K)·H]`.
    pub qkv: Tensor<B, 3>,
    /// The normalised input, `[B, T, E]`, if it was requested. Without a norm that is the input.
    pub inp_norm: Option<Tensor<B, 3>>,
}

/// The definition of [`Operations::qkv_gemm`](crate::ops::Operations::qkv_gemm).
pub fn reference<B: Backend>(
    input: Tensor<B, 3>,
    norm: Option<&FusedNorm<B>>,
    qkv: &QkvWeight<B>,
    want_norm: bool,
) -> QkvGemmOutput<B> {
    let dtype = input.dtype();
    let normed = match norm {
        Some(norm) => normalise(input, norm),
        None => input,
    };
    let inp_norm = want_norm.then(|| cast(normed.clone(), dtype));
    let projected = |weight: &Weight<B>| project("qkv_gemm", normed.clone(), weight, weight.bias(), dtype);
    let qkv = match qkv {
        QkvWeight::Fused(weight) => projected(weight),
        QkvWeight::Separate(SeparateQkv { query, key, value }) => {
            let parts = [query, key, value].map(projected);
            if normed.shape().num_elements() == 0 {
                let [batch, tokens, _] = normed.dims();
                let width = parts.iter().map(|part| part.dims()[2]).sum();
                zeros([batch, tokens, width], (&normed.device(), dtype))
            } else {
                Tensor::cat(parts.into(), 2)
            }
        }
    };
    QkvGemmOutput { qkv, inp_norm }
}

/// LayerNorm or RMSNorm over the last axis.
///
/// # Shapes
/// - input, output: `[B, T, E]`, the output in f32
pub fn normalise<B: Backend>(input: Tensor<B, 3>, norm: &FusedNorm<B>) -> Tensor<B, 3> {
    normalise_for("qkv_gemm", input, norm)
}

/// [`normalise`] for the operation that panics name.
pub(in crate::ops) fn normalise_for<B: Backend>(
    operation: &str,
    input: Tensor<B, 3>,
    norm: &FusedNorm<B>,
) -> Tensor<B, 3> {
    let [batch, tokens, _] = input.dims();
    check_shape(operation, "input", &[batch, tokens, norm.size()], &input.dims());
    if input.shape().num_elements() == 0 {
        return zeros(input.dims(), (&input.device(), DType::F32));
    }
    let input = input.cast(FloatDType::F32);
    let spec = norm.spec();
    let centred = match spec.rms {
        true => input,
        false => input.clone() - input.mean_dim(2),
    };
    let variance = centred.clone().powi_scalar(2).mean_dim(2);
    let unit = centred / (variance + spec.epsilon).sqrt();
    let scaled = unit * norm.gamma().cast(FloatDType::F32).unsqueeze();
    match norm.beta() {
        Some(beta) => scaled + beta.cast(FloatDType::F32).unsqueeze(),
        None => scaled,
    }
}
