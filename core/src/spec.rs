//! Every size of one layer on one rank, checked once.

use crate::data_type::{DataType, KvCacheType};
pub use crate::kv_source::KvSource;
pub use crate::latent::LatentSizes;
use crate::parallel::{AgreedSettings, HeadShard, RankGroup};
use crate::position::{PositionEncoding, QueryFactor};
pub use crate::qk_norm::{QkNorm, QkNormKind, QkNormWeights};
pub use crate::visibility::Window;

/// What a layer's attention needs to know, derived and checked by `DeepSpeedInferenceConfig::resolve`. Sizes are those of one
/// rank.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AttentionSpec {
    /// Index of the layer, counted from 0.
    pub layer_id: usize,
    /// E: width of the residual stream, in elements; the same on every rank.
    pub hidden_size: usize,
    /// N and K: the heads of this rank.
    pub shard: HeadShard,
    /// The tensor-parallel group.
    pub ranks: RankGroup,
    /// Ranks that wrote the checkpoint, 1 for one file of all heads.
    pub training_ranks: usize,
    /// H: features of a head. With latent attention, those of a cached row.
    pub head_dim: usize,
    /// The sizes of latent attention, if that is what the layer has.
    pub latent: Option<LatentSizes>,
    /// Plain factor on QKᵀ.
    pub scale: f64,
    /// `c` of `c · tanh(score / c)`.
    pub softcap: Option<f64>,
    /// Whether a token sees only itself and those before it.
    pub causal: bool,
    /// The part of the keys that a query sees; `None` for all.
    pub window: Option<Window>,
    /// Position encoding.
    pub position: PositionEncoding,
    /// The norm before the projection; `None` for post-norm models.
    pub norm: Option<NormSpec>,
    /// The norm of queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// What each query is multiplied by, after norm and rotation.
    pub query_factor: Option<QueryFactor>,
    /// `c` of the range `-c..=c` that queries, keys and values are limited to after the projection.
    pub qkv_clip: Option<f64>,
    /// Whether each query head has a sink.
    pub sinks: bool,
    /// Whether the context is multiplied by the sigmoid of a projection of the input.
    pub context_gate: bool,
    /// Whether the bias of the QKV projection, if there is one, has a part for the keys.
    pub key_bias: bool,
    /// Where keys and values come from.
    pub kv_source: KvSource,
    /// Element type of weights and activations; `None` is the backend's default float.
    pub dtype: Option<DataType>,
    /// Element types of the cache.
    pub kv_cache_dtype: KvCacheType,
    /// Capacity of a row of the KV cache, in tokens.
    pub max_out_tokens: usize,
    /// Whether a step that no kernel takes is an error.
    pub require_fast: bool,
}

/// The norm before a projection.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormSpec {
    /// RMSNorm if true, LayerNorm if false.
    pub rms: bool,
    /// Added before the root.
    pub epsilon: f64,
}

impl AttentionSpec {
    /// N: query heads of this rank.
    pub fn heads(&self) -> usize {
        self.shard.len
    }

    /// K: key/value heads of this rank.
    pub fn kv_heads(&self) -> usize {
        self.shard.kv_len
    }

    /// N·H: width of this rank's queries and context, in elements.
    pub fn query_width(&self) -> usize {
        self.heads() * self.head_dim
    }

    /// K·H: width of this rank's keys, and of its values, in elements.
    pub fn kv_width(&self) -> usize {
        self.kv_heads() * self.head_dim
    }

    /// The norm of queries and keys, if it is over the heads of all ranks together.
    pub fn norm_of_all_heads(&self) -> Option<QkNorm> {
        self.qk_norm.filter(|norm| norm.kind == QkNormKind::RmsOfAllHeads)
    }

    /// Features of all query heads and of all key heads, on every rank.
    pub fn all_features(&self) -> [usize; 2] {
        [self.shard.total, self.shard.kv_total].map(|heads| heads * self.head_dim)
    }

    /// Whether attention needs the positions of the new tokens.
    pub fn reads_positions(&self) -> bool {
        matches!(self.position, PositionEncoding::Rotary(_)) || self.query_factor.is_some()
    }

    /// Settings that must be equal on every rank of the group; otherwise the sum over the ranks is meaningless.
    pub fn settings(&self) -> AgreedSettings {
        let heads = (self.shard.total, self.shard.kv_total);
        AgreedSettings::new([
            ("`hidden_size`", &self.hidden_size),
            ("`heads` or `num_kv`", &heads),
            ("`head_dim` or the sizes of latents", &(self.head_dim, self.latent)),
            ("the layer or `kv_source`", &(self.layer_id, self.kv_source)),
            ("the scale of the scores", &self.scale),
            ("`softcap`", &self.softcap),
            ("`triangular_masking`", &self.causal),
            ("the window", &self.window),
            ("the position encoding", &self.position),
            ("the norm", &self.norm),
            ("`qk_norm`", &self.qk_norm),
            ("`query_factor`", &self.query_factor),
            ("`sinks`, `context_gate` or `qkv_clip`", &(self.sinks, self.context_gate, self.qkv_clip)),
            ("`dtype`", &self.dtype),
            ("`kv_cache_dtype`", &self.kv_cache_dtype),
            ("`max_out_tokens`", &self.max_out_tokens),
        ])
    }

    /// (N + 2K)·H: width of this rank's packed projection, in elements; (N + K)·H if keys are values, and N·H without keys.
    pub fn qkv_width(&self) -> usize {
        self.query_width() + self.kv_source.projected() * self.kv_width()
    }

    /// The first feature of the values in the packed projection.
    pub fn first_value(&self) -> usize {
        self.qkv_width().saturating_sub(self.kv_width())
    }
}
