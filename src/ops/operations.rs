//! The interface of a backend: one method per operation, and the type that says which kernels run them.

use burn::tensor::{Tensor, backend::Backend};
use burn_deepspeed_core::activation::Activation;
use burn_deepspeed_core::path::BlockProblem;

use super::attention::{self, Attention};
use super::latent_context::{self, LatentContext, LatentProblem};
use super::normalise_and_rotate::{self, NormaliseAndRotate};
use super::qkv_gemm::{self, QkvGemmOutput};
use super::softmax::{self, Softmax};
use super::softmax_context::{self, ContextProblem, Declined, Plan, SoftmaxContext, SoftmaxContextOutput};
use super::{
    activation, all_reduce, context_gate, gated_activation, group_norm, linear, pad_transform, residual_norm,
    vector_matmul,
};
use crate::error::CommunicationError;
use crate::parallel::{AgreedSettings, Communicator};
use crate::weight::{FusedNorm, GroupNorm, QkvWeight, Weight};

/// A Burn backend that the modules run on. It names the type of its operations:
///
/// | `type Ops =` | runs on | requires |
/// | --- | --- | --- |
/// | [`Reference`] | tensor operations of Burn | nothing |
/// | `CpuOps` | the CPU kernels | [`InMemory`](crate::ops::cpu::InMemory) |
/// | `CubeOps` | the CubeCL kernels | [`CubeDevice`](crate::ops::cube::CubeDevice) |
///
/// A backend joins in one line. This is a complete and correct port:
///
/// ```
/// use burn_deepspeed::{InferenceBackend, Reference};
/// # use burn::tensor::{Tensor, backend::Backend};
/// # use burn_deepspeed::Operations;
/// # // Burn's `Backend` has hundreds of methods, so the port is checked for every backend at once.
/// # trait Port: Backend { type Ops: Operations<Self>; }
/// # macro_rules! port { (impl InferenceBackend for MyBackend { $($line:tt)* }) => {
/// #     impl<MyBackend: Backend> Port for MyBackend { $($line)* }
/// # } }
/// # port! {
/// impl InferenceBackend for MyBackend {
///     type Ops = Reference;
/// }
/// # }
/// # fn gelu<B: Port>() -> [f32; 2] {
/// #     let output = B::Ops::gelu(Tensor::from_data([[[0.0, 100.0]]], &Default::default()));
/// #     output.into_data().convert::<f32>().to_vec().unwrap().try_into().unwrap()
/// # }
/// # assert_eq!(gelu::<burn_ndarray::NdArray>(), [0.0, 100.0]);
/// ```
pub trait InferenceBackend: Backend {
    /// The operations. Generic code calls them as `B::Ops::linear(input, &weight)`.
    type Ops: Operations<Self>;
}

/// Operations that a backend may fuse. The default body of each is the reference, written in Burn's tensor operations, and
/// defines what is correct.
///
/// Maxima, sums, exponentials and matrix products are accumulated in f32; results have the element type of the input.
pub trait Operations<B: Backend> {
    /// Names of the operations that run on kernels of this crate. The others run on the reference.
    fn fast_operations() -> &'static [&'static str] {
        &[]
    }

    /// `norm(input) · qkv + bias`, with the norm in f32. Without a norm, `input` is projected as it is.
    ///
    /// # Shapes
    /// - input: `[B, T, E]`
    /// - output: `[B, T, (N + 2K)·H]`, and the normalised input `[B, T, E]` if `want_norm`
    fn qkv_gemm(
        input: Tensor<B, 3>,
        norm: Option<&FusedNorm<B>>,
        qkv: &QkvWeight<B>,
        want_norm: bool,
    ) -> QkvGemmOutput<B> {
        qkv_gemm::reference(input, norm, qkv, want_norm)
    }

    /// Splits a packed projection, normalises and rotates queries and keys, appends keys and values to the cache and attends.
    ///
    /// # Shapes
    /// - qkv: `[B, T, (N + 2K)·H]`
    /// - context: `[B, T, N·H]`; keys and values, if requested, `[B, K, S, H]`
    fn softmax_context(arguments: SoftmaxContext<'_, B>) -> SoftmaxContextOutput<B> {
        softmax_context::reference(arguments)
    }

    /// Rotates, appends latents to the cache, and attends to the keys and values that are projected from the visible latents.
    ///
    /// # Shapes
    /// - query: `[B, T, N·(nope + R)]`, rows: `[B, T, L + R]`
    /// - output: `[B, T, N·Hv]`
    fn latent_context(arguments: LatentContext<'_, B>) -> Tensor<B, 3> {
        latent_context::reference(arguments)
    }

    /// The path that [`latent_context`](Self::latent_context) takes, and why it takes no other.
    fn plan_latent_context(_problem: &LatentProblem, _device: &B::Device) -> Plan {
        Plan::Reference(Declined::NoKernel)
    }

    /// The path that [`softmax_context`](Self::softmax_context) takes, and why it takes no other.
    fn plan_softmax_context(_problem: &ContextProblem, _device: &B::Device) -> Plan {
        Plan::Reference(Declined::NoKernel)
    }

    /// The path that [`masked_attention`](Self::masked_attention) takes, and why it takes no other. The cache of the problem is
    /// ignored.
    fn plan_masked_attention(_problem: &ContextProblem, _device: &B::Device) -> Plan {
        Plan::Reference(Declined::NoKernel)
    }

    /// Splits a packed projection, and normalises and rotates queries and keys: what [`softmax_context`](Self::softmax_context) does
    /// before it attends, for tokens that are joined with others.
    ///
    /// # Shapes
    /// - qkv: `[B, T, (N + 2K)·H]`
    /// - output: queries `[B, N, T, H]`, keys and values `[B, K, T, H]`
    fn normalise_and_rotate(arguments: NormaliseAndRotate<'_, B>) -> [Tensor<B, 4>; 3] {
        normalise_and_rotate::reference(arguments)
    }

    /// `softmax(hide(softcap(scale · QKᵀ) + bias)) · V`, for separate queries, keys and values. A sink joins the sum of the softmax.
    ///
    /// # Shapes
    /// - query: `[B, N, T, H]`, key: `[B, K, S, H]`, value: `[B, K, S, Hv]`
    /// - output: `[B, N, T, Hv]`
    fn masked_attention(arguments: Attention<B>) -> Tensor<B, 4> {
        attention::reference(arguments)
    }

    /// `softmax(scores · scale + alibi + mask)` over the last axis, with the triangle and the window hidden.
    ///
    /// # Shapes
    /// - scores, output: `[B, N, T, S]`
    fn softmax(arguments: Softmax<B>) -> Tensor<B, 4> {
        softmax::reference(arguments)
    }

    /// `context · sigmoid(gate)`, in f32: before the output projection of layers with a gate.
    ///
    /// # Shapes
    /// - context, gate, output: `[B, T, N·H]`
    fn context_gate(context: Tensor<B, 3>, gate: Tensor<B, 3>) -> Tensor<B, 3> {
        context_gate::reference(context, gate)
    }

    /// `input · weight + bias`.
    ///
    /// # Shapes
    /// - input: `[B, T, in]`, output: `[B, T, out]`
    fn linear(input: Tensor<B, 3>, weight: &Weight<B>) -> Tensor<B, 3> {
        linear::reference(input, weight)
    }

    /// The path that products with a matrix of blocks take, and why they take no other, for the outputs of one format.
    fn plan_block_product(_problem: &BlockProblem, _device: &B::Device) -> Plan {
        Plan::Reference(Declined::NoKernel)
    }

    /// `input · weight`, without the bias: on several ranks the bias is added once, after the sum.
    ///
    /// # Shapes
    /// - input: `[B, T, in]`, output: `[B, T, out]`
    fn vector_matmul(input: Tensor<B, 3>, weight: &Weight<B>) -> Tensor<B, 3> {
        vector_matmul::reference(input, weight)
    }

    /// The sum of `partial` over all ranks, bit-identical on each of them. Half types are added in f32 and rounded once.
    ///
    /// # Errors
    /// [`CommunicationError`] on every rank, within the time limit of the engine, if a rank is lost, late, or about to do
    /// something else.
    fn all_reduce<const D: usize>(
        partial: Tensor<B, D>,
        communicator: &dyn Communicator,
        settings: &AgreedSettings,
    ) -> Result<Tensor<B, D>, CommunicationError> {
        all_reduce::on_the_host(partial, communicator, settings)
    }

    /// `norm(input + residual)`, in f32: follows attention and MLP in post-norm models.
    ///
    /// # Shapes
    /// - input, residual, output: `[B, T, E]`
    fn residual_norm(input: Tensor<B, 3>, residual: Tensor<B, 3>, norm: &FusedNorm<B>) -> Tensor<B, 3> {
        residual_norm::reference(input, residual, norm)
    }

    /// The norm of groups of channels over the pixels of an image, in f32: in a VAE, before the projection.
    ///
    /// # Shapes
    /// - image, output: `[B, C, pixels]`
    fn group_norm(image: Tensor<B, 3>, norm: &GroupNorm<B>) -> Tensor<B, 3> {
        group_norm::reference(image, norm)
    }

    /// An activation of each element, in f32: after the first projection of an MLP.
    ///
    /// # Shapes
    /// - input, output: `[B, T, E]`
    fn activation(input: Tensor<B, 3>, activation: Activation) -> Tensor<B, 3> {
        activation::reference(input, activation)
    }

    /// `activation(gate) · up` of each element, in f32: after the first two projections of a gated MLP.
    ///
    /// # Shapes
    /// - gate, up, output: `[B, T, E]`
    fn gated_activation(gate: Tensor<B, 3>, up: Tensor<B, 3>, activation: Activation) -> Tensor<B, 3> {
        gated_activation::reference(gate, up, activation)
    }

    /// [`activation`](Self::activation) with [`Activation::Gelu`]: that in BERT's MLP.
    ///
    /// # Shapes
    /// - input, output: `[B, T, E]`
    fn gelu(input: Tensor<B, 3>) -> Tensor<B, 3> {
        Self::activation(input, Activation::Gelu)
    }

    /// Appends zeros to the features of every head, up to `size`; see [`padded_head_size`](super::padded_head_size).
    ///
    /// # Shapes
    /// - heads: `[B, N, T, H]`, output: `[B, N, T, size]`
    fn pad_transform(heads: Tensor<B, 4>, size: usize) -> Tensor<B, 4> {
        pad_transform::reference(heads, size)
    }
}

/// Every operation on its reference, for any backend.
#[derive(Debug, Clone, Copy)]
pub struct Reference;

impl<B: Backend> Operations<B> for Reference {}
