//! Queries and rows of a step, with the rotation applied.

use burn::tensor::{Tensor, backend::Backend};

use super::arguments::LatentContext;
use crate::ops::heads::split;
use crate::ops::softmax_context::Keys;
use crate::position::rotary::RotaryTable;

/// The parts of new tokens.
pub(super) struct Parts<B: Backend> {
    /// `[B, N, T, nope]`: the features of queries that are not rotated.
    pub plain: Tensor<B, 4>,
    /// `[B, N, T, R]`: those that are, after it.
    pub rotated: Tensor<B, 4>,
    /// `[B, 1, T, L + R]`: what the cache stores of a token.
    pub rows: Tensor<B, 4>,
}

impl<B: Backend> Parts<B> {
    /// Takes queries and rows apart, and rotates.
    pub fn new(arguments: &mut LatentContext<'_, B>) -> Self {
        let (sizes, dtype, device) = (arguments.sizes(), arguments.query.dtype(), arguments.query.device());
        let rotary = arguments.rotary().clone();
        let table = match &mut arguments.keys {
            Keys::Cached(cache) => cache.rotary_table(&rotary, &device),
            Keys::Fresh(positions) => RotaryTable::new(&rotary, positions, &device),
        };
        let rope = sizes.qk_rope_head_dim;
        let queries = split(arguments.query.clone(), arguments.spec.heads());
        let rows = split(arguments.rows.clone(), 1);
        let last = |heads: &Tensor<B, 4>, first| table.apply(heads.clone().narrow(3, first, rope)).cast(dtype);
        let rotated = last(&queries, sizes.qk_nope_head_dim);
        let latents = rows.clone().narrow(3, 0, sizes.kv_lora_rank);
        let rows = Tensor::cat(vec![latents, last(&rows, sizes.kv_lora_rank)], 3);
        Self { plain: queries.narrow(3, 0, sizes.qk_nope_head_dim), rotated, rows }
    }
}
