//! The exact GELU (arXiv:1606.08415); DeepSpeed's `bias_gelu`, whose bias [`linear`](crate::ops::Operations::linear) adds.

use burn::tensor::{Tensor, activation, backend::Backend};

/// The definition of [`Operations::gelu`](crate::ops::Operations::gelu).
pub fn reference<B: Backend>(input: Tensor<B, 3>) -> Tensor<B, 3> {
    if input.shape().num_elements() == 0 { input } else { activation::gelu(input) }
}

/// [`Operations::gelu`](crate::ops::Operations::gelu) for backends on the CPU.
#[cfg(feature = "cpu")]
pub(crate) fn on_cpu<B: super::cpu::InMemory>(input: Tensor<B, 3>) -> Tensor<B, 3> {
    match super::cpu::is_float(input.dtype()) {
        true => B::update(input, |input| input.in_f32(burn_deepspeed_kernels::cpu::gelu::gelu)),
        false => reference(input),
    }
}
