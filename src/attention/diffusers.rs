//! Self and cross attention of diffusion models.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::sum::{self, Link};
use crate::element::element_type;
use crate::error::{AttentionError, ConfigError, check_shape};
use crate::mask::AttentionMask;
use crate::ops::attention::Visibility;
use crate::ops::softmax_context::{merge_heads, split};
use crate::ops::{Attention, ContextProblem, InferenceBackend, Operations, Plan};
use crate::parallel::Communicator;
use crate::spec::AttentionSpec;
use crate::weight::{QkvWeight, SeparateQkv, Weight};

/// Self and cross attention without a cache or a norm; DeepSpeed's `diffusers_attention.py`.
///
/// With a context it is cross attention, without one self-attention. The context may be wider or narrower than the input,
/// and its keys and values can be computed once and used in every diffusion step: [`context_keys`](Self::context_keys).
/// The mask is honoured (DeepSpeed accepts one and does not read it), heads may have any size, softmax runs in f32.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_deepspeed::{AttentionInit, AttentionMask, DataType, DeepSpeedInferenceConfig};
/// use burn_ndarray::NdArray;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = Default::default();
/// let attention = DeepSpeedInferenceConfig::new(80, 2)
///     .with_dtype(DataType::Fp32)
///     .init_diffusers_cross::<NdArray>(48, 0, &device)?;
/// let prompt = attention.context_keys(Tensor::ones([2, 7, 48], &device));
/// for _diffusion_step in 0..3 {
///     let image = Tensor::ones([2, 36, 80], &device);
///     let output = attention.forward_with_keys(image, &prompt, AttentionMask::none())?;
///     assert_eq!(output.dims(), [2, 36, 80]);
/// }
/// # Ok(()) }
/// ```
#[derive(Module, Debug)]
pub struct DeepSpeedDiffusersAttention<B: Backend> {
    pub(crate) qkv: QkvWeight<B>,
    pub(crate) output: Weight<B>,
    #[module(skip)]
    pub(crate) spec: AttentionSpec,
    #[module(skip)]
    pub(crate) defer_output_bias: bool,
    #[module(skip)]
    pub(crate) link: Option<Link>,
}

/// The keys and values of a context, `[B, K, S, H]` each. They hold as long as context and weights do.
#[derive(Debug, Clone)]
pub struct ContextKeys<B: Backend> {
    key: Tensor<B, 4>,
    value: Tensor<B, 4>,
}

impl<B: Backend> ContextKeys<B> {
    /// Keys and values, `[B, K, S, H]` each.
    pub fn tensors(&self) -> (&Tensor<B, 4>, &Tensor<B, 4>) {
        (&self.key, &self.value)
    }
}

impl<B: Backend> DeepSpeedDiffusersAttention<B> {
    /// Sizes of this layer on this rank.
    pub fn spec(&self) -> &AttentionSpec {
        &self.spec
    }

    /// The projections of query, key and value.
    pub fn qkv(&self) -> &QkvWeight<B> {
        &self.qkv
    }

    /// The output projection.
    pub fn output(&self) -> &Weight<B> {
        &self.output
    }

    /// See [`DeepSpeedSelfAttention::output_bias`](crate::DeepSpeedSelfAttention::output_bias).
    pub fn output_bias(&self) -> Option<Tensor<B, 1>> {
        self.output.bias()
    }

    /// See [`DeepSpeedSelfAttention::with_rounded_activations`](crate::DeepSpeedSelfAttention::with_rounded_activations).
    pub fn with_rounded_activations(self, rounds: bool) -> Self {
        Self { qkv: self.qkv.with_rounded_input(rounds), output: self.output.with_rounded_input(rounds), ..self }
    }

    /// See [`DeepSpeedSelfAttention::with_communicator`](crate::DeepSpeedSelfAttention::with_communicator).
    ///
    /// # Errors
    /// [`ConfigError::OtherRank`] if the module holds the heads of another rank, or of a group of another size.
    pub fn with_communicator(self, communicator: Arc<dyn Communicator>) -> Result<Self, ConfigError> {
        let link = Some(Link::new(&self.spec, communicator)?);
        Ok(Self { link, ..self })
    }

    /// See [`DeepSpeedSelfAttention::with_training`](crate::DeepSpeedSelfAttention::with_training).
    pub fn with_training(self, training: bool) -> Self {
        sum::set_require_grad(self, training)
    }
}

impl<B: InferenceBackend> DeepSpeedDiffusersAttention<B> {
    /// Attends from `input` to `context`, or to itself without one.
    ///
    /// # Shapes
    /// - input, output: `[B, T, E]`
    /// - context: `[B, S, context features]`
    /// - mask: broadcasts to `[B, N, T, S]`
    ///
    /// # Errors
    /// [`AttentionError::NoCommunicator`] on one of several ranks without one; [`AttentionError::Communication`] if the sum over
    /// ranks fails; [`AttentionError::NoFastPath`] under `require_fast`.
    pub fn forward(
        &self,
        input: Tensor<B, 3>,
        context: Option<Tensor<B, 3>>,
        mask: AttentionMask<B>,
    ) -> Result<Tensor<B, 3>, AttentionError> {
        self.check_path(input.dims()[1])?;
        self.finish(self.context(input, context, mask))
    }

    /// Attends from `input` to keys and values that [`context_keys`](Self::context_keys) computed before.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    pub fn forward_with_keys(
        &self,
        input: Tensor<B, 3>,
        keys: &ContextKeys<B>,
        mask: AttentionMask<B>,
    ) -> Result<Tensor<B, 3>, AttentionError> {
        self.check_path(input.dims()[1])?;
        self.finish(self.attend(self.query(input), keys, mask))
    }

    /// The path that attention from so many tokens takes, and why not another.
    pub fn explain(&self, tokens: usize) -> Plan {
        let problem = ContextProblem::new(element_type(self.output.dtype()), tokens, self.spec.head_dim, None);
        B::Ops::plan_masked_attention(&problem, &self.output.device())
    }

    fn check_path(&self, tokens: usize) -> Result<(), AttentionError> {
        match self.spec.require_fast {
            true => sum::check_plan(&self.spec, "masked_attention", self.explain(tokens)),
            false => Ok(()),
        }
    }

    /// What this rank adds to the sum over ranks. The output bias is not in it.
    ///
    /// # Shapes
    /// As in [`forward`](Self::forward).
    pub fn forward_partial(
        &self,
        input: Tensor<B, 3>,
        context: Option<Tensor<B, 3>>,
        mask: AttentionMask<B>,
    ) -> Tensor<B, 3> {
        B::Ops::vector_matmul(self.context(input, context, mask), &self.output)
    }

    fn context(&self, input: Tensor<B, 3>, context: Option<Tensor<B, 3>>, mask: AttentionMask<B>) -> Tensor<B, 3> {
        let (query, keys) = match context {
            Some(context) => (self.query(input), self.context_keys(context)),
            None => self.project_itself(input),
        };
        self.attend(query, &keys, mask)
    }

    /// Projects a context once for all diffusion steps.
    ///
    /// # Shapes
    /// - context: `[B, S, context features]`
    pub fn context_keys(&self, context: Tensor<B, 3>) -> ContextKeys<B> {
        let projections = self.qkv.separate(self.spec.query_width());
        let SeparateQkv { key, value, .. } = projections.as_ref();
        let [batch, tokens, _] = context.dims();
        check_shape("context_keys", "context", &[batch, tokens, key.input_size()], &context.dims());
        let linear = B::Ops::linear;
        let heads = |projected| split(projected, self.spec.kv_heads());
        ContextKeys { key: heads(linear(context.clone(), key)), value: heads(linear(context, value)) }
    }

    fn query(&self, input: Tensor<B, 3>) -> Tensor<B, 4> {
        let linear = B::Ops::linear;
        let projected = match &self.qkv {
            QkvWeight::Separate(separate) => linear(input, &separate.query),
            QkvWeight::Fused(fused) => linear(input, &fused.outputs(0, self.spec.query_width())),
        };
        split(projected, self.spec.heads())
    }

    fn project_itself(&self, input: Tensor<B, 3>) -> (Tensor<B, 4>, ContextKeys<B>) {
        if let QkvWeight::Separate(separate) = &self.qkv {
            let [batch, tokens, width] = input.dims();
            let context = separate.key.input_size();
            check_shape(
                "DeepSpeedDiffusersAttention::forward",
                "input as its own context",
                &[batch, tokens, context],
                &[batch, tokens, width],
            );
        }
        let qkv = B::Ops::qkv_gemm(input, None, &self.qkv, false).qkv;
        let [query, key, value] = crate::ops::softmax_context::split_heads(qkv, &self.spec);
        (query, ContextKeys { key, value })
    }

    fn attend(&self, query: Tensor<B, 4>, keys: &ContextKeys<B>, mask: AttentionMask<B>) -> Tensor<B, 3> {
        let context = B::Ops::masked_attention(Attention {
            query,
            key: keys.key.clone(),
            value: keys.value.clone(),
            scale: self.spec.scale,
            softcap: self.spec.softcap,
            slopes: None,
            visibility: Visibility::full(keys.key.dims()[2]),
            mask,
        });
        merge_heads(context)
    }

    fn finish(&self, context: Tensor<B, 3>) -> Result<Tensor<B, 3>, AttentionError> {
        sum::project_and_sum(&self.spec, self.link.as_ref(), context, &self.output, self.defer_output_bias)
    }
}
