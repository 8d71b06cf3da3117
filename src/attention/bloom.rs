//! BLOOM's self-attention.

use super::self_attention::DeepSpeedSelfAttention;

/// Self-attention with ALiBi, <https://arxiv.org/abs/2108.12409>; the `BloomSelfAttention` of DeepSpeed's `ds_attention.py`.
///
/// It is the same type as [`DeepSpeedSelfAttention`]: the configuration sets `bigscience_bloom`, and
/// [`init_bloom`](crate::AttentionInit::init_bloom) checks that it does.
///
/// The module computes the bias from the slopes of this rank's heads and the number of real tokens between query and key, so
/// padding on the left changes nothing. `transformers` adds `slope · key position` instead; that differs by a constant for
/// each query, which cancels in the softmax. The number of keys is not limited; DeepSpeed's softmax kernel holds 8192 in
/// registers.
///
/// The module contains the norm before attention. The block around it adds BLOOM's residual.
pub type BloomSelfAttention<B> = DeepSpeedSelfAttention<B>;
