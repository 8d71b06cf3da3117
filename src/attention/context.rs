//! Attention to a context: its keys and values, computed once.

use burn::tensor::{Int, Tensor, backend::Backend};

use crate::error::check_shape;
use crate::mask::AttentionMask;
use crate::ops::attention::Visibility;
use crate::ops::softmax_context::{merge_heads, split};
use crate::ops::{Attention, InferenceBackend, Operations};
use crate::spec::AttentionSpec;
use crate::weight::Weight;

/// The keys and values of a context, `[B, K, S, H]` each. They stay valid until the context or the weights change.
#[derive(Debug, Clone)]
pub struct ContextKeys<B: Backend> {
    pub(super) key: Tensor<B, 4>,
    pub(super) value: Tensor<B, 4>,
}

impl<B: Backend> ContextKeys<B> {
    /// Keys and values, `[B, K, S, H]` each.
    pub fn tensors(&self) -> (&Tensor<B, 4>, &Tensor<B, 4>) {
        (&self.key, &self.value)
    }

    /// The rows of this index, `[rows]`, in its order.
    pub(super) fn select(&self, index: &Tensor<B, 1, Int>) -> Self {
        let [key, value] = [&self.key, &self.value].map(|tensor| {
            let ([rows], [_, heads, tokens, features]) = (index.dims(), tensor.dims());
            match rows == 0 || tensor.shape().num_elements() == 0 {
                true => Tensor::empty([rows, heads, tokens, features], (&tensor.device(), tensor.dtype())),
                false => tensor.clone().select(0, index.clone()),
            }
        });
        Self { key, value }
    }

    /// S: tokens of the longest context.
    pub(super) fn tokens(&self) -> usize {
        self.key.dims()[2]
    }
}

impl<B: InferenceBackend> ContextKeys<B> {
    /// Projects a context, `[B, S, context features]`.
    pub(super) fn project(context: Tensor<B, 3>, [key, value]: [&Weight<B>; 2], spec: &AttentionSpec) -> Self {
        let [batch, tokens, _] = context.dims();
        check_shape("context_keys", "context", &[batch, tokens, key.input_size()], &context.dims());
        let heads = |weight| split(B::Ops::linear(context.clone(), weight), spec.kv_heads());
        Self { key: heads(key), value: heads(value) }
    }

    /// Attends from `query`, `[B, N, T, H]`, to the first tokens of each row, as `ends` says: one length for all rows, or one for each.
    /// Returns `[B, T, N·H]`.
    pub(super) fn attend(
        self,
        query: Tensor<B, 4>,
        mask: AttentionMask<B>,
        ends: Vec<usize>,
        spec: &AttentionSpec,
    ) -> Tensor<B, 3> {
        let visibility = Visibility { causal: false, window: None, starts: vec![0; ends.len()], ends };
        let (Self { key, value }, &AttentionSpec { scale, softcap, .. }) = (self, spec);
        let arguments = Attention { query, key, value, scale, softcap, sinks: None, slopes: None, visibility, mask };
        merge_heads(B::Ops::masked_attention(arguments))
    }
}

/// The context of one layer.
#[derive(Debug, Clone, Copy)]
pub struct LayerContext<'a, B: Backend> {
    pub(super) keys: &'a ContextKeys<B>,
    pub(super) lengths: &'a [usize],
}
