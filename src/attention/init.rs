//! Builds modules and caches from a configuration.

use burn::tensor::backend::Backend;

use super::bloom::BloomSelfAttention;
use super::build::Build;
use super::cross::DeepSpeedCrossAttention;
use super::diffusers::DeepSpeedDiffusersAttention;
use super::self_attention::DeepSpeedSelfAttention;
use crate::cache::KvCache;
use crate::config::DeepSpeedInferenceConfig;
use crate::error::{ConfigError, Origin};
use crate::position::PositionEncoding;
use crate::spec::AttentionSpec;
use crate::weight::{QkvWeight, QueryKeyNorm, Sinks};

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
    /// window, a norm of queries and keys, a factor of queries, sinks, or a gate on the context.
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
    let qkv = if config.set_empty_params { build.separate(config.hidden_size)? } else { build.fused()? };
    let query_key_norm = QueryKeyNorm::init(&build.spec, build.device);
    let (sinks, gate) = (Sinks::init(&build.spec, build.device), build.gate()?);
    let norm = build.norm();
    Ok(DeepSpeedSelfAttention { norm, projections: build.projections(qkv)?, query_key_norm, sinks, gate })
}

fn diffusers<B: Backend>(
    config: &DeepSpeedInferenceConfig,
    context_dim: Option<usize>,
    layer_id: usize,
    device: &B::Device,
) -> Result<DeepSpeedDiffusersAttention<B>, ConfigError> {
    // The module has no norm, so neither its type nor its position matters.
    let config = config.clone().with_pre_layer_norm(false).with_triangular_masking(false);
    let build = Build::<B>::new(&config, layer_id, device)?;
    check_plain(&build.spec, "DeepSpeedDiffusersAttention")?;
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
    check_plain(&build.spec, "DeepSpeedCrossAttention")?;
    let (norm, query) = (build.norm(), build.query()?);
    let (key, value) = (build.key(context_dim)?, build.value(context_dim)?);
    Ok(DeepSpeedCrossAttention { norm, projections: build.projections(QkvWeight::Fused(query))?, key, value })
}

fn check_context_dim(context_dim: usize) -> Result<(), ConfigError> {
    match context_dim {
        0 => Err(ConfigError::OutOfRange { key: "context_dim", value: "0".into(), limit: "at least 1" }),
        _ => Ok(()),
    }
}

/// An error if the layer has something that attention to a context does not have.
fn check_plain(spec: &AttentionSpec, module: &'static str) -> Result<(), ConfigError> {
    let position = spec.position != PositionEncoding::None;
    for (given, fact, remedy) in [
        (position, "it has no position encoding", "unset `rotary_dim` and `bigscience_bloom`"),
        (spec.window.is_some(), "it has no window", "set `local_attention` to false"),
        (spec.qk_norm.is_some(), "it has no norm of queries and keys", "unset `qk_norm`"),
        (spec.query_factor.is_some(), "it has no positions", "unset `query_factor`"),
        (spec.sinks, "it has no sinks", "set `sinks` to false"),
        (spec.context_gate, "it has no gate on the context", "set `context_gate` to false"),
    ] {
        if given {
            return Err(ConfigError::WrongModule { module, fact, remedy });
        }
    }
    Ok(())
}
