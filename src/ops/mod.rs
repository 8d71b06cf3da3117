//! The operations of attention: one method each on [`InferenceBackend`], and a public reference each.
//!
//! | operation | DeepSpeed | computes |
//! | --- | --- | --- |
//! | [`qkv_gemm`](InferenceBackend::qkv_gemm) | `QKVGemmOp` | norm, QKV projection, bias |
//! | [`softmax_context`](InferenceBackend::softmax_context) | `SoftmaxContextOp` | rotate, append to the cache, attend |
//! | [`masked_attention`](InferenceBackend::masked_attention) | the fused attention of `diffusers_attention.py` | attend, without a cache |
//! | [`softmax`](InferenceBackend::softmax) | `SoftmaxOp` | masked softmax of given scores |
//! | [`linear`](InferenceBackend::linear) | `LinearOp` | projection with bias |
//! | [`vector_matmul`](InferenceBackend::vector_matmul) | `VectorMatMulOp` | projection without bias |
//! | [`all_reduce`](InferenceBackend::all_reduce) | `dist.all_reduce` behind the output projection | the sum over ranks |
//! | [`residual_norm`](InferenceBackend::residual_norm) | `layer_norm_residual` | norm of a sum |
//! | [`gelu`](InferenceBackend::gelu) | `bias_gelu` | the exact GELU, behind a projection |
//! | [`pad_transform`](InferenceBackend::pad_transform) | `PadTransformOp` | heads padded for fused attention |

pub mod all_reduce;
pub mod attention;
#[cfg(any(feature = "ndarray", feature = "flex"))]
pub(crate) mod cpu;
#[cfg(feature = "cubecl")]
pub mod cube;
pub mod gelu;
pub mod linear;
pub mod pad_transform;
pub mod qkv_gemm;
pub mod residual_norm;
pub mod softmax;
pub mod softmax_context;
pub mod vector_matmul;

use burn::tensor::{DType, Tensor, backend::Backend};

use crate::error::CommunicationError;
use crate::parallel::{Communicator, Settings};
use crate::weight::{FusedNorm, QkvWeight, Weight};
pub use attention::Attention;
pub use pad_transform::padded_head_size;
pub use qkv_gemm::QkvGemmOutput;
pub use softmax::{AdditiveMask, Softmax};
pub use softmax_context::{ContextProblem, Declined, Keys, Plan, SoftmaxContext, SoftmaxContextOutput};

/// Operations that a backend may fuse. Every default is the reference, written in tensor operations, so
/// `impl InferenceBackend for MyBackend {}` is a complete and correct port.
///
/// Maxima, sums, exponentials and matrix products are accumulated in f32; results have the dtype of the input.
///
/// Burn's own traits have functions called `linear`, `softmax` and `gelu` too; in generic code write
/// `<B as InferenceBackend>::linear(…)`.
pub trait InferenceBackend: Backend {
    /// The operations that run on kernels of their own, by name. The others run on the reference.
    fn fast_operations() -> &'static [&'static str] {
        &[]
    }

    /// `norm(input) · qkv + bias`, with the norm in f32. Without a norm the input is projected as it is.
    ///
    /// # Shapes
    /// - input: `[B, T, E]`
    /// - output: `[B, T, (N + 2K)·H]`, and the normalised input `[B, T, E]` if `want_norm`
    fn qkv_gemm(
        input: Tensor<Self, 3>,
        norm: Option<&FusedNorm<Self>>,
        qkv: &QkvWeight<Self>,
        want_norm: bool,
    ) -> QkvGemmOutput<Self> {
        qkv_gemm::reference(input, norm, qkv, want_norm)
    }

    /// Splits a packed projection, turns queries and keys, appends keys and values to the cache and attends.
    ///
    /// # Shapes
    /// - qkv: `[B, T, (N + 2K)·H]`
    /// - context: `[B, T, N·H]`; keys and values, if asked for, `[B, K, S, H]`
    fn softmax_context(arguments: SoftmaxContext<'_, Self>) -> SoftmaxContextOutput<Self> {
        softmax_context::reference(arguments)
    }

    /// The path that [`softmax_context`](Self::softmax_context) takes, and why not another.
    fn plan_softmax_context(_problem: &ContextProblem, _device: &Self::Device) -> Plan {
        Plan::Reference(Declined::NoKernel)
    }

    /// The path that [`masked_attention`](Self::masked_attention) takes, and why not another; the cache of the problem is not
    /// read.
    fn plan_masked_attention(_problem: &ContextProblem, _device: &Self::Device) -> Plan {
        Plan::Reference(Declined::NoKernel)
    }

    /// `softmax(hide(softcap(scale · QKᵀ) + bias)) · V`, for queries and keys that are at hand.
    ///
    /// # Shapes
    /// - query: `[B, N, T, H]`, key: `[B, K, S, H]`, value: `[B, K, S, Hv]`
    /// - output: `[B, N, T, Hv]`
    fn masked_attention(arguments: Attention<Self>) -> Tensor<Self, 4> {
        attention::reference(arguments)
    }

    /// `softmax(scores · scale + alibi + mask)` over the last axis, with the triangle and the window hidden.
    ///
    /// # Shapes
    /// - scores, output: `[B, N, T, S]`
    fn softmax(arguments: Softmax<Self>) -> Tensor<Self, 4> {
        softmax::reference(arguments)
    }

    /// `input · weight + bias`.
    ///
    /// # Shapes
    /// - input: `[B, T, in]`, output: `[B, T, out]`
    fn linear(input: Tensor<Self, 3>, weight: &Weight<Self>) -> Tensor<Self, 3> {
        linear::reference(input, weight)
    }

    /// `input · weight`, without the bias: on several ranks that is added once, behind the sum.
    ///
    /// # Shapes
    /// - input: `[B, T, in]`, output: `[B, T, out]`
    fn vector_matmul(input: Tensor<Self, 3>, weight: &Weight<Self>) -> Tensor<Self, 3> {
        vector_matmul::reference(input, weight)
    }

    /// The sum of `partial` over all ranks, the same bits on each of them. Half types are added in f32 and rounded once.
    ///
    /// # Errors
    /// [`CommunicationError`] on every rank, within the time limit of the engine, if a rank is lost, late, or about to do
    /// something else.
    fn all_reduce<const D: usize>(
        partial: Tensor<Self, D>,
        communicator: &dyn Communicator,
        settings: &Settings,
    ) -> Result<Tensor<Self, D>, CommunicationError> {
        all_reduce::on_the_host(partial, communicator, settings)
    }

    /// `norm(input + residual)`, in f32: what post-norm models have behind attention and MLP.
    ///
    /// # Shapes
    /// - input, residual, output: `[B, T, E]`
    fn residual_norm(input: Tensor<Self, 3>, residual: Tensor<Self, 3>, norm: &FusedNorm<Self>) -> Tensor<Self, 3> {
        residual_norm::reference(input, residual, norm)
    }

    /// `x · (1 + erf(x / √2)) / 2` of each element: what BERT has between the projections of its MLP.
    ///
    /// # Shapes
    /// - input, output: `[B, T, E]`
    fn gelu(input: Tensor<Self, 3>) -> Tensor<Self, 3> {
        gelu::reference(input)
    }

    /// Appends zeros to the features of every head, up to `size`; see [`padded_head_size`].
    ///
    /// # Shapes
    /// - heads: `[B, N, T, H]`, output: `[B, N, T, size]`
    fn pad_transform(heads: Tensor<Self, 4>, size: usize) -> Tensor<Self, 4> {
        pad_transform::reference(heads, size)
    }
}

/// `input · matrix + bias` over the last axis, rounded once to `dtype`. Half types are accumulated in f32.
fn project<B: Backend>(
    operation: &str,
    input: Tensor<B, 3>,
    weight: &Weight<B>,
    bias: Option<Tensor<B, 1>>,
    dtype: DType,
) -> Tensor<B, 3> {
    let [batch, tokens, width] = input.dims();
    crate::error::check_shape(operation, "input", &[batch, tokens, weight.input_size()], &input.dims());
    check_types(operation, dtype, weight);
    if batch * tokens == 0 {
        // Burn's reshape takes a 0 for an axis to keep.
        return Tensor::zeros([batch, tokens, weight.output_size()], (&input.device(), dtype));
    }
    let accumulated = match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        other => other,
    };
    let rows = input.reshape([batch * tokens, width]).cast(accumulated);
    let product = product(weight, accumulated, |part| rows.clone().matmul(part));
    let sum = match bias {
        Some(bias) => product + bias.cast(accumulated).unsqueeze(),
        None => product,
    };
    sum.cast(dtype).reshape([batch, tokens, weight.output_size()])
}

/// What `multiply` makes of the matrix, part by part, side by side.
fn product<B: Backend>(
    weight: &Weight<B>,
    dtype: DType,
    multiply: impl Fn(Tensor<B, 2>) -> Tensor<B, 2>,
) -> Tensor<B, 2> {
    let mut parts: Vec<_> = weight.parts(dtype).map(multiply).collect();
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 1) }
}

/// Panics unless input and weights have the same element type. Weights of int8 meet floats of every type.
#[track_caller]
fn check_types<B: Backend>(operation: &str, input: DType, weight: &Weight<B>) {
    let weights = weight.dtype();
    assert!(
        weight.int8().is_some() || input == weights,
        "{operation}: `input` has elements of {input:?} and the weights of {weights:?}; cast one of them"
    );
}
