//! The activations of MLPs, among them DeepSpeed's `bias_gelu`, whose bias [`linear`](crate::ops::Operations::linear) adds.

use burn::tensor::{DType, FloatDType, Tensor, activation, backend::Backend};
use burn_deepspeed_core::activation::Activation;

/// The definition of [`Operations::activation`](crate::ops::Operations::activation).
pub fn reference<B: Backend>(input: Tensor<B, 3>, function: Activation) -> Tensor<B, 3> {
    if input.shape().num_elements() == 0 {
        return input;
    }
    let dtype = input.dtype();
    of_elements(in_f32(input), function).cast(dtype)
}

/// Half types in f32.
pub(super) fn in_f32<B: Backend>(tensor: Tensor<B, 3>) -> Tensor<B, 3> {
    match tensor.dtype() {
        DType::F16 | DType::BF16 => tensor.cast(FloatDType::F32),
        _ => tensor,
    }
}

pub(super) fn of_elements<B: Backend>(input: Tensor<B, 3>, function: Activation) -> Tensor<B, 3> {
    match function {
        Activation::Gelu => activation::gelu(input),
        Activation::GeluTanh => activation::gelu_approximate(input),
        Activation::Silu => activation::silu(input),
    }
}

/// [`Operations::activation`](crate::ops::Operations::activation) for backends on the CPU.
#[cfg(feature = "cpu")]
pub(crate) fn on_cpu<B: super::cpu::InMemory>(input: Tensor<B, 3>, function: Activation) -> Tensor<B, 3> {
    if !super::cpu::is_float(input.dtype()) {
        return reference(input, function);
    }
    let change = |input: &mut [f32]| burn_deepspeed_kernels::cpu::activation::activate(input, function);
    B::update(input, |input| input.in_f32(change))
}
