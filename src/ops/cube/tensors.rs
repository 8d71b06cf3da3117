//! Tensors on their way into kernels, and back.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Int, Shape, Tensor, TensorPrimitive};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous_aligned;
use burn_cubecl::ops::numeric::empty_device_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_deepspeed_kernels::cube::{TensorHandle, Unsupported};

use super::call::CubeDevice;

/// A tensor for the arguments of a call.
pub(crate) fn float<B: CubeDevice, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

/// A tensor of integers for the arguments of a call.
pub(crate) fn int<B: CubeDevice, const D: usize>(tensor: Tensor<B, D, Int>) -> FloatTensor<B> {
    B::from_int(tensor.into_primitive())
}

/// A tensor from the results of a call.
pub(crate) fn from_float<B: CubeDevice, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

/// A tensor of integers from the results of a call.
pub(crate) fn from_int<B: CubeDevice, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D, Int> {
    Tensor::from_primitive(B::to_int(primitive))
}

/// Whether the kernels compute with an element type.
pub(crate) fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// A new tensor on the device of another, with its element type and unspecified elements.
pub(crate) fn empty<R: CubeRuntime>(like: &CubeTensor<R>, shape: impl Into<Shape>) -> CubeTensor<R> {
    empty_device_dtype(like.client.clone(), like.device.clone(), shape.into(), like.dtype)
}

/// The tensor with contiguous elements along its last axis; copied if they are not.
pub(crate) fn rows<R: CubeRuntime>(tensor: CubeTensor<R>) -> CubeTensor<R> {
    let dense = tensor.meta.strides().last() == Some(&1) || tensor.meta.shape().last() == Some(&1);
    if dense { tensor } else { into_contiguous_aligned(tensor) }
}

/// The tensor if it has no other owner, so that a kernel may write into it, else a copy.
pub(crate) fn owned<R: CubeRuntime>(tensor: CubeTensor<R>) -> CubeTensor<R> {
    if tensor.can_mut() && tensor.is_nonoverlapping() { tensor } else { tensor.copy() }
}

/// A tensor as the kernels take it.
pub(crate) fn handle<R: CubeRuntime>(tensor: &CubeTensor<R>) -> TensorHandle<R> {
    TensorHandle::from(tensor.clone())
}

/// [`handle`] of a tensor that may be absent.
pub(crate) fn optional_handle<R: CubeRuntime>(tensor: Option<&CubeTensor<R>>) -> Option<TensorHandle<R>> {
    tensor.map(handle)
}

/// The result of a launch.
///
/// # Panics
/// If the kernel declined. The plan chose it from the sizes and element types, so it must accept.
#[track_caller]
pub(crate) fn kernel_accepts<T>(operation: &str, launched: Result<T, Unsupported>) -> T {
    launched
        .unwrap_or_else(|reason| panic!("{operation}: the kernel declined a problem that was planned for it: {reason}"))
}
