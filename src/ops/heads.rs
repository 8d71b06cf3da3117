//! Heads of a packed projection, and back.

use burn::tensor::{Tensor, backend::Backend};

use crate::error::check_shape;
use crate::spec::AttentionSpec;

/// The queries of a packed projection, and its keys and values; `None` for a layer that projects queries alone.
///
/// # Shapes
/// - qkv: `[B, T, (N + 2K)·H]`; `[B, T, (N + K)·H]` if keys are values
/// - output: queries `[B, N, T, H]`, keys and values `[B, K, T, H]`
pub fn split_heads<B: Backend>(qkv: Tensor<B, 3>, spec: &AttentionSpec) -> (Tensor<B, 4>, Option<[Tensor<B, 4>; 2]>) {
    let [batch, tokens, _] = qkv.dims();
    check_shape("softmax_context", "qkv", &[batch, tokens, spec.qkv_width()], &qkv.dims());
    let (queries, keys) = (spec.query_width(), spec.kv_width());
    let part = |start, width| split(qkv.clone().narrow(2, start, width), width / spec.head_dim);
    let own = spec.kv_source.is_own().then(|| [part(queries, keys), part(spec.first_value(), keys)]);
    (part(0, queries), own)
}

/// [`split_heads`] of a layer that projects all three.
#[track_caller]
pub(crate) fn split_all<B: Backend>(qkv: Tensor<B, 3>, spec: &AttentionSpec) -> [Tensor<B, 4>; 3] {
    let (query, own) = split_heads(qkv, spec);
    match own {
        Some([key, value]) => [query, key, value],
        None => panic!("split_all: the layer projects queries alone, expected a layer with keys and values of its own"),
    }
}

/// `[B, T, N·H]` as `[B, N, T, H]`.
pub(crate) fn split<B: Backend>(packed: Tensor<B, 3>, heads: usize) -> Tensor<B, 4> {
    let [batch, tokens, width] = packed.dims();
    packed.reshape([batch, tokens, heads, width / heads]).swap_dims(1, 2)
}

/// `[B, N, T, H]` as `[B, T, N·H]`.
pub(crate) fn merge_heads<B: Backend>(heads: Tensor<B, 4>) -> Tensor<B, 3> {
    let [batch, count, tokens, head_dim] = heads.dims();
    heads.swap_dims(1, 2).reshape([batch, tokens, count * head_dim])
}
