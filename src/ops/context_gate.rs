//! The gate on the context, <https://arxiv.org/abs/2505.06708>; DeepSpeed has none.

use burn::tensor::{FloatDType, Tensor, activation, backend::Backend};

use crate::error::check_shape;

/// The definition of [`Operations::context_gate`](crate::ops::Operations::context_gate).
pub fn reference<B: Backend>(context: Tensor<B, 3>, gate: Tensor<B, 3>) -> Tensor<B, 3> {
    check_shape("context_gate", "gate", &context.dims(), &gate.dims());
    if context.shape().num_elements() == 0 {
        return context;
    }
    let dtype = context.dtype();
    (context.cast(FloatDType::F32) * activation::sigmoid(gate.cast(FloatDType::F32))).cast(dtype)
}

/// [`Operations::context_gate`](crate::ops::Operations::context_gate) for backends on the CPU.
#[cfg(feature = "cpu")]
pub(crate) fn on_cpu<B: super::cpu::InMemory>(context: Tensor<B, 3>, gate: Tensor<B, 3>) -> Tensor<B, 3> {
    if ![context.dtype(), gate.dtype()].into_iter().all(super::cpu::is_float) || context.shape().num_elements() == 0 {
        return reference(context, gate);
    }
    check_shape("context_gate", "gate", &context.dims(), &gate.dims());
    B::with_elements(&gate, |gate| {
        let gated = |context: &mut [f32]| burn_deepspeed_kernels::cpu::gate::gate(context, &gate.dense());
        B::update(context, |context| context.in_f32(gated))
    })
}
