//! Burn's backend on the `ndarray` crate.

use std::borrow::Cow;

use burn::tensor::{Tensor, TensorPrimitive};
use burn_ndarray::{FloatNdArrayElement, IntNdArrayElement, NdArray, NdArrayTensor, QuantElement, SharedArray};

use crate::ops::softmax_context::cpu::{self, InMemory};
use crate::ops::softmax_context::{ContextProblem, Plan};
use crate::ops::{InferenceBackend, SoftmaxContext, SoftmaxContextOutput};

impl<E: FloatNdArrayElement, I: IntNdArrayElement, Q: QuantElement> InferenceBackend for NdArray<E, I, Q>
where
    NdArrayTensor: From<SharedArray<E>>,
    NdArrayTensor: From<SharedArray<I>>,
{
    fn fast_operations() -> &'static [&'static str] {
        &["softmax_context"]
    }

    fn plan_softmax_context(problem: &ContextProblem, _device: &Self::Device) -> Plan {
        cpu::plan(problem)
    }

    fn softmax_context(arguments: SoftmaxContext<'_, Self>) -> SoftmaxContextOutput<Self> {
        cpu::softmax_context(arguments)
    }
}

impl<E: FloatNdArrayElement, I: IntNdArrayElement, Q: QuantElement> InMemory for NdArray<E, I, Q>
where
    NdArrayTensor: From<SharedArray<E>>,
    NdArrayTensor: From<SharedArray<I>>,
{
    fn with_elements<R>(tensor: &Tensor<Self, 4>, read: impl FnOnce(Cow<'_, [f32]>) -> R) -> R {
        match tensor.clone().into_primitive() {
            TensorPrimitive::Float(NdArrayTensor::F32(storage)) => match storage.view().as_slice() {
                Some(elements) => read(Cow::Borrowed(elements)),
                None => read(cpu::copied(tensor)),
            },
            _ => read(cpu::copied(tensor)),
        }
    }
}
