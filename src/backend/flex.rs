//! Burn's portable CPU backend.

use std::ops::Range;

use burn::tensor::{DType, Element, Int, Tensor, TensorPrimitive};
use burn_flex::{Flex, FlexTensor};
use bytemuck::Pod;
use half::{bf16, f16};

use super::CpuOps;
use crate::ops::InferenceBackend;
use crate::ops::cpu::{Elements, Floats, FloatsMut, InMemory, copied_ints, slice_assign};

impl InferenceBackend for Flex {
    type Ops = CpuOps;
}

impl InMemory for Flex {
    fn with_floats<const D: usize, R>(tensor: &Tensor<Self, D>, read: impl FnOnce(Floats<'_, D>) -> R) -> R {
        if let TensorPrimitive::Float(primitive) = tensor.clone().into_primitive() {
            let shape = tensor.dims();
            let floats = match primitive.dtype() {
                DType::F32 => in_place::<f32, D>(&primitive, shape).map(Floats::F32),
                DType::F16 => in_place::<f16, D>(&primitive, shape).map(Floats::F16),
                DType::BF16 => in_place::<bf16, D>(&primitive, shape).map(Floats::BF16),
                _ => None,
            };
            if let Some(floats) = floats {
                return read(floats);
            }
        }
        read(Floats::copied(tensor))
    }

    fn with_int8<const D: usize, R>(tensor: &Tensor<Self, D, Int>, read: impl FnOnce(&[i8]) -> R) -> R {
        match tensor.clone().into_primitive().as_slice() {
            Some(elements) => read(elements),
            None => read(&copied_ints(tensor)),
        }
    }

    fn with_int16<const D: usize, R>(tensor: &Tensor<Self, D, Int>, read: impl FnOnce(&[i16]) -> R) -> R {
        match tensor.clone().into_primitive().as_slice() {
            Some(elements) => read(elements),
            None => read(&copied_ints(tensor)),
        }
    }

    fn update<const D: usize>(tensor: Tensor<Self, D>, write: impl FnOnce(FloatsMut<'_>)) -> Tensor<Self, D> {
        let tensor = tensor.into_primitive().tensor();
        let (written, ()) = match tensor.dtype() {
            DType::F32 => changed(tensor, |elements| write(FloatsMut::F32(elements))),
            DType::F16 => changed(tensor, |elements| write(FloatsMut::F16(elements))),
            DType::BF16 => changed(tensor, |elements| write(FloatsMut::BF16(elements))),
            dtype => panic!("InMemory::update: `tensor` has elements of {dtype:?}, expected F32, F16 or BF16"),
        };
        Tensor::from_primitive(TensorPrimitive::Float(written))
    }

    fn update_int8<const D: usize, R>(
        tensor: Tensor<Self, D, Int>,
        write: impl FnOnce(&mut [i8]) -> R,
    ) -> (Tensor<Self, D, Int>, R) {
        let (tensor, result) = changed(tensor.into_primitive(), write);
        (Tensor::from_primitive(tensor), result)
    }

    fn update_int16<const D: usize>(
        tensor: Tensor<Self, D, Int>,
        write: impl FnOnce(&mut [i16]),
    ) -> Tensor<Self, D, Int> {
        Tensor::from_primitive(changed(tensor.into_primitive(), write).0)
    }

    /// `burn-flex` 0.21 keeps a reference to the tensor while it assigns, and so copies all of it. This writes only the part.
    fn assign(tensor: Tensor<Self, 4>, at: [Range<usize>; 4], tokens: Tensor<Self, 4>) -> Tensor<Self, 4> {
        let shape = tensor.dims();
        let mut into = tensor.into_primitive().tensor();
        let from = tokens.clone().into_primitive().tensor().to_contiguous();
        let written = match into.dtype() {
            DType::F32 => copy_rows::<f32>(&mut into, shape, &at, &from),
            DType::F16 => copy_rows::<f16>(&mut into, shape, &at, &from),
            DType::BF16 => copy_rows::<bf16>(&mut into, shape, &at, &from),
            _ => None,
        };
        let tensor = Tensor::from_primitive(TensorPrimitive::Float(into));
        match written {
            Some(()) => tensor,
            None => slice_assign(tensor, at, tokens),
        }
    }
}

/// The elements in place; `None` if a stride is negative.
fn in_place<E: Element + Pod, const D: usize>(tensor: &FlexTensor, shape: [usize; D]) -> Option<Elements<'_, D, E>> {
    let layout = tensor.layout();
    Elements::borrowed(&tensor.storage::<E>()[layout.start_offset()..], shape, layout.strides())
}

/// Lets `write` change the elements in row-major order, in place if their storage has no other owner and holds nothing else.
fn changed<E: Element + Pod, R>(tensor: FlexTensor, write: impl FnOnce(&mut [E]) -> R) -> (FlexTensor, R) {
    let whole = tensor.storage::<E>().len() == tensor.layout().num_elements();
    let mut tensor = if whole && tensor.is_contiguous() { tensor } else { tensor.to_contiguous() };
    let result = write(tensor.storage_mut());
    (tensor, result)
}

/// Copies `[B, K, T, H]` tokens to the part `at` of a `[B, K, capacity, H]` cache; `None`, and nothing is written, if the
/// cache is shared or not contiguous.
fn copy_rows<E: Element + Pod>(
    into: &mut FlexTensor,
    [_, heads, slots, features]: [usize; 4],
    at: &[Range<usize>; 4],
    from: &FlexTensor,
) -> Option<()> {
    if !into.is_contiguous() || into.layout().start_offset() != 0 {
        return None;
    }
    let new = at[2].len() * features;
    let from = from.as_slice::<E>()?;
    let into = into.try_storage_mut::<E>()?;
    let blocks = at[0].clone().flat_map(|row| at[1].clone().map(move |head| row * heads + head));
    for (block, tokens) in blocks.zip(from.chunks(new.max(1))) {
        let start = (block * slots + at[2].start) * features;
        into[start..start + new].copy_from_slice(tokens);
    }
    Some(())
}
