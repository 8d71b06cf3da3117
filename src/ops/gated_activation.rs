//! An activation as the gate of another projection, <https://arxiv.org/abs/2002.05202>; DeepSpeed's `gated_activation`.

use burn::tensor::{Tensor, backend::Backend};
use burn_deepspeed_core::activation::Activation;

use super::activation::{in_f32, of_elements};
use crate::error::check_shape;

/// The definition of [`Operations::gated_activation`](crate::ops::Operations::gated_activation).
pub fn reference<B: Backend>(gate: Tensor<B, 3>, up: Tensor<B, 3>, function: Activation) -> Tensor<B, 3> {
    check_shape("gated_activation", "up", &gate.dims(), &up.dims());
    if gate.shape().num_elements() == 0 {
        return gate;
    }
    let dtype = gate.dtype();
    (of_elements(in_f32(gate), function) * in_f32(up)).cast(dtype)
}

/// [`Operations::gated_activation`](crate::ops::Operations::gated_activation) for backends on the CPU.
#[cfg(feature = "cpu")]
pub(crate) fn on_cpu<B: super::cpu::InMemory>(
    gate: Tensor<B, 3>,
    up: Tensor<B, 3>,
    function: Activation,
) -> Tensor<B, 3> {
    if ![gate.dtype(), up.dtype()].into_iter().all(super::cpu::is_float) || gate.shape().num_elements() == 0 {
        return reference(gate, up, function);
    }
    check_shape("gated_activation", "up", &gate.dims(), &up.dims());
    B::with_elements(&up, |up| {
        let change = |gate: &mut [f32]| burn_deepspeed_kernels::cpu::activation::gated(gate, &up.dense(), function);
        B::update(gate, |gate| gate.in_f32(change))
    })
}
