//! The definition, in tensor operations.

use burn::tensor::backend::Backend;

use super::{Rotated, RotatedKeys, SoftmaxContext, SoftmaxContextOutput, merge_heads, rotate_and_append};
use crate::cache::{Assign, slice_assign};
use crate::ops::attention::{self, Attention, Visibility};
use crate::position::PositionEncoding;
use crate::position::alibi::shard_slopes;

/// The definition of [`InferenceBackend::softmax_context`](crate::InferenceBackend::softmax_context).
pub fn reference<B: Backend>(arguments: SoftmaxContext<'_, B>) -> SoftmaxContextOutput<B> {
    reference_with(arguments, slice_assign)
}

/// The same, with a backend's own way to write into the cache.
pub(crate) fn reference_with<B: Backend>(
    arguments: SoftmaxContext<'_, B>,
    assign: Assign<B>,
) -> SoftmaxContextOutput<B> {
    let SoftmaxContext { qkv, keys, mask, spec, want_keys } = arguments;
    let (dtype, tokens) = (qkv.dtype(), qkv.dims()[1]);
    let Rotated { query, keys } = rotate_and_append(qkv, keys, spec, assign);
    let (key, value, starts, ends) = match keys {
        RotatedKeys::Cached(cache) => {
            let (key, value) = cache.visible();
            (key, value, cache.rows().starts().to_vec(), cache.rows().ends())
        }
        RotatedKeys::Fresh(key, value) => (key, value, vec![0], vec![tokens]),
    };
    let returned = want_keys.then(|| (key.clone().cast(dtype), value.clone().cast(dtype)));
    let context = attention::reference(Attention {
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
