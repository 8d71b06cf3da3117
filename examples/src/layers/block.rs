//! A layer of an encoder: attention and an MLP, with the norms of its family.

use burn::tensor::{Tensor, backend::Backend};
use burn_deepspeed::config::ActivationRounding;
use burn_deepspeed::weight::{FusedNorm, Int8Blocks};
use burn_deepspeed::{
    AttentionError, AttentionMask, DeepSpeedSelfAttention, InferenceBackend, Operations, WeightError,
};

use super::mlp::MlpBranch;

/// One layer of an encoder.
#[derive(Debug)]
pub(crate) struct Block<B: Backend> {
    pub attention: DeepSpeedSelfAttention<B>,
    /// The norm of the sum with attention, in layers whose norms come after the sums. Others have theirs before the branches.
    pub attention_norm: Option<FusedNorm<B>>,
    pub mlp: MlpBranch<B>,
}

impl<B: Backend> Block<B> {
    /// The layer with projections of int8, whose inputs are rounded or not; norms stay as they are.
    pub fn quantize(self, blocks: Int8Blocks, rounding: ActivationRounding) -> Result<Self, WeightError> {
        let mlp = MlpBranch { mlp: self.mlp.mlp.quantize(blocks, rounding)?, ..self.mlp };
        let attention = self.attention.quantize(blocks)?.with_rounded_activations(rounding);
        Ok(Self { attention, mlp, ..self })
    }
}

impl<B: InferenceBackend> Block<B> {
    /// # Shapes
    /// - input, output: `[B, T, E]`
    pub fn forward(&self, input: Tensor<B, 3>, mask: AttentionMask<B>) -> Result<Tensor<B, 3>, AttentionError> {
        let attended = self.attention.forward_uncached(input.clone(), mask, None)?;
        Ok(self.mlp.forward(sum(input, attended, self.attention_norm.as_ref())))
    }
}

/// The sum of the input of an attention and its output, with the norm if that comes after the sum.
pub(crate) fn sum<B: InferenceBackend>(
    input: Tensor<B, 3>,
    attended: Tensor<B, 3>,
    norm: Option<&FusedNorm<B>>,
) -> Tensor<B, 3> {
    match norm {
        Some(norm) => B::Ops::residual_norm(input, attended, norm),
        None => input + attended,
    }
}
