//! How operations reach CPU kernels: the elements of a tensor, in place where possible.
//!
//! Kernels compute in f32. They read f16 and bf16 where keys, values and matrices lie, and the activations of a step, which are few, become
//! f32 before a kernel and are rounded after it.

use std::borrow::Cow;
use std::ops::Range;

use burn::tensor::{DType, Element, Int, Tensor, TensorData, backend::Backend};
use burn_deepspeed_kernels::cpu::attention::{Cached, Heads};
use half::slice::HalfFloatSliceExt;
use half::vec::HalfFloatVecExt;
use half::{bf16, f16};

pub(crate) use crate::cache::slice_assign;

/// Whether the kernels compute with tensors of this type.
pub(crate) fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// The elements of a tensor.
#[derive(Debug, Clone)]
pub struct Elements<'a, const D: usize, E: Clone = f32> {
    /// Memory that begins with the first element of the tensor.
    pub elements: Cow<'a, [E]>,
    /// Size of each axis.
    pub shape: [usize; D],
    /// Distance between neighbours along each axis, in elements.
    pub strides: [usize; D],
}

impl<'a, const D: usize, E: Copy> Elements<'a, D, E> {
    /// The elements in place; `None` if a stride is negative.
    pub fn borrowed(elements: &'a [E], shape: [usize; D], strides: &[isize]) -> Option<Self> {
        let forwards = strides.len() == D && strides.iter().all(|stride| *stride >= 0);
        let strides = || std::array::from_fn(|axis| strides[axis].unsigned_abs());
        forwards.then(|| Self { elements: Cow::Borrowed(elements), shape, strides: strides() })
    }

    fn row_major(elements: Cow<'a, [E]>, shape: [usize; D]) -> Self {
        let strides = std::array::from_fn(|axis| shape[axis + 1..].iter().product());
        Self { elements, shape, strides }
    }

    /// The elements in row-major order, without a copy if they are stored so.
    pub(crate) fn dense(&self) -> Cow<'_, [E]> {
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

impl<E: Copy> Elements<'_, 4, E> {
    /// Reads heads in place.
    fn with_heads<R>(self, read: impl FnOnce(Heads<'_, E>) -> R) -> R {
        let heads = self.in_rows();
        let [batch, head, token, _] = heads.strides;
        read(Heads { elements: &heads.elements, batch, head, token })
    }
}

/// The elements of a tensor of floats in a type that kernels read.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Floats<'a, const D: usize> {
    /// f32.
    F32(Elements<'a, D>),
    /// f16.
    F16(Elements<'a, D, f16>),
    /// bf16.
    BF16(Elements<'a, D, bf16>),
}

impl<'a, const D: usize> Floats<'a, D> {
    /// A dense copy, in f32 if the tensor has another type than these.
    pub fn copied<B: Backend>(tensor: &Tensor<B, D>) -> Self {
        let (shape, data) = (tensor.dims(), tensor.to_data());
        match tensor.dtype() {
            DType::F16 => Self::F16(Elements::row_major(Cow::Owned(data.iter().collect()), shape)),
            DType::BF16 => Self::BF16(Elements::row_major(Cow::Owned(data.iter().collect()), shape)),
            _ => Self::F32(Elements::row_major(Cow::Owned(data.iter().collect()), shape)),
        }
    }

    /// The elements in f32, without a copy if that is their type.
    pub fn widen(self) -> Elements<'a, D> {
        let (elements, shape) = match self {
            Self::F32(elements) => return elements,
            Self::F16(elements) => (elements.dense().to_f32_vec(), elements.shape),
            Self::BF16(elements) => (elements.dense().to_f32_vec(), elements.shape),
        };
        Elements::row_major(Cow::Owned(elements), shape)
    }
}

/// The elements of a tensor of floats, to be changed.
#[derive(Debug)]
#[non_exhaustive]
pub enum FloatsMut<'a> {
    /// f32.
    F32(&'a mut [f32]),
    /// f16.
    F16(&'a mut [f16]),
    /// bf16.
    BF16(&'a mut [bf16]),
}

impl FloatsMut<'_> {
    /// Lets `change` work on the elements in f32: in place if that is their type, otherwise on a copy that is rounded afterwards.
    pub fn in_f32<R>(self, change: impl FnOnce(&mut [f32]) -> R) -> R {
        match self {
            Self::F32(elements) => change(elements),
            Self::F16(elements) => changed(elements, change),
            Self::BF16(elements) => changed(elements, change),
        }
    }
}

fn changed<E, R>(elements: &mut [E], change: impl FnOnce(&mut [f32]) -> R) -> R
where
    [E]: HalfFloatSliceExt,
{
    let mut wide = vec![0.0; elements.len()];
    elements.convert_to_f32_slice(&mut wide);
    let result = change(&mut wide);
    elements.convert_from_f32_slice(&wide);
    result
}

/// A backend whose tensors are in the memory of the process.
pub trait InMemory: Backend {
    /// Reads the elements of a tensor of floats, without a copy if its strides are not negative. A tensor of a type that [`Floats`] has not
    /// is converted to f32.
    fn with_floats<const D: usize, R>(tensor: &Tensor<Self, D>, read: impl FnOnce(Floats<'_, D>) -> R) -> R;

    /// The same in f32.
    fn with_elements<const D: usize, R>(tensor: &Tensor<Self, D>, read: impl FnOnce(Elements<'_, D>) -> R) -> R {
        Self::with_floats(tensor, |floats| read(floats.widen()))
    }

    /// Reads the elements of a tensor of int8 in row-major order, without a copy if they are stored so.
    fn with_int8<const D: usize, R>(tensor: &Tensor<Self, D, Int>, read: impl FnOnce(&[i8]) -> R) -> R;

    /// The same for a tensor of 16-bit integers, which are the bits of floats.
    fn with_int16<const D: usize, R>(tensor: &Tensor<Self, D, Int>, read: impl FnOnce(&[i16]) -> R) -> R;

    /// Lets `write` change the elements of a tensor of floats, in row-major order. In place if the tensor has no other owner.
    ///
    /// # Panics
    /// If the elements have a type that [`FloatsMut`] has not.
    fn update<const D: usize>(tensor: Tensor<Self, D>, write: impl FnOnce(FloatsMut<'_>)) -> Tensor<Self, D>;

    /// The same for a tensor of int8; also returns the result of `write`.
    ///
    /// # Panics
    /// If the elements are not int8.
    fn update_int8<const D: usize, R>(
        tensor: Tensor<Self, D, Int>,
        write: impl FnOnce(&mut [i8]) -> R,
    ) -> (Tensor<Self, D, Int>, R);

    /// The same for a tensor of 16-bit integers.
    ///
    /// # Panics
    /// If the elements are not of 16 bits.
    fn update_int16<const D: usize>(
        tensor: Tensor<Self, D, Int>,
        write: impl FnOnce(&mut [i16]),
    ) -> Tensor<Self, D, Int>;

    /// Writes into a part of a tensor, in place if the tensor has no other owner.
    fn assign(tensor: Tensor<Self, 4>, at: [Range<usize>; 4], tokens: Tensor<Self, 4>) -> Tensor<Self, 4> {
        slice_assign(tensor, at, tokens)
    }
}

/// A copy of the elements of a tensor of integers.
pub(crate) fn copied_ints<E: Element, B: Backend, const D: usize>(tensor: &Tensor<B, D, Int>) -> Vec<E> {
    tensor.to_data().iter().collect()
}

/// Reads a vector that may be absent.
pub(crate) fn with_vector<B: InMemory, R>(vector: Option<&Tensor<B, 1>>, read: impl FnOnce(Option<&[f32]>) -> R) -> R {
    match vector {
        Some(vector) => B::with_elements(vector, |vector| read(Some(&vector.dense()))),
        None => read(None),
    }
}

/// Reads heads in f32, in place if that is their type.
pub(crate) fn with_heads<B: InMemory, R>(tensor: &Tensor<B, 4>, read: impl FnOnce(Heads<'_>) -> R) -> R {
    B::with_elements(tensor, |heads| heads.with_heads(read))
}

/// Reads keys, or values, in place.
pub(crate) fn with_cached<B: InMemory, R>(tensor: &Tensor<B, 4>, read: impl FnOnce(Cached<'_>) -> R) -> R {
    B::with_floats(tensor, |floats| match floats {
        Floats::F32(heads) => heads.with_heads(|heads| read(heads.into())),
        Floats::F16(heads) => heads.with_heads(|heads| read(heads.into())),
        Floats::BF16(heads) => heads.with_heads(|heads| read(heads.into())),
    })
}

/// A tensor of the results of a kernel, rounded to a type of floats.
pub(crate) fn tensor<B: Backend, const D: usize>(
    elements: Vec<f32>,
    shape: [usize; D],
    (device, dtype): (&B::Device, DType),
) -> Tensor<B, D> {
    let data = match dtype {
        DType::F16 => TensorData::new(Vec::<f16>::from_f32_slice(&elements), shape),
        DType::BF16 => TensorData::new(Vec::<bf16>::from_f32_slice(&elements), shape),
        _ => TensorData::new(elements, shape),
    };
    Tensor::from_data(data, (device, dtype))
}
