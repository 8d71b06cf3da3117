//! Decoding steps on the CPU kernel, which reads the cache where it lies.

use std::borrow::Cow;
use std::ops::Range;

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_deepspeed_kernels::cpu::decode::{Decode, DecodeShape, decode};

use super::{
    ContextProblem, Declined, Plan, Rotated, RotatedKeys, SoftmaxContext, SoftmaxContextOutput, merge_heads,
    reference::reference_with, rotate_and_append,
};
use crate::cache::LayerCache;
pub(crate) use crate::cache::slice_assign;
use crate::mask::AttentionMask;
use crate::position::PositionEncoding;
use crate::position::alibi::shard_slopes;
use crate::spec::AttentionSpec;

/// New tokens up to which the kernel is faster than the composition; `benches/decode.rs` measures it.
const MOST_TOKENS: usize = 4;

/// Whether the kernel takes a step.
pub(crate) fn plan(problem: &ContextProblem) -> Plan {
    let declined = match problem {
        ContextProblem { dtype, .. } if *dtype != DType::F32 => Declined::ElementType(*dtype),
        ContextProblem { cache_dtype: None, .. } => Declined::Uncached,
        ContextProblem { tokens, .. } if *tokens > MOST_TOKENS => {
            Declined::Tokens { tokens: *tokens, limit: MOST_TOKENS }
        }
        ContextProblem { hides_pairs: true, .. } => Declined::HiddenPairs,
        ContextProblem { has_bias: true, .. } => Declined::Bias,
        _ => return Plan::Kernel("cpu::decode"),
    };
    Plan::Reference(declined)
}

/// A backend whose tensors lie in memory.
pub(crate) trait InMemory: Backend {
    /// Reads the elements of an f32 tensor, without a copy if they lie one behind the other.
    fn with_elements<R>(tensor: &Tensor<Self, 4>, read: impl FnOnce(Cow<'_, [f32]>) -> R) -> R;

    /// Writes into a part of a tensor, in place if nobody else holds it.
    fn assign(tensor: Tensor<Self, 4>, at: [Range<usize>; 4], tokens: Tensor<Self, 4>) -> Tensor<Self, 4> {
        slice_assign(tensor, at, tokens)
    }
}

/// The elements, copied: for tensors that do not lie one behind the other.
pub(crate) fn copied<B: Backend>(tensor: &Tensor<B, 4>) -> Cow<'static, [f32]> {
    Cow::Owned(tensor.to_data().iter().collect())
}

/// [`InferenceBackend::softmax_context`](crate::InferenceBackend::softmax_context) for backends on the CPU.
pub(crate) fn softmax_context<B: InMemory>(arguments: SoftmaxContext<'_, B>) -> SoftmaxContextOutput<B> {
    if let Plan::Reference(_) = plan(&arguments.problem()) {
        return reference_with(arguments, B::assign);
    }
    let SoftmaxContext { qkv, keys, mask, spec, want_keys } = arguments;
    let Rotated { query, keys } = rotate_and_append(qkv, keys, spec, B::assign);
    let RotatedKeys::Cached(cache) = keys else {
        unreachable!("a step without a cache is declined above");
    };
    let context = attend(&query, &cache, &mask, spec);
    SoftmaxContextOutput { context: merge_heads(context), keys: want_keys.then(|| cache.visible()) }
}

fn attend<B: InMemory>(
    query: &Tensor<B, 4>,
    cache: &LayerCache<'_, B>,
    mask: &AttentionMask<B>,
    spec: &AttentionSpec,
) -> Tensor<B, 4> {
    let [batch, heads, tokens, head_dim] = query.dims();
    let (starts, ends, keys) = (cache.rows().starts(), cache.rows().ends(), cache.rows().keys());
    mask.check("softmax_context", [batch, heads, tokens, keys]);
    let (key, value) = cache.storage();
    let hidden: Option<Vec<bool>> = mask.hidden_keys().map(|hidden| hidden.to_data().iter().collect());
    let slopes = (spec.position == PositionEncoding::Alibi).then(|| shard_slopes(&spec.shard));
    let positions = match (&slopes, &hidden) {
        (Some(_), Some(hidden)) => Some(kept_before(hidden, keys)),
        _ => None,
    };
    let shape = DecodeShape { batch, heads, kv_heads: spec.kv_heads(), tokens, capacity: key.dims()[2], head_dim };
    let query_elements: Vec<f32> = query.to_data().iter().collect();
    let mut output = vec![0.0; query_elements.len()];
    B::with_elements(key, |key| {
        B::with_elements(value, |value| {
            let problem = Decode {
                shape,
                query: &query_elements,
                key: &key,
                value: &value,
                starts,
                ends: &ends,
                scale: spec.scale as f32,
                softcap: spec.softcap.map(|cap| cap as f32),
                causal: spec.causal,
                window: spec.window,
                hidden: hidden.as_deref(),
                slopes: slopes.as_deref(),
                positions: positions.as_deref(),
            };
            decode(&problem, &mut output);
        });
    });
    Tensor::from_data(TensorData::new(output, [batch, heads, tokens, head_dim]), (&query.device(), DType::F32))
}

/// The position of every slot: the kept keys before it.
fn kept_before(hidden: &[bool], keys: usize) -> Vec<i32> {
    let mut positions = Vec::with_capacity(hidden.len());
    for row in hidden.chunks(keys) {
        let mut position = -1;
        positions.extend(row.iter().map(|hidden| {
            position += i32::from(!hidden);
            position
        }));
    }
    positions
}
