//! The sizes of multi-head latent attention.

/// The sizes of multi-head latent attention (MLA), <https://arxiv.org/abs/2405.04434>, with the names of DeepSeek's `config.json`.
///
/// A token is cached as one row: a latent from which the keys and values of all heads are projected, and a rotated part of the keys that
/// all heads share.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct LatentSizes {
    /// Features of the latent of the queries; `None` projects queries from the input in one product.
    pub q_lora_rank: Option<usize>,
    /// L: features of the latent of keys and values.
    pub kv_lora_rank: usize,
    /// Features of a query, and of a key, that are not rotated.
    pub qk_nope_head_dim: usize,
    /// R: features of a query, and of a key, that are rotated; the heads share those of the key.
    pub qk_rope_head_dim: usize,
    /// Hv: features of a value.
    pub v_head_dim: usize,
    /// Added before the root in the RMSNorms of the latents. `transformers` takes 1e-6, whatever `rms_norm_eps` says.
    pub norm_epsilon: f64,
}

impl LatentSizes {
    /// Keys of `nope` plain and `rope` rotated features and values of `value` features, from latents of `rank` features. Queries have no
    /// latent.
    pub fn new(rank: usize, [nope, rope]: [usize; 2], value: usize) -> Self {
        Self {
            q_lora_rank: None,
            kv_lora_rank: rank,
            qk_nope_head_dim: nope,
            qk_rope_head_dim: rope,
            v_head_dim: value,
            norm_epsilon: 1e-6,
        }
    }

    /// The same, with queries from latents of `rank` features.
    pub fn with_q_lora_rank(self, rank: Option<usize>) -> Self {
        Self { q_lora_rank: rank, ..self }
    }

    /// The same, with another epsilon.
    pub fn with_norm_epsilon(self, epsilon: f64) -> Self {
        Self { norm_epsilon: epsilon, ..self }
    }

    /// Features of a query and of a key.
    pub fn key_dim(&self) -> usize {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    /// L + R: features that are cached for a token.
    pub fn row_dim(&self) -> usize {
        self.kv_lora_rank + self.qk_rope_head_dim
    }

    /// Features of a head that are projected from a latent: those of its key that are not rotated, and its value.
    pub fn up_dim(&self) -> usize {
        self.qk_nope_head_dim + self.v_head_dim
    }
}
