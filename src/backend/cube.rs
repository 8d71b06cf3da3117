//! Operations on the CubeCL kernels.

use burn::tensor::Tensor;
use burn_deepspeed_core::path::BlockProblem;

use crate::ops::cube::CubeDevice;
use crate::ops::{
    Attention, ContextProblem, LatentContext, LatentProblem, NormaliseAndRotate, Operations, Plan, QkvGemmOutput,
    Softmax, SoftmaxContext, SoftmaxContextOutput,
};
use crate::ops::{
    attention, latent_context, normalise_and_rotate, pad_transform, qkv_gemm, residual_norm, softmax, softmax_context,
};
use crate::weight::{FusedNorm, QkvWeight, Weight};
#[cfg(feature = "nccl")]
use crate::{
    error::CommunicationError,
    ops::all_reduce,
    parallel::{AgreedSettings, Communicator},
};

/// Every operation that the CubeCL kernels have, for a backend that is a [`CubeDevice`]; the others on the reference.
#[derive(Debug, Clone, Copy)]
pub struct CubeOps;

impl<B: CubeDevice> Operations<B> for CubeOps {
    fn fast_operations() -> &'static [&'static str] {
        &[
            "qkv_gemm",
            "softmax_context",
            "latent_context",
            "masked_attention",
            "normalise_and_rotate",
            "softmax",
            "linear",
            "vector_matmul",
            "residual_norm",
            "pad_transform",
        ]
    }

    fn qkv_gemm(
        input: Tensor<B, 3>,
        norm: Option<&FusedNorm<B>>,
        qkv: &QkvWeight<B>,
        want_norm: bool,
    ) -> QkvGemmOutput<B> {
        qkv_gemm::cube::qkv_gemm(input, norm, qkv, want_norm)
    }

    fn softmax_context(arguments: SoftmaxContext<'_, B>) -> SoftmaxContextOutput<B> {
        softmax_context::cube::softmax_context(arguments)
    }

    fn normalise_and_rotate(arguments: NormaliseAndRotate<'_, B>) -> [Tensor<B, 4>; 3] {
        normalise_and_rotate::cube::normalise_and_rotate(arguments)
    }

    fn latent_context(arguments: LatentContext<'_, B>) -> Tensor<B, 3> {
        latent_context::cube::latent_context(arguments)
    }

    fn plan_latent_context(problem: &LatentProblem, device: &B::Device) -> Plan {
        latent_context::cube::plan_latent_context::<B>(problem, device)
    }

    fn plan_softmax_context(problem: &ContextProblem, device: &B::Device) -> Plan {
        attention::cube::plan::<B>(problem, device).into()
    }

    fn plan_masked_attention(problem: &ContextProblem, device: &B::Device) -> Plan {
        attention::cube::plan::<B>(&ContextProblem { cache: None, ..*problem }, device).into()
    }

    fn plan_block_product(problem: &BlockProblem, _device: &B::Device) -> Plan {
        problem.on_cube().into()
    }

    fn masked_attention(arguments: Attention<B>) -> Tensor<B, 4> {
        attention::cube::masked_attention(arguments)
    }

    fn softmax(arguments: Softmax<B>) -> Tensor<B, 4> {
        softmax::cube::softmax(arguments)
    }

    fn linear(input: Tensor<B, 3>, weight: &Weight<B>) -> Tensor<B, 3> {
        qkv_gemm::cube::project("linear", input, weight, true)
    }

    fn vector_matmul(input: Tensor<B, 3>, weight: &Weight<B>) -> Tensor<B, 3> {
        qkv_gemm::cube::project("vector_matmul", input, weight, false)
    }

    #[cfg(feature = "nccl")]
    fn all_reduce<const D: usize>(
        partial: Tensor<B, D>,
        communicator: &dyn Communicator,
        settings: &AgreedSettings,
    ) -> Result<Tensor<B, D>, CommunicationError> {
        all_reduce::cube::all_reduce(partial, communicator, settings)
    }

    fn residual_norm(input: Tensor<B, 3>, residual: Tensor<B, 3>, norm: &FusedNorm<B>) -> Tensor<B, 3> {
        residual_norm::on_cube(input, residual, norm)
    }

    fn pad_transform(heads: Tensor<B, 4>, size: usize) -> Tensor<B, 4> {
        pad_transform::cube::pad_transform(heads, size)
    }
}
