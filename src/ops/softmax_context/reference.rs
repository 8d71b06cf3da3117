//! The definition of an attention step, in tensor operations.

use burn::tensor::backend::Backend;

use super::arguments::{Keys, SoftmaxContext, SoftmaxContextOutput};
use super::queries_and_keys::{Transform, query_factors, rotary_table};
use crate::cache::{Assign, slice_assign};
use crate::ops::attention::{self, Attention};
use crate::ops::heads::merge_heads;

/// The definition of [`Operations::softmax_context`](crate::ops::Operations::softmax_context).
pub fn reference<B: Backend>(arguments: SoftmaxContext<'_, B>) -> SoftmaxContextOutput<B> {
    reference_with(arguments, slice_assign)
}

/// The same, with a backend's own way to write into the cache.
pub(super) fn reference_with<B: Backend>(
    arguments: SoftmaxContext<'_, B>,
    assign: Assign<B>,
) -> SoftmaxContextOutput<B> {
    arguments.check();
    if arguments.is_empty() {
        return arguments.output_of_no_tokens();
    }
    let visibility = arguments.visibility();
    let SoftmaxContext { qkv, norm: weights, sums, sinks, mut keys, given, mask, spec, want_keys } = arguments;
    let (dtype, device) = (qkv.dtype(), qkv.device());
    let table = rotary_table(&mut keys, spec, &device);
    let factors = query_factors(&mut keys, spec.query_factor, &device);
    let (query, own) = Transform { norm: spec.qk_norm, weights, table, factors }.apply(qkv, sums, spec);
    let (key, value) = match (keys, own) {
        (Keys::Cached(mut cache), own) => {
            if let Some([key, value]) = own {
                cache.append_with(key, value, assign);
            }
            cache.visible()
        }
        (Keys::Fresh(_), own) => match own.or(given) {
            Some([key, value]) => (key, value),
            None => unreachable!("`check` refuses a layer without keys"),
        },
    };
    let returned = want_keys.then(|| (key.clone().cast(dtype), value.clone().cast(dtype)));
    let context = attention::reference(Attention {
        query,
        key,
        value,
        scale: spec.scale,
        softcap: spec.softcap,
        sinks,
        slopes: spec.position.slopes(&spec.shard),
        visibility,
        mask,
    });
    SoftmaxContextOutput { context: merge_heads(context.cast(dtype)), keys: returned }
}
