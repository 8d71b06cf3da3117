//! BLOOM's self-attention.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::self_attention::{AttentionOutput, DeepSpeedSelfAttention, Outputs};
use super::sum;
use crate::cache::LayerCache;
use crate::error::{AttentionError, ConfigError};
use crate::mask::AttentionMask;
use crate::ops::{InferenceBackend, Keys, Plan};
use crate::parallel::Communicator;
use crate::spec::AttentionSpec;
use crate::weight::{FusedNorm, QkvWeight, Weight};

/// Self-attention with ALiBi, <https://arxiv.org/abs/2108.12409>; the `BloomSelfAttention` of DeepSpeed's
/// `ds_attention.py`.
///
/// The bias is built here, from the slopes of this rank's heads and the number of real tokens between query and key, so
/// padding on the left changes nothing. `transformers` adds `slope · key position` instead, which differs by a constant
/// for each query and cancels in the softmax. There is no limit on the number of keys; the registers of DeepSpeed's
/// softmax kernel hold 8192.
///
/// The norm in front belongs to the module; BLOOM's residual is added by the block around it.
#[derive(Module, Debug)]
pub struct BloomSelfAttention<B: Backend> {
    pub(crate) attention: DeepSpeedSelfAttention<B>,
}

impl<B: Backend> BloomSelfAttention<B> {
    /// Sizes of this layer on this rank.
    pub fn spec(&self) -> &AttentionSpec {
        self.attention.spec()
    }

    /// The norm in front; `None` for post-norm models.
    pub fn norm(&self) -> Option<&FusedNorm<B>> {
        self.attention.norm()
    }

    /// The QKV projection, `q | k | v` whatever the order in the checkpoint.
    pub fn qkv(&self) -> &QkvWeight<B> {
        self.attention.qkv()
    }

    /// The output projection.
    pub fn output(&self) -> &Weight<B> {
        self.attention.output()
    }

    /// See [`DeepSpeedSelfAttention::output_bias`].
    pub fn output_bias(&self) -> Option<Tensor<B, 1>> {
        self.attention.output_bias()
    }

    /// See [`DeepSpeedSelfAttention::with_rounded_activations`].
    pub fn with_rounded_activations(self, rounds: bool) -> Self {
        Self { attention: self.attention.with_rounded_activations(rounds) }
    }

    /// See [`DeepSpeedSelfAttention::with_communicator`].
    ///
    /// # Errors
    /// [`ConfigError::OtherRank`] if the module holds the heads of another rank, or of a group of another size.
    pub fn with_communicator(self, communicator: Arc<dyn Communicator>) -> Result<Self, ConfigError> {
        Ok(Self { attention: self.attention.with_communicator(communicator)? })
    }

    /// See [`DeepSpeedSelfAttention::with_training`].
    pub fn with_training(self, training: bool) -> Self {
        sum::set_require_grad(self, training)
    }
}

impl<B: InferenceBackend> BloomSelfAttention<B> {
    /// See [`DeepSpeedSelfAttention::forward`].
    ///
    /// # Errors
    /// Those of [`DeepSpeedSelfAttention::forward`].
    pub fn forward(
        &self,
        input: Tensor<B, 3>,
        mask: AttentionMask<B>,
        cache: LayerCache<'_, B>,
    ) -> Result<Tensor<B, 3>, AttentionError> {
        self.attention.forward(input, mask, cache)
    }

    /// See [`DeepSpeedSelfAttention::forward_uncached`].
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    pub fn forward_uncached(
        &self,
        input: Tensor<B, 3>,
        mask: AttentionMask<B>,
    ) -> Result<Tensor<B, 3>, AttentionError> {
        self.attention.forward_uncached(input, mask, None)
    }

    /// See [`DeepSpeedSelfAttention::forward_detailed`].
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    pub fn forward_detailed(
        &self,
        input: Tensor<B, 3>,
        mask: AttentionMask<B>,
        keys: Keys<'_, B>,
        wanted: Outputs,
    ) -> Result<AttentionOutput<B>, AttentionError> {
        self.attention.forward_detailed(input, mask, keys, wanted)
    }

    /// See [`DeepSpeedSelfAttention::explain`].
    pub fn explain(&self, tokens: usize, cached: bool) -> Plan {
        self.attention.explain(tokens, cached)
    }

    /// See [`DeepSpeedSelfAttention::warmup`].
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    pub fn warmup(&self, batch: usize, tokens: &[usize]) -> Result<(), AttentionError> {
        self.attention.warmup(batch, tokens)
    }

    /// See [`DeepSpeedSelfAttention::forward_partial`].
    pub fn forward_partial(
        &self,
        input: Tensor<B, 3>,
        mask: AttentionMask<B>,
        keys: Keys<'_, B>,
        wanted: Outputs,
    ) -> AttentionOutput<B> {
        self.attention.forward_partial(input, mask, keys, wanted)
    }
}
