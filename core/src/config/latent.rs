//! The specification of a layer with latent attention.

use super::settings::DeepSpeedInferenceConfig;
use crate::error::ConfigError;
use crate::kv_source::KvSource;
use crate::latent::LatentSizes;
use crate::position::PositionEncoding;
use crate::spec::AttentionSpec;

/// The module that the errors name.
const MODULE: &str = "DeepSpeedLatentAttention";
/// The largest size of a latent and of a head, in features.
const LARGEST: usize = 1 << 20;

impl DeepSpeedInferenceConfig {
    /// Checks every setting, and derives the sizes of layer `layer_id` with [latent attention](LatentSizes) on this rank: all query heads
    /// of the rank read one key/value head, the cached row.
    ///
    /// `heads`, norm, rotary positions (`rotary_dim` is `qk_rope_head_dim`), window, softcap, ranks, element types and capacity are those
    /// of this configuration. `qkv_bias` is the bias of the projections to latents and to the shared key; those from latents, and that of
    /// queries without a latent, have none. Without `score_factor` the scores are multiplied by
    /// `1 / √(qk_nope_head_dim + qk_rope_head_dim)`.
    ///
    /// # Errors
    /// A [`ConfigError`] with the fact, the limit and the remedy; [`ConfigError::WrongModule`] for a setting that latent attention does not
    /// have.
    pub fn resolve_latent(&self, sizes: &LatentSizes, layer_id: usize) -> Result<AttentionSpec, ConfigError> {
        for (key, value) in [
            ("q_lora_rank", sizes.q_lora_rank.unwrap_or(1)),
            ("kv_lora_rank", sizes.kv_lora_rank),
            ("qk_nope_head_dim", sizes.qk_nope_head_dim),
            ("qk_rope_head_dim", sizes.qk_rope_head_dim),
            ("v_head_dim", sizes.v_head_dim),
        ] {
            if !(1..=LARGEST).contains(&value) {
                return Err(ConfigError::OutOfRange { key, value: value.to_string(), limit: "1 to 1048576" });
            }
        }
        if !(sizes.norm_epsilon.is_finite() && sizes.norm_epsilon >= 0.0) {
            let (key, value) = ("norm_epsilon", sizes.norm_epsilon.to_string());
            return Err(ConfigError::OutOfRange { key, value, limit: "a number of at least 0" });
        }
        self.check_latent(sizes)?;
        let one_head = self.clone().with_num_kv(Some(1)).with_head_dim(Some(sizes.row_dim()));
        let spec = one_head.resolve(layer_id)?;
        if !matches!(&spec.position, PositionEncoding::Rotary(rotary) if rotary.dim == sizes.qk_rope_head_dim) {
            return Err(wrong("`rotary_dim` is not `qk_rope_head_dim`", "call `with_rotary` with `qk_rope_head_dim`"));
        }
        Ok(AttentionSpec { scale: self.scale(layer_id, sizes.key_dim())?, latent: Some(*sizes), ..spec })
    }

    /// [`resolve_latent`](Self::resolve_latent) if there are sizes of latents, else [`resolve`](Self::resolve).
    ///
    /// # Errors
    /// Those of either.
    pub fn resolve_with(&self, latent: Option<&LatentSizes>, layer_id: usize) -> Result<AttentionSpec, ConfigError> {
        match latent {
            Some(sizes) => self.resolve_latent(sizes, layer_id),
            None => self.resolve(layer_id),
        }
    }

    /// An error for a setting that latent attention does not have.
    fn check_latent(&self, sizes: &LatentSizes) -> Result<(), ConfigError> {
        let own_heads = self.num_kv.is_none_or(|heads| heads == self.heads);
        let types = self.kv_cache_dtype;
        let given = [
            (!own_heads, "`num_kv` is not `heads`", "leave it out; every head has keys of its own"),
            (
                self.head_dim.is_some_and(|size| size != sizes.key_dim()),
                "`head_dim` is not `qk_nope_head_dim` + `qk_rope_head_dim`",
                "leave it out",
            ),
            (self.bigscience_bloom, "it has no ALiBi", "set `bigscience_bloom` to false"),
            (self.qk_norm.is_some(), "it normalises latents, not heads", "unset `qk_norm`"),
            (
                self.kv_source != KvSource::Own,
                "it projects keys and values from latents of its own",
                "set `kv_source` to own",
            ),
            (self.query_factor.is_some(), "it has no factor of queries", "unset `query_factor`"),
            (self.qkv_clip.is_some(), "it does not limit queries, keys and values", "unset `qkv_clip`"),
            (self.sinks, "it has no sinks", "set `sinks` to false"),
            (self.context_gate, "it has no gate on the context", "set `context_gate` to false"),
            (self.set_empty_params, "its projections are always separate", "set `set_empty_params` to false"),
            (
                types.key != types.value,
                "a cached row is key and value, and has one element type",
                "set `kv_cache_dtype` to one type",
            ),
            (
                self.training_mp_size > 1,
                "it reads checkpoints of one rank",
                "merge the files and set `training_mp_size` to 1",
            ),
        ];
        match given.into_iter().find(|(given, ..)| *given) {
            Some((_, fact, remedy)) => Err(wrong(fact, remedy)),
            None => Ok(()),
        }
    }
}

fn wrong(fact: &'static str, remedy: &'static str) -> ConfigError {
    ConfigError::WrongModule { module: MODULE, fact, remedy }
}
