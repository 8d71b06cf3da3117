//! Rotate, append and attend on the CPU kernels, which read the cache where it lies.

use burn::tensor::DType;

use super::{
    ContextProblem, Declined, Plan, Rotated, RotatedKeys, SoftmaxContext, SoftmaxContextOutput,
    reference::reference_with, rotate_and_append,
};
use crate::ops::attention::Visibility;
use crate::ops::attention::cpu::Problem;
use crate::ops::cpu::InMemory;
use crate::position::PositionEncoding;
use crate::position::alibi::shard_slopes;

/// New tokens on a cache up to which keys are not packed; `benches/decode.rs` measures it.
const MOST_DECODE_TOKENS: usize = 4;

/// Which kernel takes a step.
pub(crate) fn plan(problem: &ContextProblem) -> Plan {
    let cache = problem.cache_dtype.unwrap_or(problem.dtype);
    let plain = !problem.hides_pairs && !problem.has_bias;
    if problem.dtype != DType::F32 {
        Plan::Reference(Declined::ElementType(problem.dtype))
    } else if cache != problem.dtype {
        Plan::Reference(Declined::CacheType { dtype: problem.dtype, cache })
    } else if problem.cache_dtype.is_some() && problem.tokens <= MOST_DECODE_TOKENS && plain {
        Plan::Kernel("cpu::decode")
    } else {
        Plan::Kernel("cpu::flash")
    }
}

/// [`InferenceBackend::softmax_context`](crate::InferenceBackend::softmax_context) for backends on the CPU.
pub(crate) fn softmax_context<B: InMemory>(arguments: SoftmaxContext<'_, B>) -> SoftmaxContextOutput<B> {
    let plan = plan(&arguments.problem());
    if let Plan::Reference(_) = plan {
        return reference_with(arguments, B::assign);
    }
    let SoftmaxContext { qkv, keys, mask, spec, want_keys } = arguments;
    let [_, tokens, _] = qkv.dims();
    let Rotated { query, keys } = rotate_and_append(qkv, keys, spec, B::assign);
    let (starts, ends) = match &keys {
        RotatedKeys::Cached(cache) => (cache.rows().starts().to_vec(), cache.rows().ends()),
        RotatedKeys::Fresh(..) => (vec![0], vec![tokens]),
    };
    let (key, value) = match &keys {
        RotatedKeys::Cached(cache) => cache.storage(),
        RotatedKeys::Fresh(key, value) => (key, value),
    };
    let slopes = (spec.position == PositionEncoding::Alibi).then(|| shard_slopes(&spec.shard));
    let visibility = Visibility { causal: spec.causal, window: spec.window, starts, ends };
    let problem = Problem {
        query: &query,
        key,
        value,
        keys: visibility.ends.iter().copied().max().unwrap_or(0),
        scale: spec.scale,
        softcap: spec.softcap,
        slopes: slopes.as_deref(),
        visibility: &visibility,
        mask: &mask,
    };
    let context = if plan == Plan::Kernel("cpu::decode") { problem.decode() } else { problem.flash() };
    let keys = want_keys.then(|| match keys {
        RotatedKeys::Cached(cache) => cache.visible(),
        RotatedKeys::Fresh(key, value) => (key, value),
    });
    SoftmaxContextOutput { context, keys }
}
