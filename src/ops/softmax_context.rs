//! Rotate, append to the cache, attend; DeepSpeed's `SoftmaxContextOp`, whose fallback is limited to the CPU's needs.

use burn::tensor::{Tensor, backend::Backend};

use super::attention::{Attention, Visibility};
use crate::cache::LayerCache;
use crate::error::check_shape;
use crate::mask::AttentionMask;
use crate::position::alibi::shard_slopes;
use crate::position::{PositionEncoding, Positions};
use crate::spec::AttentionSpec;

/// Where the keys and values of earlier tokens are.
#[derive(Debug)]
pub enum Keys<'a, B: Backend> {
    /// In a cache, to which the new ones are appended.
    Cached(LayerCache<'a, B>),
    /// There are none: the new tokens attend to each other.
    Fresh(&'a Positions),
}

/// The arguments of [`InferenceBackend::softmax_context`](super::InferenceBackend::softmax_context).
#[derive(Debug)]
pub struct SoftmaxContext<'a, B: Backend> {
    /// `q | k | v`, `[B, T, (N + 2K)·H]`.
    pub qkv: Tensor<B, 3>,
    /// Earlier tokens.
    pub keys: Keys<'a, B>,
    /// What the caller hides.
    pub mask: AttentionMask<B>,
    /// Sizes of the layer.
    pub spec: &'a AttentionSpec,
    /// Whether the visible keys and values are returned; they are copied for it.
    pub want_keys: bool,
}

/// What [`InferenceBackend::softmax_context`](super::InferenceBackend::softmax_context) returns.
#[derive(Debug, Clone)]
pub struct SoftmaxContextOutput<B: Backend> {
    /// `[B, T, N·H]`.
    pub context: Tensor<B, 3>,
    /// Keys and values, `[B, K, S, H]` each, if they were asked for.
    pub keys: Option<(Tensor<B, 4>, Tensor<B, 4>)>,
}

/// The definition of [`InferenceBackend::softmax_context`](super::InferenceBackend::softmax_context).
pub fn reference<B: Backend>(arguments: SoftmaxContext<'_, B>) -> SoftmaxContextOutput<B> {
    let SoftmaxContext { qkv, keys, mask, spec, want_keys } = arguments;
    let [batch, tokens, _] = qkv.dims();
    let (dtype, device) = (qkv.dtype(), qkv.device());
    let [query, key, value] = split_heads(qkv, spec);

    let (table, mut cache) = match (keys, &spec.position) {
        (Keys::Cached(mut cache), PositionEncoding::Rotary(rotary)) => {
            (Some(cache.rotary_table(rotary, &device)), Some(cache))
        }
        (Keys::Cached(cache), _) => (None, Some(cache)),
        (Keys::Fresh(positions), PositionEncoding::Rotary(rotary)) => {
            check_shape("softmax_context", "positions", &[batch, tokens], &[positions.batch(), positions.tokens()]);
            (Some(rotary.table(positions, &device)), None)
        }
        (Keys::Fresh(_), _) => (None, None),
    };
    let turn = |heads| match &table {
        Some(table) => table.apply(heads),
        None => heads,
    };
    let (query, key) = (turn(query), turn(key));

    let (key, value, starts, ends) = match &mut cache {
        Some(cache) => {
            cache.append(key, value);
            let (key, value) = cache.visible();
            (key, value, cache.rows().starts().to_vec(), cache.rows().ends())
        }
        None => (key, value, vec![0], vec![tokens]),
    };
    let returned = want_keys.then(|| (key.clone().cast(dtype), value.clone().cast(dtype)));
    let context = super::attention::reference(Attention {
        query,
        key,
        value,
        scale: spec.scale,
        softcap: spec.softcap,
        slopes: (spec.position == PositionEncoding::Alibi).then(|| shard_slopes(&spec.shard)),
        visibility: Visibility { causal: spec.causal, window: spec.window, starts, ends },
        mask,
    });
    SoftmaxContextOutput { context: merge_heads(context.cast(dtype)), keys: returned }
}

/// The queries, keys and values of a packed projection.
///
/// # Shapes
/// - qkv: `[B, T, (N + 2K)·H]`
/// - output: `[B, N, T, H]` and twice `[B, K, T, H]`
pub fn split_heads<B: Backend>(qkv: Tensor<B, 3>, spec: &AttentionSpec) -> [Tensor<B, 4>; 3] {
    let [batch, tokens, _] = qkv.dims();
    check_shape("softmax_context", "qkv", &[batch, tokens, spec.qkv_width()], &qkv.dims());
    let (queries, keys) = (spec.query_width(), spec.kv_width());
    let part = |start, width| split(qkv.clone().narrow(2, start, width), width / spec.head_dim);
    [part(0, queries), part(queries, keys), part(queries + keys, keys)]
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
