//! Self and cross attention of diffusion models.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::context::ContextKeys;
use super::projections::{Projections, set_require_grad};
use crate::config::ActivationRounding;
use crate::error::{AttentionError, ConfigError, WeightError, check_shape};
use crate::mask::AttentionMask;
use crate::ops::softmax_context::{split, split_all};
use crate::ops::{InferenceBackend, Operations, Plan};
use crate::parallel::Communicator;
use crate::spec::AttentionSpec;
use crate::weight::{BlockFormat, Int8Blocks, QkvWeight, SeparateQkv, Weight};

/// Self and cross attention without a cache or a norm; DeepSpeed's `diffusers_attention.py`.
///
/// With a context it is cross attention, without one self-attention. The width of the context may differ from that of the
/// input. [`context_keys`](Self::context_keys) computes its keys and values once for all diffusion steps. The mask is applied
/// (DeepSpeed accepts one and ignores it), heads may have any size, and softmax runs in f32.
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
    pub(crate) projections: Projections<B>,
}

impl<B: Backend> DeepSpeedDiffusersAttention<B> {
    /// Sizes of this layer on this rank.
    pub fn spec(&self) -> &AttentionSpec {
        &self.projections.spec
    }

    /// The projections of query, key and value.
    pub fn qkv(&self) -> &QkvWeight<B> {
        &self.projections.qkv
    }

    /// The output projection.
    pub fn output(&self) -> &Weight<B> {
        &self.projections.output
    }

    /// See [`DeepSpeedSelfAttention::output_bias`](crate::DeepSpeedSelfAttention::output_bias).
    pub fn output_bias(&self) -> Option<Tensor<B, 1>> {
        self.projections.output.bias()
    }

    /// See [`DeepSpeedSelfAttention::quantize`](crate::DeepSpeedSelfAttention::quantize).
    ///
    /// # Errors
    /// Those of [`Int8Matrix::quantize`](crate::weight::Int8Matrix::quantize).
    pub fn quantize(self, blocks: Int8Blocks) -> Result<Self, WeightError> {
        Ok(Self { projections: self.projections.quantize(blocks)? })
    }

    /// See [`DeepSpeedSelfAttention::quantize_blocks`](crate::DeepSpeedSelfAttention::quantize_blocks).
    ///
    /// # Errors
    /// Those of [`BlockMatrix::quantize`](crate::weight::BlockMatrix::quantize).
    pub fn quantize_blocks(self, format: BlockFormat) -> Result<Self, WeightError> {
        Ok(Self { projections: self.projections.quantize_blocks(format)? })
    }

    /// See [`DeepSpeedSelfAttention::with_rounded_activations`](crate::DeepSpeedSelfAttention::with_rounded_activations).
    pub fn with_rounded_activations(self, rounding: impl Into<ActivationRounding>) -> Self {
        let rounding = rounding.into();
        Self { projections: self.projections.with_rounded_input(rounding) }
    }

    /// See [`DeepSpeedSelfAttention::with_communicator`](crate::DeepSpeedSelfAttention::with_communicator).
    ///
    /// # Errors
    /// [`ConfigError::OtherRank`] if the module holds the heads of another rank, or of a group of another size.
    pub fn with_communicator(self, communicator: Arc<dyn Communicator>) -> Result<Self, ConfigError> {
        Ok(Self { projections: self.projections.with_communicator(communicator)? })
    }

    /// See [`DeepSpeedSelfAttention::with_training`](crate::DeepSpeedSelfAttention::with_training).
    pub fn with_training(self, training: bool) -> Self {
        set_require_grad(self, training)
    }
}

impl<B: InferenceBackend> DeepSpeedDiffusersAttention<B> {
    /// Attends from `input` to `context`, or to itself without one.
    ///
    /// # Shapes
    /// - input, output: `[B, T, E]`; T may be 0
    /// - context: `[B, S, context features]`; with S of 0 every query sees nothing, and its context is zeros
    /// - mask: broadcasts to `[B, N, T, S]`
    ///
    /// # Errors
    /// [`AttentionError::NoCommunicator`] on one of several ranks without a communicator; [`AttentionError::Communication`] if
    /// the sum over ranks fails; [`AttentionError::NoFastPath`] under `require_fast`.
    ///
    /// # Panics
    /// If a shape is wrong.
    pub fn forward(
        &self,
        input: Tensor<B, 3>,
        context: Option<Tensor<B, 3>>,
        mask: AttentionMask<B>,
    ) -> Result<Tensor<B, 3>, AttentionError> {
        self.check_path(input.dims()[1])?;
        self.projections.finish(self.context(input, context, mask))
    }

    /// Attends from `input` to keys and values from [`context_keys`](Self::context_keys).
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    ///
    /// # Panics
    /// If a shape is wrong.
    pub fn forward_with_keys(
        &self,
        input: Tensor<B, 3>,
        keys: &ContextKeys<B>,
        mask: AttentionMask<B>,
    ) -> Result<Tensor<B, 3>, AttentionError> {
        self.check_path(input.dims()[1])?;
        self.projections.finish(self.attend_to(input, keys, mask))
    }

    /// The path that attention from `tokens` queries takes, and the reason if it is the reference.
    pub fn explain(&self, tokens: usize) -> Plan {
        self.projections.explain(tokens)
    }

    fn check_path(&self, tokens: usize) -> Result<(), AttentionError> {
        self.projections.require("masked_attention", || self.explain(tokens))
    }

    /// The output of this rank before the sum over ranks, without the bias of the output projection.
    ///
    /// # Shapes
    /// As in [`forward`](Self::forward).
    ///
    /// # Panics
    /// If a shape is wrong.
    pub fn forward_partial(
        &self,
        input: Tensor<B, 3>,
        context: Option<Tensor<B, 3>>,
        mask: AttentionMask<B>,
    ) -> Tensor<B, 3> {
        self.projections.partial(self.context(input, context, mask))
    }

    /// Projects a context once, for all diffusion steps.
    ///
    /// # Shapes
    /// - context: `[B, S, context features]`
    ///
    /// # Panics
    /// If the shape is wrong.
    pub fn context_keys(&self, context: Tensor<B, 3>) -> ContextKeys<B> {
        let projections = self.qkv().separate(self.spec().query_width());
        let SeparateQkv { key, value, .. } = projections.as_ref();
        ContextKeys::project(context, [key, value], self.spec())
    }

    /// What goes into the output projection.
    fn context(&self, input: Tensor<B, 3>, context: Option<Tensor<B, 3>>, mask: AttentionMask<B>) -> Tensor<B, 3> {
        match context {
            Some(context) => self.attend_to(input, &self.context_keys(context), mask),
            None => self.attend_to_itself(input, mask),
        }
    }

    fn attend_to(&self, input: Tensor<B, 3>, keys: &ContextKeys<B>, mask: AttentionMask<B>) -> Tensor<B, 3> {
        if let Some(context) = self.without_tokens(&input, keys.tokens(), &mask) {
            return context;
        }
        let linear = B::Ops::linear;
        let projected = match self.qkv() {
            QkvWeight::Separate(separate) => linear(input, &separate.query),
            QkvWeight::Fused(fused) => linear(input, &fused.outputs(0, self.spec().query_width())),
        };
        self.attend(split(projected, self.spec().heads()), keys.clone(), mask)
    }

    fn attend_to_itself(&self, input: Tensor<B, 3>, mask: AttentionMask<B>) -> Tensor<B, 3> {
        let [batch, tokens, _] = input.dims();
        if let QkvWeight::Separate(separate) = self.qkv() {
            let expected = [batch, tokens, separate.key.input_size()];
            check_shape("DeepSpeedDiffusersAttention", "input as its own context", &expected, &input.dims());
        }
        if let Some(context) = self.without_tokens(&input, tokens, &mask) {
            return context;
        }
        let qkv = B::Ops::qkv_gemm(input, None, self.qkv(), false).qkv;
        let [query, key, value] = split_all(qkv, self.spec());
        self.attend(query, ContextKeys { key, value }, mask)
    }

    /// The context if there are no queries or no keys; shapes are checked as for any other input.
    fn without_tokens(&self, input: &Tensor<B, 3>, keys: usize, mask: &AttentionMask<B>) -> Option<Tensor<B, 3>> {
        let [batch, tokens, _] = input.dims();
        if batch * tokens * keys > 0 {
            return None;
        }
        check_shape("DeepSpeedDiffusersAttention", "input", &[batch, tokens, self.spec().hidden_size], &input.dims());
        mask.check("DeepSpeedDiffusersAttention", [batch, self.spec().heads(), tokens, keys]);
        Some(self.projections.no_context(input))
    }

    fn attend(&self, query: Tensor<B, 4>, keys: ContextKeys<B>, mask: AttentionMask<B>) -> Tensor<B, 3> {
        let ends = vec![keys.tokens()];
        keys.attend(query, mask, ends, self.spec())
    }
}
