//! Cross attention of a decoder layer.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::context::{ContextKeys, LayerContext};
use super::projections::{Projections, set_require_grad};
use crate::config::ActivationRounding;
use crate::element::element_type;
use crate::error::{AttentionError, ConfigError, WeightError, check_shape};
use crate::mask::AttentionMask;
use crate::ops::softmax_context::split;
use crate::ops::{InferenceBackend, Operations, Plan};
use crate::parallel::Communicator;
use crate::spec::AttentionSpec;
use crate::weight::{BlockFormat, FusedNorm, Int8Blocks, Weight};

/// Attention from the tokens of a decoder to the output of an encoder, with the norm before it: the second attention of a layer in
/// [Attention Is All You Need](https://arxiv.org/abs/1706.03762). DeepSpeed has none.
///
/// Queries come from the input, keys and values from a context that is projected once, into a
/// [`CrossCache`](crate::CrossCache). There is no rotation and no causality.
#[derive(Module, Debug)]
pub struct DeepSpeedCrossAttention<B: Backend> {
    pub(crate) norm: Option<FusedNorm<B>>,
    /// Those of queries and output. The projection of queries is all of the `qkv`, so that one operation normalises and projects.
    pub(crate) projections: Projections<B>,
    pub(crate) key: Weight<B>,
    pub(crate) value: Weight<B>,
}

impl<B: Backend> DeepSpeedCrossAttention<B> {
    /// Sizes of this layer on this rank.
    pub fn spec(&self) -> &AttentionSpec {
        &self.projections.spec
    }

    /// Features of the context.
    pub fn context_dim(&self) -> usize {
        self.key.input_size()
    }

    /// The norm before the projection of queries; `None` for post-norm models.
    pub fn norm(&self) -> Option<&FusedNorm<B>> {
        self.norm.as_ref()
    }

    /// The projection of queries, from `E` to `N·H` features.
    pub fn query(&self) -> &Weight<B> {
        self.projections.qkv.first()
    }

    /// The projection of keys, from the context to `K·H` features.
    pub fn key(&self) -> &Weight<B> {
        &self.key
    }

    /// The projection of values, from the context to `K·H` features.
    pub fn value(&self) -> &Weight<B> {
        &self.value
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
        Ok(Self {
            projections: self.projections.quantize(blocks)?,
            key: self.key.quantize(blocks)?,
            value: self.value.quantize(blocks)?,
            ..self
        })
    }

    /// See [`DeepSpeedSelfAttention::quantize_blocks`](crate::DeepSpeedSelfAttention::quantize_blocks).
    ///
    /// # Errors
    /// Those of [`BlockMatrix::quantize`](crate::weight::BlockMatrix::quantize).
    pub fn quantize_blocks(self, format: BlockFormat) -> Result<Self, WeightError> {
        Ok(Self {
            projections: self.projections.quantize_blocks(format)?,
            key: self.key.quantize_blocks(format)?,
            value: self.value.quantize_blocks(format)?,
            ..self
        })
    }

    /// See [`DeepSpeedSelfAttention::with_rounded_activations`](crate::DeepSpeedSelfAttention::with_rounded_activations).
    pub fn with_rounded_activations(self, rounding: impl Into<ActivationRounding>) -> Self {
        let rounding = rounding.into();
        Self {
            projections: self.projections.with_rounded_input(rounding),
            key: self.key.with_rounded_input(rounding),
            value: self.value.with_rounded_input(rounding),
            ..self
        }
    }

    /// See [`DeepSpeedSelfAttention::with_communicator`](crate::DeepSpeedSelfAttention::with_communicator).
    ///
    /// # Errors
    /// [`ConfigError::OtherRank`] if the module holds the heads of another rank, or of a group of another size.
    pub fn with_communicator(self, communicator: Arc<dyn Communicator>) -> Result<Self, ConfigError> {
        Ok(Self { projections: self.projections.with_communicator(communicator)?, ..self })
    }

    /// See [`DeepSpeedSelfAttention::with_training`](crate::DeepSpeedSelfAttention::with_training).
    pub fn with_training(self, training: bool) -> Self {
        set_require_grad(self, training)
    }
}

impl<B: InferenceBackend> DeepSpeedCrossAttention<B> {
    /// Attends from `input` to the context of this layer.
    ///
    /// # Shapes
    /// - input, output: `[B, T, E]`, the input before the norm; T may be 0
    /// - mask: broadcasts to `[B, N, T, S]`; it hides in addition to what lies behind the end of a row
    ///
    /// # Errors
    /// [`AttentionError::ContextRows`]; [`AttentionError::CacheMismatch`] if the context was built for other heads, another head size or
    /// another element type; [`AttentionError::NoFastPath`] under `require_fast`; [`AttentionError::NoCommunicator`] on one of several
    /// ranks without a communicator. All of these are returned before anything is computed. [`AttentionError::Communication`] if the sum
    /// over ranks fails.
    ///
    /// # Panics
    /// If the input is not `[B, T, E]`, or the mask does not broadcast.
    pub fn forward(
        &self,
        input: Tensor<B, 3>,
        mask: AttentionMask<B>,
        context: LayerContext<'_, B>,
    ) -> Result<Tensor<B, 3>, AttentionError> {
        self.projections.require("masked_attention", || self.explain(input.dims()[1]))?;
        self.projections.check_sum()?;
        self.projections.finish(self.attend(input, mask, context)?)
    }

    /// The output of this rank before the sum over ranks, without the bias of the output projection.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward) that concern the context.
    ///
    /// # Panics
    /// Those of [`forward`](Self::forward).
    pub fn forward_partial(
        &self,
        input: Tensor<B, 3>,
        mask: AttentionMask<B>,
        context: LayerContext<'_, B>,
    ) -> Result<Tensor<B, 3>, AttentionError> {
        Ok(self.projections.partial(self.attend(input, mask, context)?))
    }

    /// The path that attention from `tokens` queries takes, and the reason if it is the reference.
    pub fn explain(&self, tokens: usize) -> Plan {
        self.projections.explain(tokens)
    }

    /// The keys and values of a context, `[B, S, context features]`, for this layer.
    pub(super) fn context_keys(&self, context: Tensor<B, 3>) -> ContextKeys<B> {
        ContextKeys::project(context, [&self.key, &self.value], self.spec())
    }

    /// What goes into the output projection.
    fn attend(
        &self,
        input: Tensor<B, 3>,
        mask: AttentionMask<B>,
        context: LayerContext<'_, B>,
    ) -> Result<Tensor<B, 3>, AttentionError> {
        let [batch, tokens, _] = input.dims();
        check_shape("DeepSpeedCrossAttention", "input", &[batch, tokens, self.spec().hidden_size], &input.dims());
        self.check_context(batch, &context)?;
        let keys = context.keys.tokens();
        mask.check("DeepSpeedCrossAttention", [batch, self.spec().heads(), tokens, keys]);
        if batch * tokens * keys == 0 {
            return Ok(self.projections.no_context(&input));
        }
        let query = B::Ops::qkv_gemm(input, self.norm.as_ref(), &self.projections.qkv, false).qkv;
        let query = split(query, self.spec().heads());
        Ok(context.keys.clone().attend(query, mask, context.lengths.to_vec(), self.spec()))
    }

    /// An error unless this layer can attend from `batch` rows to the context.
    fn check_context(&self, batch: usize, context: &LayerContext<'_, B>) -> Result<(), AttentionError> {
        if context.lengths.len() != batch {
            return Err(AttentionError::ContextRows { context: context.lengths.len(), input: batch });
        }
        let [_, kv_heads, _, head_dim] = context.keys.key.dims();
        for (what, layer, cache) in
            [("key/value heads:", self.spec().kv_heads(), kv_heads), ("head size", self.spec().head_dim, head_dim)]
        {
            if layer != cache {
                return Err(AttentionError::cache_mismatch(what, layer, cache));
            }
        }
        let (layer, cache) = (element_type(self.output().dtype()), element_type(context.keys.key.dtype()));
        if layer != cache {
            return Err(AttentionError::cache_mismatch("element type", layer, cache));
        }
        Ok(())
    }
}
