//! Tensors as arguments of kernels: arrays with scalar strides, read in vectors.

use cubecl::prelude::*;

use super::contract::Checked;
use crate::contract::extent;

/// The buffer of a tensor as the argument of a kernel.
pub(crate) fn array<R: Runtime>(tensor: Checked<'_, R>) -> ArrayArg<R> {
    let elements = extent(tensor.shape(), tensor.strides()).max(1);
    // SAFETY: a checked tensor's buffer holds the elements that its strides reach; one without elements is not read.
    unsafe { ArrayArg::from_raw_parts(tensor.handle.clone(), elements) }
}

/// Which of the optional tensors of a kernel are there, a bit for each. It is a compile-time argument of every kernel that has
/// several: CubeCL 0.10 can keep compiled kernels on disk, and the keys there do not tell one option from another.
pub(crate) fn presence(options: &[bool]) -> u32 {
    options.iter().rev().fold(0, |bits, present| bits << 1 | u32::from(*present))
}

/// The widest vectors that rows of all tensors can be read in: each divides every stride, and `unit`.
pub(crate) fn vector_size<R: Runtime>(client: &ComputeClient<R>, tensors: &[Checked<'_, R>], unit: usize) -> usize {
    let bytes = tensors.iter().map(|tensor| tensor.dtype.size()).max().unwrap_or(4);
    let divides = |size: usize| {
        let strides = |tensor: &Checked<'_, R>| {
            let outer = tensor.strides().len() - 1;
            tensor
                .strides()
                .iter()
                .zip(tensor.shape().iter())
                .take(outer)
                .all(|(stride, axis)| *axis == 1 || stride.is_multiple_of(size))
        };
        unit.is_multiple_of(size) && tensors.iter().all(strides)
    };
    client.io_optimized_vector_sizes(bytes).find(|size| divides(*size)).unwrap_or(1)
}

/// Strides with 0 along axes of one element.
pub(crate) fn broadcast_strides<R: Runtime, const D: usize>(tensor: Checked<'_, R>) -> [usize; D] {
    std::array::from_fn(|axis| if tensor.shape()[axis] == 1 { 0 } else { tensor.strides()[axis] })
}

/// Strides of batch, head and token, in elements or vectors.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct HeadStrides {
    pub batch: u32,
    pub head: u32,
    pub token: u32,
}

#[cube]
impl HeadStrides {
    /// The first element or vector of a head of a row.
    pub fn head(&self, batch: u32, head: u32) -> u32 {
        batch * self.batch + head * self.head
    }
}

/// The strides of a `[B, heads, tokens, features]` tensor, in vectors of `vector` elements.
pub(crate) fn head_strides<R: Runtime>(tensor: Checked<'_, R>, vector: usize) -> HeadStridesLaunch<R> {
    let stride = |axis: usize| (tensor.strides()[axis] / vector) as u32;
    HeadStridesLaunch::new(stride(0), stride(1), stride(2))
}
