//! Burn's backend on the `ndarray` crate.

use burn::tensor::{Int, Tensor, TensorPrimitive};
use burn_ndarray::{FloatNdArrayElement, IntNdArrayElement, NdArray, NdArrayTensor, QuantElement, SharedArray};

use super::CpuOps;
use crate::ops::InferenceBackend;
use crate::ops::cpu::{Elements, Floats, FloatsMut, InMemory, copied_ints};

impl<E: FloatNdArrayElement, I: IntNdArrayElement, Q: QuantElement> InferenceBackend for NdArray<E, I, Q>
where
    NdArrayTensor: From<SharedArray<E>>,
    NdArrayTensor: From<SharedArray<I>>,
{
    type Ops = CpuOps;
}

impl<E: FloatNdArrayElement, I: IntNdArrayElement, Q: QuantElement> InMemory for NdArray<E, I, Q>
where
    NdArrayTensor: From<SharedArray<E>>,
    NdArrayTensor: From<SharedArray<I>>,
{
    fn with_floats<const D: usize, R>(tensor: &Tensor<Self, D>, read: impl FnOnce(Floats<'_, D>) -> R) -> R {
        if let TensorPrimitive::Float(NdArrayTensor::F32(storage)) = tensor.clone().into_primitive() {
            let view = storage.view();
            let elements = view
                .as_slice_memory_order()
                .and_then(|elements| Elements::borrowed(elements, tensor.dims(), view.strides()));
            if let Some(elements) = elements {
                return read(Floats::F32(elements));
            }
        }
        read(Floats::copied(tensor))
    }

    fn with_int8<const D: usize, R>(tensor: &Tensor<Self, D, Int>, read: impl FnOnce(&[i8]) -> R) -> R {
        if let NdArrayTensor::I8(storage) = tensor.clone().into_primitive()
            && let Some(elements) = storage.view().as_slice()
        {
            return read(elements);
        }
        read(&copied_ints(tensor))
    }

    fn with_int16<const D: usize, R>(tensor: &Tensor<Self, D, Int>, read: impl FnOnce(&[i16]) -> R) -> R {
        if let NdArrayTensor::I16(storage) = tensor.clone().into_primitive()
            && let Some(elements) = storage.view().as_slice()
        {
            return read(elements);
        }
        read(&copied_ints(tensor))
    }

    fn update<const D: usize>(tensor: Tensor<Self, D>, write: impl FnOnce(FloatsMut<'_>)) -> Tensor<Self, D> {
        let dtype = tensor.dtype();
        let TensorPrimitive::Float(NdArrayTensor::F32(mut storage)) = tensor.into_primitive() else {
            panic!("InMemory::update: `tensor` has elements of {dtype:?}, expected F32");
        };
        write(FloatsMut::F32(elements_of(storage.ensure_owned())));
        Tensor::from_primitive(TensorPrimitive::Float(NdArrayTensor::F32(storage)))
    }

    fn update_int8<const D: usize, R>(
        tensor: Tensor<Self, D, Int>,
        write: impl FnOnce(&mut [i8]) -> R,
    ) -> (Tensor<Self, D, Int>, R) {
        let dtype = tensor.dtype();
        let NdArrayTensor::I8(mut storage) = tensor.into_primitive() else {
            panic!("InMemory::update_int8: `tensor` has elements of {dtype:?}, expected I8");
        };
        let result = write(elements_of(storage.ensure_owned()));
        (Tensor::from_primitive(NdArrayTensor::I8(storage)), result)
    }

    fn update_int16<const D: usize>(
        tensor: Tensor<Self, D, Int>,
        write: impl FnOnce(&mut [i16]),
    ) -> Tensor<Self, D, Int> {
        let dtype = tensor.dtype();
        let NdArrayTensor::I16(mut storage) = tensor.into_primitive() else {
            panic!("InMemory::update_int16: `tensor` has elements of {dtype:?}, expected I16");
        };
        write(elements_of(storage.ensure_owned()));
        Tensor::from_primitive(NdArrayTensor::I16(storage))
    }
}

/// The elements of an array in row-major order, in place if it has no other owner.
fn elements_of<E: Clone>(array: &mut SharedArray<E>) -> &mut [E] {
    if !array.is_standard_layout() {
        *array = array.as_standard_layout().into_owned().into_shared();
    }
    let Some(elements) = array.as_slice_mut() else {
        unreachable!("an array in standard layout is a slice");
    };
    elements
}
