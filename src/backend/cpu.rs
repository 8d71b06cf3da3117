//! Operations on the CPU kernels.

use burn::tensor::Tensor;
use burn_deepspeed_core::path::BlockProblem;

use crate::ops::cpu::InMemory;
use crate::ops::{
    Activation, Attention, ContextProblem, LatentContext, LatentProblem, NormaliseAndRotate, Operations, Plan,
    QkvGemmOutput, SoftmaxContext, SoftmaxContextOutput,
};
use crate::ops::{
    activation, attention, context_gate, gated_activation, latent_context, normalise_and_rotate, qkv_gemm,
    residual_norm, softmax_context,
};
use crate::weight::{FusedNorm, QkvWeight, Weight};

/// Every operation that the CPU kernels have, for a backend whose tensors are [`InMemory`]; the others on the reference.
#[derive(Debug, Clone, Copy)]
pub struct CpuOps;

impl<B: InMemory> Operations<B> for CpuOps {
    fn fast_operations() -> &'static [&'static str] {
        &[
            "qkv_gemm",
            "softmax_context",
            "latent_context",
            "masked_attention",
            "normalise_and_rotate",
            "context_gate",
            "linear",
            "vector_matmul",
            "residual_norm",
            "activation",
            "gated_activation",
            "gelu",
        ]
    }

    fn qkv_gemm(
        input: Tensor<B, 3>,
        norm: Option<&FusedNorm<B>>,
        qkv: &QkvWeight<B>,
        want_norm: bool,
    ) -> QkvGemmOutput<B> {
        qkv_gemm::cpu::qkv_gemm(input, norm, qkv, want_norm)
    }

    fn softmax_context(arguments: SoftmaxContext<'_, B>) -> SoftmaxContextOutput<B> {
        softmax_context::cpu::softmax_context(arguments)
    }

    fn normalise_and_rotate(arguments: NormaliseAndRotate<'_, B>) -> [Tensor<B, 4>; 3] {
        normalise_and_rotate::cpu::normalise_and_rotate(arguments)
    }

    fn latent_context(arguments: LatentContext<'_, B>) -> Tensor<B, 3> {
        latent_context::cpu::latent_context(arguments)
    }

    fn plan_latent_context(problem: &LatentProblem, _device: &B::Device) -> Plan {
        let absorbed = problem.absorbed().and_then(|problem| problem.on_cpu().ok());
        absorbed.map_or_else(|| problem.expanded().on_cpu(), Ok).into()
    }

    fn plan_softmax_context(problem: &ContextProblem, _device: &B::Device) -> Plan {
        problem.on_cpu().into()
    }

    fn plan_masked_attention(problem: &ContextProblem, _device: &B::Device) -> Plan {
        ContextProblem { cache: None, ..*problem }.on_cpu().into()
    }

    fn plan_block_product(problem: &BlockProblem, _device: &B::Device) -> Plan {
        problem.on_cpu()
    }

    fn masked_attention(arguments: Attention<B>) -> Tensor<B, 4> {
        attention::cpu::masked_attention(arguments)
    }

    fn context_gate(context: Tensor<B, 3>, gate: Tensor<B, 3>) -> Tensor<B, 3> {
        context_gate::on_cpu(context, gate)
    }

    fn linear(input: Tensor<B, 3>, weight: &Weight<B>) -> Tensor<B, 3> {
        qkv_gemm::cpu::project("linear", input, weight, true)
    }

    fn vector_matmul(input: Tensor<B, 3>, weight: &Weight<B>) -> Tensor<B, 3> {
        qkv_gemm::cpu::project("vector_matmul", input, weight, false)
    }

    fn residual_norm(input: Tensor<B, 3>, residual: Tensor<B, 3>, norm: &FusedNorm<B>) -> Tensor<B, 3> {
        residual_norm::on_cpu(input, residual, norm)
    }

    fn activation(input: Tensor<B, 3>, activation: Activation) -> Tensor<B, 3> {
        activation::on_cpu(input, activation)
    }

    fn gated_activation(gate: Tensor<B, 3>, up: Tensor<B, 3>, activation: Activation) -> Tensor<B, 3> {
        gated_activation::on_cpu(gate, up, activation)
    }
}
