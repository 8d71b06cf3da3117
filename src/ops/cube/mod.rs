//! How operations reach CubeCL kernels: directly on the device's tensors, or through fusion as one recorded operation.
//!
//! The arguments of an operation are a record that is generic over what represents a tensor; [`CubeCall`] describes it.
//! [`CubeDevice::run`] executes it. [`Fusion`](burn_fusion::Fusion) records it and runs it later on the inner backend.

mod call;
mod masks;
mod tensors;

pub use call::{CubeCall, CubeDevice, TensorKind, TensorLike};
pub(crate) use masks::{Masks, masks, rules};
pub(crate) use tensors::{
    empty, float, from_float, from_int, handle, int, is_float, kernel_accepts, optional_handle, owned, rows,
};
