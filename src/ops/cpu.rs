//! How operations reach CPU kernels: the elements of a tensor, in place where possible.

use std::borrow::Cow;
use std::ops::Range;

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

pub(crate) use crate::cache::slice_assign;

/// The elements of an f32 tensor.
#[derive(Debug, Clone)]
pub struct Elements<'a, const D: usize> {
    /// Memory that begins with the first element of the tensor.
    pub elements: Cow<'a, [f32]>,
    /// Size of each axis.
    pub shape: [usize; D],
    /// Distance between neighbours along each axis, in elements.
    pub strides: [usize; D],
}

impl<'a, const D: usize> Elements<'a, D> {
    /// The elements in place; `None` if a stride is negative.
    pub fn borrowed(elements: &'a [f32], shape: [usize; D], strides: &[isize]) -> Option<Self> {
        let forwards = strides.len() == D && strides.iter().all(|stride| *stride >= 0);
        let strides = || std::array::from_fn(|axis| strides[axis].unsigned_abs());
        forwards.then(|| Self { elements: Cow::Borrowed(elements), shape, strides: strides() })
    }

    /// A dense copy.
    pub fn copied<B: Backend>(tensor: &Tensor<B, D>) -> Self {
        Self::row_major(Cow::Owned(tensor.to_data().iter().collect()), tensor.dims())
    }

    fn row_major(elements: Cow<'a, [f32]>, shape: [usize; D]) -> Self {
        let strides = std::array::from_fn(|axis| shape[axis + 1..].iter().product());
        Self { elements, shape, strides }
    }

    /// The elements in row-major order, without a copy if they are stored so.
    pub(crate) fn dense(&self) -> Cow<'_, [f32]> {
        let len = self.shape.iter().product();
        let dense = Self::row_major(Cow::Borrowed(&[]), self.shape);
        // The stride of an axis of size 1 is irrelevant.
        if (0..D).all(|axis| self.shape[axis] == 1 || self.strides[axis] == dense.strides[axis]) {
            return Cow::Borrowed(&self.elements[..len]);
        }
        let place = |index: usize| {
            let along = |axis: usize| index / dense.strides[axis] % self.shape[axis] * self.strides[axis];
            self.elements[(0..D).map(along).sum::<usize>()]
        };
        Cow::Owned((0..len).map(place).collect())
    }

    /// The same with contiguous elements along the last axis, without a copy if they are.
    pub(crate) fn in_rows(self) -> Self {
        if self.shape[D - 1] == 1 || self.strides[D - 1] == 1 {
            return self;
        }
        Self::row_major(Cow::Owned(self.dense().into_owned()), self.shape)
    }
}

/// A backend whose tensors are in the memory of the process.
pub trait InMemory: Backend {
    /// Reads the elements of an f32 tensor, without a copy if its strides are not negative. A tensor of another type is
    /// converted.
    fn with_elements<const D: usize, R>(tensor: &Tensor<Self, D>, read: impl FnOnce(Elements<'_, D>) -> R) -> R;

    /// Reads the elements of a tensor of int8 in row-major order, without a copy if they are stored so.
    fn with_int8<const D: usize, R>(tensor: &Tensor<Self, D, Int>, read: impl FnOnce(&[i8]) -> R) -> R;

    /// Lets `write` change the elements of an f32 tensor, in row-major order. In place if the tensor has no other owner.
    ///
    /// # Panics
    /// If the elements are not f32.
    fn update<const D: usize>(tensor: Tensor<Self, D>, write: impl FnOnce(&mut [f32])) -> Tensor<Self, D>;

    /// The same for a tensor of int8; also returns the result of `write`.
    ///
    /// # Panics
    /// If the elements are not int8.
    fn update_int8<const D: usize, R>(
        tensor: Tensor<Self, D, Int>,
        write: impl FnOnce(&mut [i8]) -> R,
    ) -> (Tensor<Self, D, Int>, R);

    /// Writes into a part of a tensor, in place if the tensor has no other owner.
    fn assign(tensor: Tensor<Self, 4>, at: [Range<usize>; 4], tokens: Tensor<Self, 4>) -> Tensor<Self, 4> {
        slice_assign(tensor, at, tokens)
    }
}

/// A copy of the elements of a tensor of int8.
pub(crate) fn copied_int8<B: Backend, const D: usize>(tensor: &Tensor<B, D, Int>) -> Vec<i8> {
    tensor.to_data().iter().collect()
}

/// Reads a vector that may be absent.
pub(crate) fn with_vector<B: InMemory, R>(vector: Option<&Tensor<B, 1>>, read: impl FnOnce(Option<&[f32]>) -> R) -> R {
    match vector {
        Some(vector) => B::with_elements(vector, |vector| read(Some(&vector.dense()))),
        None => read(None),
    }
}

/// A tensor of the results of a kernel.
pub(crate) fn tensor<B: Backend, const D: usize>(
    elements: Vec<f32>,
    shape: [usize; D],
    device: &B::Device,
) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(elements, shape), (device, DType::F32))
}
