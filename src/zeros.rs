//! What Burn does with a tensor that may have no elements.
//!
//! A kernel for no elements would be an empty grid, which CUDA refuses, and CubeCL 0.10 reports that from every later operation.

use burn::tensor::{BasicOps, Bool, DType, Numeric, Tensor, backend::Backend};

/// Zeros, without a kernel if there are no elements.
pub(crate) fn zeros<B: Backend, const D: usize, K: Numeric<B>>(
    shape: [usize; D],
    (device, dtype): (&B::Device, DType),
) -> Tensor<B, D, K> {
    if shape.contains(&0) { Tensor::empty(shape, (device, dtype)) } else { Tensor::zeros(shape, (device, dtype)) }
}

/// A cast, without a kernel if there are no elements.
pub(crate) fn cast<B: Backend, const D: usize>(tensor: Tensor<B, D>, dtype: DType) -> Tensor<B, D> {
    if tensor.shape().num_elements() == 0 {
        zeros(tensor.dims(), (&tensor.device(), dtype))
    } else {
        tensor.cast(dtype)
    }
}

/// Flags that are made of a tensor, without a kernel if there are no elements.
pub(crate) fn flags<B: Backend, const D: usize, K: BasicOps<B>>(
    tensor: Tensor<B, D, K>,
    of: impl FnOnce(Tensor<B, D, K>) -> Tensor<B, D, Bool>,
) -> Tensor<B, D, Bool> {
    if tensor.shape().num_elements() == 0 { Tensor::empty(tensor.shape(), &tensor.device()) } else { of(tensor) }
}
