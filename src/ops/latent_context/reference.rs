//! The definition of latent attention, in tensor operations: keys and values are projected from the latents.

use burn::tensor::{Tensor, backend::Backend};

use super::arguments::LatentContext;
use super::parts::Parts;
use crate::cache::{Assign, slice_assign};
use crate::ops::attention::{self, Attention};
use crate::ops::heads::{merge_heads, split};
use crate::ops::linear;
use crate::ops::softmax_context::Keys;
use crate::weight::Weight;
use crate::zeros::zeros;

/// The operations of which the definition consists, as a backend runs them.
pub(super) struct Steps<B: Backend> {
    /// Writes into the cache.
    pub assign: Assign<B>,
    /// `input · weight`.
    pub project: fn(Tensor<B, 3>, &Weight<B>) -> Tensor<B, 3>,
    /// Attention over expanded keys and values.
    pub attend: fn(Attention<B>) -> Tensor<B, 4>,
}

/// The definition of [`Operations::latent_context`](crate::ops::Operations::latent_context).
pub fn reference<B: Backend>(arguments: LatentContext<'_, B>) -> Tensor<B, 3> {
    expanded(arguments, Steps { assign: slice_assign, project: linear::reference, attend: attention::reference })
}

/// The same, with the operations of a backend.
pub(super) fn expanded<B: Backend>(mut arguments: LatentContext<'_, B>, steps: Steps<B>) -> Tensor<B, 3> {
    arguments.check();
    let (sizes, dtype) = (arguments.sizes(), arguments.query.dtype());
    let [batch, tokens, _] = arguments.query.dims();
    if arguments.is_empty() {
        let width = arguments.spec.heads() * sizes.v_head_dim;
        return zeros([batch, tokens, width], (&arguments.query.device(), dtype));
    }
    let Parts { plain, rotated, rows } = Parts::new(&mut arguments);
    let visibility = arguments.visibility();
    let LatentContext { up, keys, mask, spec, .. } = arguments;
    let rows = match keys {
        Keys::Cached(mut cache) => {
            cache.append_latents(rows, steps.assign);
            cache.visible().0.cast(dtype)
        }
        Keys::Fresh(_) => rows,
    };
    let [_, _, slots, _] = rows.dims();
    let latents = rows.clone().narrow(3, 0, sizes.kv_lora_rank).reshape([batch, slots, sizes.kv_lora_rank]);
    let heads = split((steps.project)(latents, up), spec.heads());
    let (nope, rope) = (sizes.qk_nope_head_dim, sizes.qk_rope_head_dim);
    let shared = rows.narrow(3, sizes.kv_lora_rank, rope).expand([batch, spec.heads(), slots, rope]);
    let context = (steps.attend)(Attention {
        query: Tensor::cat(vec![plain, rotated], 3),
        key: Tensor::cat(vec![heads.clone().narrow(3, 0, nope), shared], 3),
        value: heads.narrow(3, nope, sizes.v_head_dim),
        scale: spec.scale,
        softcap: spec.softcap,
        sinks: None,
        slopes: None,
        visibility,
        mask,
    });
    merge_heads(context.cast(dtype))
}
