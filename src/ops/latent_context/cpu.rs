//! Latent attention on the CPU kernels. A few new tokens attend to the cached rows in place.

use burn::tensor::Tensor;

use super::absorbed::Absorbed;
use super::arguments::LatentContext;
use super::parts::Parts;
use super::reference::{Steps, expanded};
use crate::ops::attention::cpu::{Call, masked_attention, with_stored};
use crate::ops::cpu::{InMemory, tensor, with_heads};
use crate::ops::qkv_gemm;
use crate::ops::softmax_context::{CpuKernel, Keys};

/// [`Operations::latent_context`](crate::ops::Operations::latent_context) for backends on the CPU.
pub(crate) fn latent_context<B: InMemory>(arguments: LatentContext<'_, B>) -> Tensor<B, 3> {
    let absorbed = arguments.problem().absorbed().and_then(|problem| problem.on_cpu().ok());
    match absorbed {
        Some(kernel) if !arguments.is_empty() => attend(arguments, kernel),
        _ => {
            let project = |input, weight: &_| qkv_gemm::cpu::project("latent_context", input, weight, true);
            expanded(arguments, Steps { assign: B::assign, project, attend: masked_attention })
        }
    }
}

fn attend<B: InMemory>(mut arguments: LatentContext<'_, B>, kernel: CpuKernel) -> Tensor<B, 3> {
    arguments.check(); // before anything is written
    let (sizes, visibility) = (arguments.sizes(), arguments.visibility());
    let Parts { plain, rotated, rows } = Parts::new(&mut arguments);
    let LatentContext { up, keys, mask, spec, .. } = arguments;
    let Keys::Cached(mut cache) = keys else { unreachable!("without a cache, steps are expanded") };
    let absorbed = Absorbed::new(up, sizes);
    let query = absorbed.query(plain, rotated);
    let (device, dtype) = (query.device(), query.dtype());
    cache.append_latents(rows, B::assign);
    let (stored, _) = cache.storage();
    let ([batch, heads, tokens, _], slots) = (query.dims(), stored.dims()[2]);
    let latents = with_heads(&query, |elements| {
        with_stored(stored, |rows| {
            let call = Call {
                kernel,
                query: elements,
                query_shape: query.dims(),
                key: rows,
                value: rows,
                value_shape: [batch, 1, slots, sizes.kv_lora_rank],
                keys: visibility.ends.iter().copied().max().unwrap_or(0),
                scale: spec.scale,
                softcap: spec.softcap,
                sinks: None,
                slopes: None,
                visibility: &visibility,
                mask: &mask,
            };
            call.attend()
        })
    });
    let latents = tensor(latents, [batch, tokens, heads, sizes.kv_lora_rank], (&device, dtype));
    absorbed.context(latents.swap_dims(1, 2))
}
