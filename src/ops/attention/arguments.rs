//! The arguments of attention.

use burn::tensor::{Tensor, backend::Backend};

use super::visibility::Visibility;
#[cfg(any(feature = "cpu", feature = "cubecl"))]
use crate::cache::CacheTypes;
#[cfg(any(feature = "cpu", feature = "cubecl"))]
use crate::element::element_type;
use crate::error::check_shape;
use crate::mask::AttentionMask;
#[cfg(any(feature = "cpu", feature = "cubecl"))]
use burn_deepspeed_core::path::ContextProblem;

/// The arguments of [`Operations::masked_attention`](crate::ops::Operations::masked_attention).
#[derive(Debug, Clone)]
pub struct Attention<B: Backend> {
    /// `[B, N, T, H]`.
    pub query: Tensor<B, 4>,
    /// `[B, K, S, H]`; query head `n` reads key head `n / (N / K)`.
    pub key: Tensor<B, 4>,
    /// `[B, K, S, Hv]`.
    pub value: Tensor<B, 4>,
    /// Plain factor on QKᵀ.
    pub scale: f64,
    /// `c` of `c · tanh(score / c)`, applied before bias and mask.
    pub softcap: Option<f64>,
    /// A sink for each head, `[N]` of f32: a score that joins the sum of a query's weights, and has no value. It is neither scaled,
    /// capped nor masked.
    pub sinks: Option<Tensor<B, 1>>,
    /// ALiBi slopes of the N heads: `slope · (key position - query position)` is added to a score.
    pub slopes: Option<Vec<f32>>,
    /// What the layer hides.
    pub visibility: Visibility,
    /// What the caller hides, and the bias that it adds.
    pub mask: AttentionMask<B>,
}

impl<B: Backend> Attention<B> {
    /// What the choice of the kernel depends on.
    #[cfg(any(feature = "cpu", feature = "cubecl"))]
    pub(super) fn problem(&self) -> ContextProblem {
        let [_, _, tokens, head_dim] = self.query.dims();
        let types = CacheTypes { key: element_type(self.key.dtype()), value: element_type(self.value.dtype()) };
        let problem = ContextProblem::new(element_type(self.query.dtype()), tokens, head_dim, Some(types));
        ContextProblem { value_dim: self.value.dims()[3], ..problem }
    }

    /// Whether there is nothing to attend from or to, so that the result is empty or zero.
    #[cfg(any(feature = "cpu", feature = "cubecl"))]
    pub(super) fn is_empty(&self) -> bool {
        self.query.shape().num_elements() == 0 || self.value.shape().num_elements() == 0
    }

    /// Panics unless all parts fit together.
    #[track_caller]
    pub(super) fn check(&self) {
        let [batch, heads, tokens, head_dim] = self.query.dims();
        let [_, kv_heads, keys, value_dim] = self.value.dims();
        check_shape("attention", "key", &[batch, kv_heads, keys, head_dim], &self.key.dims());
        check_shape("attention", "value", &[batch, kv_heads, keys, value_dim], &self.value.dims());
        assert!(
            kv_heads > 0 && heads.is_multiple_of(kv_heads),
            "attention: `query` has {heads} heads, expected a multiple of the {kv_heads} heads of `key`"
        );
        if let Some(slopes) = &self.slopes {
            check_shape("attention", "slopes", &[heads], &[slopes.len()]);
        }
        if let Some(sinks) = &self.sinks {
            check_shape("attention", "sinks", &[heads], &sinks.dims());
        }
        self.visibility.check("attention", batch, keys);
        self.mask.check("attention", [batch, heads, tokens, keys]);
    }
}
