//! The backends that the modules run on: one impl block each, and nothing else.
//!
//! Each backend sits behind its Cargo feature. On `Autodiff` every operation is the reference, so modules train.

#[cfg(feature = "autodiff")]
mod autodiff;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "fusion")]
mod fusion;
#[cfg(feature = "ndarray")]
mod ndarray;

/// The operations that CPU and CubeCL kernels both have; `$kernels` is the module of their callers, `cpu` or `cube`.
#[cfg(any(feature = "ndarray", feature = "flex", feature = "cubecl"))]
macro_rules! kernel_operations {
    ($kernels:ident) => {
        fn softmax_context(
            arguments: $crate::ops::SoftmaxContext<'_, Self>,
        ) -> $crate::ops::SoftmaxContextOutput<Self> {
            $crate::ops::softmax_context::$kernels::softmax_context(arguments)
        }

        fn masked_attention(arguments: $crate::ops::Attention<Self>) -> burn::tensor::Tensor<Self, 4> {
            $crate::ops::attention::$kernels::masked_attention(arguments)
        }

        fn qkv_gemm(
            input: burn::tensor::Tensor<Self, 3>,
            norm: Option<&$crate::weight::FusedNorm<Self>>,
            qkv: &$crate::weight::QkvWeight<Self>,
            want_norm: bool,
        ) -> $crate::ops::QkvGemmOutput<Self> {
            $crate::ops::qkv_gemm::$kernels::qkv_gemm(input, norm, qkv, want_norm)
        }

        fn linear(
            input: burn::tensor::Tensor<Self, 3>,
            weight: &$crate::weight::Weight<Self>,
        ) -> burn::tensor::Tensor<Self, 3> {
            $crate::ops::qkv_gemm::$kernels::project("linear", input, weight, true)
        }

        fn vector_matmul(
            input: burn::tensor::Tensor<Self, 3>,
            weight: &$crate::weight::Weight<Self>,
        ) -> burn::tensor::Tensor<Self, 3> {
            $crate::ops::qkv_gemm::$kernels::project("vector_matmul", input, weight, false)
        }
    };
}
#[cfg(any(feature = "ndarray", feature = "flex", feature = "cubecl"))]
use kernel_operations;

/// The operations that run on CPU kernels, for a backend that is [`InMemory`](crate::ops::cpu::InMemory).
#[cfg(any(feature = "ndarray", feature = "flex"))]
macro_rules! cpu_operations {
    () => {
        fn fast_operations() -> &'static [&'static str] {
            &["qkv_gemm", "softmax_context", "masked_attention", "linear", "vector_matmul", "residual_norm", "gelu"]
        }

        fn plan_softmax_context(problem: &$crate::ops::ContextProblem, _device: &Self::Device) -> $crate::ops::Plan {
            $crate::ops::softmax_context::cpu::plan(problem)
        }

        fn plan_masked_attention(problem: &$crate::ops::ContextProblem, _device: &Self::Device) -> $crate::ops::Plan {
            $crate::ops::attention::cpu::plan(problem)
        }

        fn residual_norm(
            input: burn::tensor::Tensor<Self, 3>,
            residual: burn::tensor::Tensor<Self, 3>,
            norm: &$crate::weight::FusedNorm<Self>,
        ) -> burn::tensor::Tensor<Self, 3> {
            $crate::ops::residual_norm::on_cpu(input, residual, norm)
        }

        fn gelu(input: burn::tensor::Tensor<Self, 3>) -> burn::tensor::Tensor<Self, 3> {
            $crate::ops::gelu::on_cpu(input)
        }

        $crate::backend::kernel_operations!(cpu);
    };
}
#[cfg(any(feature = "ndarray", feature = "flex"))]
use cpu_operations;

/// The operations that run on CubeCL kernels, for a backend that is [`CubeOps`](crate::ops::cube::CubeOps).
#[cfg(feature = "cubecl")]
macro_rules! cube_operations {
    () => {
        fn fast_operations() -> &'static [&'static str] {
            &["qkv_gemm", "softmax_context", "masked_attention", "softmax", "linear", "vector_matmul", "pad_transform"]
        }

        fn plan_softmax_context(
            problem: &$crate::ops::ContextProblem,
            device: &<Self as burn::tensor::backend::BackendTypes>::Device,
        ) -> $crate::ops::Plan {
            $crate::ops::softmax_context::cube::plan::<Self>(problem, device)
        }

        fn plan_masked_attention(
            problem: &$crate::ops::ContextProblem,
            device: &<Self as burn::tensor::backend::BackendTypes>::Device,
        ) -> $crate::ops::Plan {
            let problem = $crate::ops::ContextProblem { cache: None, ..*problem };
            $crate::ops::softmax_context::cube::plan::<Self>(&problem, device)
        }

        $crate::backend::kernel_operations!(cube);

        fn softmax(arguments: $crate::ops::Softmax<Self>) -> burn::tensor::Tensor<Self, 4> {
            $crate::ops::softmax::cube::softmax(arguments)
        }

        fn pad_transform(heads: burn::tensor::Tensor<Self, 4>, size: usize) -> burn::tensor::Tensor<Self, 4> {
            $crate::ops::pad_transform::cube::pad_transform(heads, size)
        }

        #[cfg(feature = "nccl")]
        fn all_reduce<const D: usize>(
            partial: burn::tensor::Tensor<Self, D>,
            communicator: &dyn $crate::parallel::Communicator,
            settings: &$crate::parallel::Settings,
        ) -> Result<burn::tensor::Tensor<Self, D>, $crate::CommunicationError> {
            $crate::ops::all_reduce::cube::all_reduce(partial, communicator, settings)
        }
    };
}
#[cfg(feature = "cubecl")]
use cube_operations;
