//! An operation on the tensors of a CubeCL runtime, and the backends that run one.

use std::fmt::Debug;

use burn::tensor::backend::Backend;
use burn::tensor::ops::{BoolTensor, FloatTensor, IntTensor};
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;

/// What may represent a tensor in the arguments of a call: the tensor of a backend, its shape and element type, its index in
/// a recorded operation, or a buffer of a runtime.
pub trait TensorLike: Debug + Clone + Send + Sync + 'static {}

impl<T: Debug + Clone + Send + Sync + 'static> TensorLike for T {}

/// Shape and element type of a tensor.
pub type TensorKind = (Shape, DType);

/// An operation on the tensors of a runtime. It is implemented for the record of its arguments with `()` in place of each
/// tensor, such as `PadCall<()>`.
///
/// Arguments and results are each walked by one function. Collecting inputs, recording them, announcing outputs and taking
/// buffers all use it, so no code depends on the order of the tensors.
pub trait CubeCall: Debug + Send + Sync + 'static {
    /// Name of the operation in a recorded graph.
    const NAME: &'static str;

    /// The arguments, with `T` for each tensor.
    type Arguments<T: TensorLike>: TensorLike;

    /// The results, with `T` for each tensor.
    type Output<T: TensorLike>;

    /// Replaces every tensor of the arguments.
    fn walk<T: TensorLike, U: TensorLike>(
        arguments: Self::Arguments<T>,
        visit: &mut impl FnMut(T) -> U,
    ) -> Self::Arguments<U>;

    /// Replaces every tensor of the results.
    fn walk_output<T: TensorLike, U: TensorLike>(
        output: Self::Output<T>,
        visit: &mut impl FnMut(T) -> U,
    ) -> Self::Output<U>;

    /// Shapes and element types of the results.
    fn announce(arguments: Self::Arguments<TensorKind>) -> Self::Output<TensorKind>;

    /// Launches the kernels. An input with no other owner may be overwritten.
    fn launch<R: CubeRuntime>(arguments: Self::Arguments<CubeTensor<R>>) -> Self::Output<CubeTensor<R>>;
}

/// A backend whose tensors, of whatever kind, are buffers of a CubeCL runtime.
pub trait CubeDevice: Backend {
    /// Runs an operation.
    fn run<C: CubeCall>(arguments: C::Arguments<FloatTensor<Self>>) -> C::Output<FloatTensor<Self>>;

    /// Passes integers to a call.
    fn from_int(tensor: IntTensor<Self>) -> FloatTensor<Self>;

    /// Takes integers from the results of a call.
    fn to_int(tensor: FloatTensor<Self>) -> IntTensor<Self>;

    /// Passes booleans to a call.
    fn from_bool(tensor: BoolTensor<Self>) -> FloatTensor<Self>;

    /// Whether the device has tensor cores for this element type, and room for heads of this size.
    fn has_tensor_cores(device: &Self::Device, dtype: DType, head_dim: usize) -> bool;

    /// Whether the device has TF32, to which Burn's matmul then rounds the elements of f32 matrices.
    fn has_tf32(device: &Self::Device) -> bool;

    /// Whether devices of the runtime add tensors without the host. Default: no.
    fn adds_between_devices() -> bool {
        false
    }

    /// Submits the work that computes these tensors to the device, without waiting for it. It is called only if
    /// [`adds_between_devices`](Self::adds_between_devices). Default: does nothing.
    ///
    /// # Errors
    /// What has failed on this thread's stream since the last call, or that a tensor has no memory.
    fn submit(_tensors: Vec<FloatTensor<Self>>) -> Result<(), String> {
        Ok(())
    }
}
