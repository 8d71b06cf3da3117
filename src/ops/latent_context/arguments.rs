//! The arguments of a step of latent attention, and the checks that every path makes.

use burn::tensor::{Tensor, backend::Backend};
use burn_deepspeed_core::path::LatentProblem;

use crate::element::element_type;
use crate::error::check_shape;
use crate::mask::AttentionMask;
use crate::ops::attention::Visibility;
use crate::ops::softmax_context::Keys;
use crate::position::PositionEncoding;
use crate::position::rotary::Rotary;
use crate::spec::{AttentionSpec, LatentSizes};
use crate::weight::Weight;

/// The arguments of [`Operations::latent_context`](crate::ops::Operations::latent_context).
#[derive(Debug)]
pub struct LatentContext<'a, B: Backend> {
    /// `[B, T, N·(nope + R)]`; the last R features of each head are to be rotated.
    pub query: Tensor<B, 3>,
    /// `[B, T, L + R]`: the normalised latents, and the features of the keys that are to be rotated.
    pub rows: Tensor<B, 3>,
    /// The projection from a latent to `nope` features of a key and `Hv` of a value, head by head: `[N·(nope + Hv), L]`.
    pub up: &'a Weight<B>,
    /// Earlier tokens.
    pub keys: Keys<'a, B>,
    /// What the caller hides.
    pub mask: AttentionMask<B>,
    /// Sizes of the layer, which has [`latent`](AttentionSpec::latent) ones and rotary positions.
    pub spec: &'a AttentionSpec,
}

impl<B: Backend> LatentContext<'_, B> {
    /// What the choice of the kernel depends on.
    pub fn problem(&self) -> LatentProblem {
        let cache = match &self.keys {
            Keys::Cached(cache) => Some(cache.types().key),
            Keys::Fresh(_) => None,
        };
        let (dtype, tokens) = (element_type(self.query.dtype()), self.query.dims()[1]);
        LatentProblem { dtype, tokens, sizes: self.sizes(), cache }
    }

    /// The sizes of the latents.
    #[track_caller]
    pub(super) fn sizes(&self) -> LatentSizes {
        self.spec.latent.unwrap_or_else(|| panic!("latent_context: `spec` has no latent sizes; use `resolve_latent`"))
    }

    /// The rotation of the last features of queries and keys.
    #[track_caller]
    pub(super) fn rotary(&self) -> &Rotary {
        match &self.spec.position {
            PositionEncoding::Rotary(rotary) => rotary,
            other => panic!("latent_context: `spec` has the positions {other:?}, expected rotary ones"),
        }
    }

    /// Panics unless all parts fit together. Every path calls it before it writes to the cache.
    #[track_caller]
    pub(super) fn check(&self) {
        let (operation, spec, sizes) = ("latent_context", self.spec, self.sizes());
        let [mut batch, mut tokens, _] = self.query.dims();
        if let Keys::Cached(cache) = &self.keys {
            (batch, tokens) = (cache.rows().starts().len(), cache.rows().width());
        }
        check_shape(operation, "query", &[batch, tokens, spec.heads() * sizes.key_dim()], &self.query.dims());
        check_shape(operation, "rows", &[batch, tokens, sizes.row_dim()], &self.rows.dims());
        let up = [spec.heads() * sizes.up_dim(), sizes.kv_lora_rank];
        check_shape(operation, "up", &up, &[self.up.output_size(), self.up.input_size()]);
        check_shape(operation, "rotary features", &[sizes.qk_rope_head_dim], &[self.rotary().dim]);
        match &self.keys {
            Keys::Cached(cache) => {
                let stored = cache.storage().0.dims();
                check_shape(operation, "cached rows", &[batch, 1, stored[2], sizes.row_dim()], &stored);
            }
            Keys::Fresh(positions) if !self.is_empty() => {
                check_shape(operation, "positions", &[batch, tokens], &[positions.batch(), positions.tokens()]);
            }
            Keys::Fresh(_) => {}
        }
        let keys = self.visibility().ends.into_iter().max().unwrap_or(0);
        self.mask.check(operation, [batch, spec.heads(), tokens, keys]);
    }

    /// The keys that each query may see, by the rules of the layer.
    pub(super) fn visibility(&self) -> Visibility {
        let (starts, ends) = match &self.keys {
            Keys::Cached(cache) => (cache.rows().starts().to_vec(), cache.rows().ends()),
            Keys::Fresh(_) => (vec![0], vec![self.query.dims()[1]]),
        };
        Visibility { causal: self.spec.causal, window: self.spec.window, starts, ends }
    }

    /// Whether there are no new tokens.
    pub(super) fn is_empty(&self) -> bool {
        let [batch, tokens, _] = self.query.dims();
        batch * tokens == 0
    }
}
