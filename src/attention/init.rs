//! Builds modules and caches from a configuration.

use burn::tensor::backend::Backend;

use super::bloom::BloomSelfAttention;
use super::build::Build;
use super::cross::DeepSpeedCrossAttention;
use super::diffusers::DeepSpeedDiffusersAttention;
use super::joint::DeepSpeedJointAttention;
use super::latent::DeepSpeedLatentAttention;
use super::self_attention::DeepSpeedSelfAttention;
use super::vae::DeepSpeedVaeAttention;
use crate::cache::KvCache;
use crate::config::{DeepSpeedInferenceConfig, JointStreams, KvSource, LatentSizes, VaeBlock};
use crate::error::{ConfigError, Origin};
use crate::position::PositionEncoding;
use crate::weight::{GroupNorm, QkvWeight, QueryKeyNorm, Sinks};

mod sealed {
    pub trait Sealed {}
    impl Sealed for crate::config::DeepSpeedInferenceConfig {}
}

/// Builds attention modules and KV caches from a [`DeepSpeedInferenceConfig`], which itself knows no tensors.
///
/// The trait cannot be implemented outside this crate.
///
/// ```
/// use burn_deepspeed::{AttentionInit, DataType, DeepSpeedInferenceConfig};
/// use burn_ndarray::NdArray;
///
/// # fn main() -> Result<(), burn_deepspeed::ConfigError> {
/// let config = DeepSpeedInferenceConfig::new(64, 4).with_dtype(DataType::Fp32).with_num_hidden_layers(Some(2));
/// let device = Default::default();
/// let layers = [config.init_self_attention::<NdArray>(0, &device)?, config.init_self_attention(1, &device)?];
/// let cache = config.init_cache::<NdArray>(1, &device)?;
/// assert_eq!(cache.layers(), layers.len());
/// # Ok(()) }
/// ```
pub trait AttentionInit: sealed::Sealed {
    /// Builds self-attention for layer `layer_id`, of BLOOM as of any other model. Matrices are random until a checkpoint or
    /// record is loaded.
    ///
    /// # Errors
    /// Those of [`resolve`](DeepSpeedInferenceConfig::resolve); [`ConfigError::UnsupportedDataType`] if the backend does not
    /// store `dtype`; [`ConfigError::GroupsDoNotDivide`]; [`ConfigError::NoFusedKernels`] if `use_triton` is set on a backend
    /// without GPU kernels.
    fn init_self_attention<B: Backend>(
        &self,
        layer_id: usize,
        device: &B::Device,
    ) -> Result<DeepSpeedSelfAttention<B>, ConfigError>;

    /// The same, checking that the configuration is BLOOM's.
    ///
    /// # Errors
    /// Those of [`init_self_attention`](Self::init_self_attention); [`ConfigError::WrongModule`] unless `bigscience_bloom` is
    /// true.
    fn init_bloom<B: Backend>(&self, layer_id: usize, device: &B::Device)
    -> Result<BloomSelfAttention<B>, ConfigError>;

    /// Builds self-attention for diffusion models: one fused projection, or three under `set_empty_params`. A context
    /// may still be given if it is as wide as the input. `triangular_masking` and the norm settings are not read: this
    /// module has neither.
    ///
    /// # Errors
    /// Those of [`resolve`](DeepSpeedInferenceConfig::resolve); [`ConfigError::UnsupportedDataType`] if the backend does not
    /// store `dtype`; [`ConfigError::NoFusedKernels`] for `use_triton` on a backend without GPU kernels;
    /// [`ConfigError::GroupsDoNotDivide`]; [`ConfigError::WrongModule`] if the configuration sets rotary positions, ALiBi, a
    /// window, a norm of queries and keys, a factor of queries, `qkv_clip`, sinks, or a gate on the context.
    fn init_diffusers<B: Backend>(
        &self,
        layer_id: usize,
        device: &B::Device,
    ) -> Result<DeepSpeedDiffusersAttention<B>, ConfigError>;

    /// Builds cross attention to a context of `context_dim` features, with separate query, key and value projections.
    ///
    /// # Errors
    /// Those of [`init_diffusers`](Self::init_diffusers); [`ConfigError::OutOfRange`] if `context_dim` is 0.
    fn init_diffusers_cross<B: Backend>(
        &self,
        context_dim: usize,
        layer_id: usize,
        device: &B::Device,
    ) -> Result<DeepSpeedDiffusersAttention<B>, ConfigError>;

    /// Builds the joint attention of a diffusion transformer. `hidden_size` is that of the image tokens. Biases, the norm of queries and
    /// keys, and rotary positions are the same for both streams. `triangular_masking` and the norm settings are not read.
    ///
    /// # Errors
    /// Those of [`init_diffusers`](Self::init_diffusers), except about rotary positions and norms of queries and keys of each head;
    /// [`ConfigError::WrongModule`] also for `defer_output_bias`; [`ConfigError::OutOfRange`] for text tokens without features.
    fn init_joint<B: Backend>(
        &self,
        streams: JointStreams,
        layer_id: usize,
        device: &B::Device,
    ) -> Result<DeepSpeedJointAttention<B>, ConfigError>;

    /// Builds the attention of a VAE. `hidden_size` is the number of channels. `triangular_masking` and the norm settings of the
    /// configuration are not read: `block` has those of the norm.
    ///
    /// # Errors
    /// Those of [`init_diffusers`](Self::init_diffusers) and of [`VaeBlock::check`]; [`ConfigError::WrongModule`] also for
    /// `defer_output_bias`.
    fn init_vae<B: Backend>(
        &self,
        block: VaeBlock,
        layer_id: usize,
        device: &B::Device,
    ) -> Result<DeepSpeedVaeAttention<B>, ConfigError>;

    /// Builds latent attention (DeepSeek V2 and V3) for layer `layer_id`.
    ///
    /// # Errors
    /// Those of [`resolve_latent`](DeepSpeedInferenceConfig::resolve_latent), and of
    /// [`init_self_attention`](Self::init_self_attention) that concern the backend.
    fn init_latent_attention<B: Backend>(
        &self,
        sizes: &LatentSizes,
        layer_id: usize,
        device: &B::Device,
    ) -> Result<DeepSpeedLatentAttention<B>, ConfigError>;

    /// Allocates a cache of latents, as [`init_cache`](Self::init_cache): `L + R` numbers for each token of a layer.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] without `num_hidden_layers`, else those of
    /// [`resolve_latent`](DeepSpeedInferenceConfig::resolve_latent) and [`KvCache::new`].
    fn init_latent_cache<B: Backend>(
        &self,
        sizes: &LatentSizes,
        batch: usize,
        device: &B::Device,
    ) -> Result<KvCache<B>, ConfigError>;

    /// Builds the cross attention of a decoder layer, to a context of `context_dim` features. `triangular_masking` and `kv_cache_dtype`
    /// are not read: every query sees the whole context, whose keys have the element type of the activations.
    ///
    /// # Errors
    /// Those of [`init_diffusers_cross`](Self::init_diffusers_cross).
    fn init_cross_attention<B: Backend>(
        &self,
        context_dim: usize,
        layer_id: usize,
        device: &B::Device,
    ) -> Result<DeepSpeedCrossAttention<B>, ConfigError>;

    /// Allocates a cache for `batch` rows of `max_out_tokens` tokens in each of `num_hidden_layers` layers.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] without `num_hidden_layers`, else those of [`resolve`](DeepSpeedInferenceConfig::resolve) and
    /// [`KvCache::new`].
    fn init_cache<B: Backend>(&self, batch: usize, device: &B::Device) -> Result<KvCache<B>, ConfigError>;

    /// The bytes that [`init_cache`](Self::init_cache) allocates on this rank, without allocating them. If `dtype` is int8,
    /// the element type of the cache, and so the size, depends on the device.
    ///
    /// # Errors
    /// Those of [`init_cache`](Self::init_cache).
    fn cache_memory_bytes<B: Backend>(&self, batch: usize, device: &B::Device) -> Result<usize, ConfigError>;
}

impl AttentionInit for DeepSpeedInferenceConfig {
    fn init_self_attention<B: Backend>(
        &self,
        layer_id: usize,
        device: &B::Device,
    ) -> Result<DeepSpeedSelfAttention<B>, ConfigError> {
        self_attention(Build::new(self, layer_id, device)?)
    }

    fn init_bloom<B: Backend>(
        &self,
        layer_id: usize,
        device: &B::Device,
    ) -> Result<BloomSelfAttention<B>, ConfigError> {
        if !self.bigscience_bloom {
            return Err(ConfigError::WrongModule {
                module: "BloomSelfAttention",
                fact: "`bigscience_bloom` is false",
                remedy: "set it to true, or call `init_self_attention`",
            });
        }
        self_attention(Build::new(self, layer_id, device)?)
    }

    fn init_diffusers<B: Backend>(
        &self,
        layer_id: usize,
        device: &B::Device,
    ) -> Result<DeepSpeedDiffusersAttention<B>, ConfigError> {
        diffusers(self, None, layer_id, device)
    }

    fn init_diffusers_cross<B: Backend>(
        &self,
        context_dim: usize,
        layer_id: usize,
        device: &B::Device,
    ) -> Result<DeepSpeedDiffusersAttention<B>, ConfigError> {
        check_context_dim(context_dim)?;
        diffusers(self, Some(context_dim), layer_id, device)
    }

    fn init_joint<B: Backend>(
        &self,
        streams: JointStreams,
        layer_id: usize,
        device: &B::Device,
    ) -> Result<DeepSpeedJointAttention<B>, ConfigError> {
        joint(self, streams, layer_id, device)
    }

    fn init_vae<B: Backend>(
        &self,
        block: VaeBlock,
        layer_id: usize,
        device: &B::Device,
    ) -> Result<DeepSpeedVaeAttention<B>, ConfigError> {
        vae(self, block, layer_id, device)
    }

    fn init_latent_attention<B: Backend>(
        &self,
        sizes: &LatentSizes,
        layer_id: usize,
        device: &B::Device,
    ) -> Result<DeepSpeedLatentAttention<B>, ConfigError> {
        Build::of_spec(self, self.resolve_latent(sizes, layer_id)?, device)?.latent(sizes)
    }

    fn init_latent_cache<B: Backend>(
        &self,
        sizes: &LatentSizes,
        batch: usize,
        device: &B::Device,
    ) -> Result<KvCache<B>, ConfigError> {
        KvCache::new(&self.resolve_latent(sizes, 0)?, cached_layers(self)?, batch, device)
    }

    fn init_cross_attention<B: Backend>(
        &self,
        context_dim: usize,
        layer_id: usize,
        device: &B::Device,
    ) -> Result<DeepSpeedCrossAttention<B>, ConfigError> {
        cross_attention(self, context_dim, layer_id, device)
    }

    fn init_cache<B: Backend>(&self, batch: usize, device: &B::Device) -> Result<KvCache<B>, ConfigError> {
        KvCache::new(&self.resolve(0)?, cached_layers(self)?, batch, device)
    }

    fn cache_memory_bytes<B: Backend>(&self, batch: usize, device: &B::Device) -> Result<usize, ConfigError> {
        KvCache::<B>::bytes(&self.resolve(0)?, cached_layers(self)?, batch, device)
    }
}

fn cached_layers(config: &DeepSpeedInferenceConfig) -> Result<usize, ConfigError> {
    config.num_hidden_layers.ok_or(ConfigError::Missing { key: "num_hidden_layers", origin: Origin::Program })
}

fn self_attention<B: Backend>(build: Build<'_, B>) -> Result<DeepSpeedSelfAttention<B>, ConfigError> {
    let config = build.config;
    let separate = config.set_empty_params && build.spec.kv_source == KvSource::Own;
    let qkv = if separate { build.separate(config.hidden_size)? } else { build.fused()? };
    let query_key_norm = QueryKeyNorm::init(&build.spec, build.device);
    let (sinks, gate) = (Sinks::init(&build.spec, build.device), build.gate()?);
    let norm = build.norm();
    Ok(DeepSpeedSelfAttention { norm, projections: build.projections(qkv)?, query_key_norm, sinks, gate })
}

/// What a module for diffusion models, or one that attends to a context, does not have, of what a configuration may ask for.
#[derive(Clone, Copy, PartialEq)]
enum Lacks {
    /// Positions and a norm of queries and keys, among others.
    Positions,
    /// The same, and an output bias that is left to the caller.
    DeferredBias,
    /// ALiBi, a norm over all heads, and an output bias that is left to the caller.
    Alibi,
}

/// The configuration of a module for diffusion models: it has no norm of tokens before the projection and no causal mask, so these
/// settings do not matter.
fn for_diffusion(config: &DeepSpeedInferenceConfig) -> DeepSpeedInferenceConfig {
    config.clone().with_pre_layer_norm(false).with_triangular_masking(false)
}

fn check_settings<B: Backend>(build: &Build<'_, B>, module: &'static str, lacks: Lacks) -> Result<(), ConfigError> {
    let (spec, rotates) = (&build.spec, lacks == Lacks::Alibi);
    let position = match spec.position {
        PositionEncoding::None => false,
        PositionEncoding::Rotary(_) => !rotates,
        _ => true,
    };
    let norm = if rotates { spec.norm_of_all_heads() } else { spec.qk_norm };
    let (of_position, unset_position) = match rotates {
        true => ("it has no ALiBi", "unset `bigscience_bloom`"),
        false => ("it has no position encoding", "unset `rotary_dim` and `bigscience_bloom`"),
    };
    let (of_norm, unset_norm) = match rotates {
        true => ("it has no norm over all heads", "set the `kind` of `qk_norm` to rms or layer_norm"),
        false => ("it has no norm of queries and keys", "unset `qk_norm`"),
    };
    let norm_of_values = spec.qk_norm.is_some_and(|norm| norm.values);
    let defers = lacks != Lacks::Positions && build.config.defer_output_bias;
    for (given, fact, remedy) in [
        (position, of_position, unset_position),
        (spec.window.is_some(), "it has no window", "set `local_attention` to false"),
        (norm.is_some(), of_norm, unset_norm),
        (spec.kv_source != KvSource::Own, "it projects its own keys and values", "set `kv_source` to own"),
        (norm_of_values, "it does not normalise values", "set `qk_norm.values` to false"),
        (spec.query_factor.is_some(), "it has no positions", "unset `query_factor`"),
        (spec.qkv_clip.is_some(), "it does not limit queries, keys and values", "unset `qkv_clip`"),
        (spec.sinks, "it has no sinks", "set `sinks` to false"),
        (spec.context_gate, "it has no gate on the context", "set `context_gate` to false"),
        (defers, "it adds its output bias", "set `defer_output_bias` to false"),
    ] {
        if given {
            return Err(ConfigError::WrongModule { module, fact, remedy });
        }
    }
    Ok(())
}

fn diffusers<B: Backend>(
    config: &DeepSpeedInferenceConfig,
    context_dim: Option<usize>,
    layer_id: usize,
    device: &B::Device,
) -> Result<DeepSpeedDiffusersAttention<B>, ConfigError> {
    let config = for_diffusion(config);
    let build = Build::<B>::new(&config, layer_id, device)?;
    check_settings(&build, "DeepSpeedDiffusersAttention", Lacks::Positions)?;
    let qkv = match context_dim {
        Some(context) => build.separate(context)?,
        None if config.set_empty_params => build.separate(config.hidden_size)?,
        None => build.fused()?,
    };
    Ok(DeepSpeedDiffusersAttention { projections: build.projections(qkv)? })
}

fn cross_attention<B: Backend>(
    config: &DeepSpeedInferenceConfig,
    context_dim: usize,
    layer_id: usize,
    device: &B::Device,
) -> Result<DeepSpeedCrossAttention<B>, ConfigError> {
    check_context_dim(context_dim)?;
    let config = config.clone().with_triangular_masking(false);
    let build = Build::<B>::new(&config, layer_id, device)?;
    check_settings(&build, "DeepSpeedCrossAttention", Lacks::Positions)?;
    let (norm, query) = (build.norm(), build.query(config.hidden_size)?);
    let (key, value) = (build.key(context_dim)?, build.value(context_dim)?);
    Ok(DeepSpeedCrossAttention { norm, projections: build.projections(QkvWeight::Fused(query))?, key, value })
}

fn check_context_dim(context_dim: usize) -> Result<(), ConfigError> {
    match context_dim {
        0 => Err(ConfigError::OutOfRange { key: "context_dim", value: "0".into(), limit: "at least 1" }),
        _ => Ok(()),
    }
}

fn joint<B: Backend>(
    config: &DeepSpeedInferenceConfig,
    streams: JointStreams,
    layer_id: usize,
    device: &B::Device,
) -> Result<DeepSpeedJointAttention<B>, ConfigError> {
    if streams.text == Some(0) {
        return Err(ConfigError::OutOfRange { key: "text", value: "0".into(), limit: "at least 1" });
    }
    let config = for_diffusion(config);
    let build = Build::<B>::new(&config, layer_id, device)?;
    check_settings(&build, "DeepSpeedJointAttention", Lacks::Alibi)?;
    let image = build.stream(config.hidden_size, streams.image_output)?;
    let text = streams.text.map(|features| build.stream(features, streams.text_output)).transpose()?;
    Ok(DeepSpeedJointAttention::new(image, text, streams.text_first, build.spec))
}

fn vae<B: Backend>(
    config: &DeepSpeedInferenceConfig,
    block: VaeBlock,
    layer_id: usize,
    device: &B::Device,
) -> Result<DeepSpeedVaeAttention<B>, ConfigError> {
    block.check(config.hidden_size)?;
    let config = for_diffusion(config);
    let build = Build::<B>::new(&config, layer_id, device)?;
    check_settings(&build, "DeepSpeedVaeAttention", Lacks::DeferredBias)?;
    let norm = GroupNorm::init(config.hidden_size, block.groups, block.epsilon, build.dtype, device);
    let qkv = if config.set_empty_params { build.separate(config.hidden_size)? } else { build.fused()? };
    Ok(DeepSpeedVaeAttention { norm, projections: build.projections(qkv)?, block })
}
