//! The projection from latents, absorbed into queries and context.

#![cfg(any(feature = "cpu", feature = "cubecl"))]

use burn::tensor::{Tensor, backend::Backend};

use crate::ops::heads::merge_heads;
use crate::spec::LatentSizes;
use crate::weight::Weight;

/// The projection from latents, head by head.
pub(super) struct Absorbed<B: Backend> {
    /// `[N, nope + Hv, L]`.
    up: Tensor<B, 3>,
    sizes: LatentSizes,
}

impl<B: Backend> Absorbed<B> {
    pub fn new(up: &Weight<B>, sizes: LatentSizes) -> Self {
        let heads = up.output_size() / sizes.up_dim();
        let up = up.input_output().transpose().reshape([heads, sizes.up_dim(), sizes.kv_lora_rank]);
        Self { up, sizes }
    }

    /// Queries for cached rows: `Wᵀ·q`, and the rotated features.
    ///
    /// # Shapes
    /// - plain: `[B, N, T, nope]`, rotated: `[B, N, T, R]`
    /// - output: `[B, N, T, L + R]`
    pub fn query(&self, plain: Tensor<B, 4>, rotated: Tensor<B, 4>) -> Tensor<B, 4> {
        let keys = self.up.clone().narrow(1, 0, self.sizes.qk_nope_head_dim);
        Tensor::cat(vec![by_head(plain, keys), rotated], 3)
    }

    /// The context of values, from that of latents.
    ///
    /// # Shapes
    /// - latents: `[B, N, T, L]`, output: `[B, T, N·Hv]`
    pub fn context(&self, latents: Tensor<B, 4>) -> Tensor<B, 3> {
        let values = self.up.clone().narrow(1, self.sizes.qk_nope_head_dim, self.sizes.v_head_dim);
        merge_heads(by_head(latents, values.swap_dims(1, 2)))
    }
}

/// The product of each head, `[B, N, T, in]`, with its matrix, `[N, in, out]`.
fn by_head<B: Backend>(heads: Tensor<B, 4>, matrices: Tensor<B, 3>) -> Tensor<B, 4> {
    let ([batch, count, tokens, input], [_, _, output]) = (heads.dims(), matrices.dims());
    let rows = heads.swap_dims(0, 1).reshape([count, batch * tokens, input]);
    rows.matmul(matrices).reshape([count, batch, tokens, output]).swap_dims(0, 1)
}
