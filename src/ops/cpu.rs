//! How operations reach CPU kernels: the elements of a tensor, where they lie.

use std::borrow::Cow;
use std::ops::Range;

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

pub(crate) use crate::cache::slice_assign;

/// The elements of an f32 tensor.
pub(crate) struct Elements<'a, const D: usize> {
    /// From the first element of the tensor on.
    pub elements: Cow<'a, [f32]>,
    pub shape: [usize; D],
    /// In elements.
    pub strides: [usize; D],
}

impl<'a, const D: usize> Elements<'a, D> {
    /// The elements where they lie, unless an axis runs backwards.
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

    /// The elements in the order of the axes, without a copy if that is how they lie.
    pub fn dense(&self) -> Cow<'_, [f32]> {
        let len = self.shape.iter().product();
        let dense = Self::row_major(Cow::Borrowed(&[]), self.shape);
        // The stride of an axis of one element counts for nothing.
        if (0..D).all(|axis| self.shape[axis] == 1 || self.strides[axis] == dense.strides[axis]) {
            return Cow::Borrowed(&self.elements[..len]);
        }
        let place = |index: usize| {
            let along = |axis: usize| index / dense.strides[axis] % self.shape[axis] * self.strides[axis];
            self.elements[(0..D).map(along).sum::<usize>()]
        };
        Cow::Owned((0..len).map(place).collect())
    }

    /// The same with the elements of the last axis one behind the other, without a copy if they are.
    pub fn in_rows(self) -> Self {
        if self.shape[D - 1] == 1 || self.strides[D - 1] == 1 {
            return self;
        }
        Self::row_major(Cow::Owned(self.dense().into_owned()), self.shape)
    }
}

/// A backend whose tensors lie in memory.
pub(crate) trait InMemory: Backend {
    /// Reads the elements of an f32 tensor, without a copy where they lie at some strides.
    fn with_elements<const D: usize, R>(tensor: &Tensor<Self, D>, read: impl FnOnce(Elements<'_, D>) -> R) -> R;

    /// Reads the elements of a tensor of int8, in the order of its axes, without a copy where they lie so.
    fn with_int8<const D: usize, R>(tensor: &Tensor<Self, D, Int>, read: impl FnOnce(&[i8]) -> R) -> R;

    /// Lets `write` change the elements of an f32 tensor, in the order of its axes, in place if nobody else holds it.
    fn update<const D: usize>(tensor: Tensor<Self, D>, write: impl FnOnce(&mut [f32])) -> Tensor<Self, D>;

    /// The same for a tensor of int8; returns what `write` does beside it.
    fn update_int8<const D: usize, R>(
        tensor: Tensor<Self, D, Int>,
        write: impl FnOnce(&mut [i8]) -> R,
    ) -> (Tensor<Self, D, Int>, R);

    /// Writes into a part of a tensor, in place if nobody else holds it.
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

/// A tensor of what a kernel has computed.
pub(crate) fn tensor<B: Backend, const D: usize>(
    elements: Vec<f32>,
    shape: [usize; D],
    device: &B::Device,
) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(elements, shape), (device, DType::F32))
}
