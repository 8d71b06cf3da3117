//! Norm of a sum, for post-norm models; DeepSpeed's `layer_norm_residual`.

use burn::tensor::{FloatDType, Tensor, backend::Backend};

use super::qkv_gemm::normalise_for;
use crate::error::check_shape;
use crate::weight::FusedNorm;

/// The definition of [`Operations::residual_norm`](crate::ops::Operations::residual_norm).
pub fn reference<B: Backend>(input: Tensor<B, 3>, residual: Tensor<B, 3>, norm: &FusedNorm<B>) -> Tensor<B, 3> {
    check_shape("residual_norm", "residual", &input.dims(), &residual.dims());
    let dtype = input.dtype();
    if input.shape().num_elements() == 0 {
        return input;
    }
    let sum = input.cast(FloatDType::F32) + residual.cast(FloatDType::F32);
    normalise_for("residual_norm", sum, norm).cast(dtype)
}

/// [`Operations::residual_norm`](crate::ops::Operations::residual_norm) for backends on the CPU.
#[cfg(feature = "cpu")]
pub(crate) fn on_cpu<B: super::cpu::InMemory>(
    input: Tensor<B, 3>,
    residual: Tensor<B, 3>,
    norm: &FusedNorm<B>,
) -> Tensor<B, 3> {
    let dtypes = [input.dtype(), residual.dtype(), norm.gamma().dtype()];
    if !dtypes.into_iter().all(super::cpu::is_float) || input.shape().num_elements() == 0 {
        return reference(input, residual, norm);
    }
    check_shape("residual_norm", "residual", &input.dims(), &residual.dims());
    super::qkv_gemm::cpu::normed("residual_norm", &input, Some(&residual), norm)
}

/// [`Operations::residual_norm`](crate::ops::Operations::residual_norm) on CubeCL.
#[cfg(feature = "cubecl")]
pub(crate) fn on_cube<B: super::cube::CubeDevice>(
    input: Tensor<B, 3>,
    residual: Tensor<B, 3>,
    norm: &FusedNorm<B>,
) -> Tensor<B, 3> {
    let fits = super::cube::is_float(input.dtype()) && input.dtype() == residual.dtype();
    if !fits || input.shape().num_elements() == 0 {
        return reference(input, residual, norm);
    }
    let [batch, tokens, width] = input.dims();
    check_shape("residual_norm", "residual", &[batch, tokens, width], &residual.dims());
    check_shape("residual_norm", "input", &[batch, tokens, norm.size()], &[batch, tokens, width]);
    super::qkv_gemm::cube::normalise(input, Some(residual), norm)
}
