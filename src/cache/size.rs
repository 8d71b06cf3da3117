//! Sizes and element types of a cache.

use burn::tensor::{DType, backend::Backend};

use super::stored::Stored;
use crate::element::{CacheTypes, OfBackend, cache_dtypes, dtype, element_type};
use crate::error::{AttentionError, ConfigError};
use crate::spec::{AttentionSpec, KvSource};

/// The size of one token of one layer in a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TokenSize {
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Features of a value that is the first features of its key, and takes no memory of its own.
    pub(super) latent: Option<usize>,
    /// Element types of keys and values.
    pub(super) dtypes: [DType; 2],
}

impl TokenSize {
    fn new<B: Backend>(spec: &AttentionSpec, device: &B::Device) -> Result<Self, ConfigError> {
        let activations = spec.dtype.of_backend::<B>(device)?;
        cache_dtypes::<B>(spec.kv_cache_dtype, activations, device)?;
        Ok(Self::of_layer(spec, activations))
    }

    /// The size for a layer whose activations have elements of `activations`.
    pub(super) fn of_layer(spec: &AttentionSpec, activations: DType) -> Self {
        let types = spec.kv_cache_dtype;
        let dtypes = [types.key, types.value].map(|given| given.map_or(activations, dtype));
        let latent = spec.latent.map(|sizes| sizes.kv_lora_rank);
        Self { kv_heads: spec.kv_heads(), head_dim: spec.head_dim, latent, dtypes }
    }

    pub(super) fn types(&self) -> CacheTypes {
        let [key, value] = self.dtypes.map(element_type);
        CacheTypes { key, value }
    }

    /// Bytes of the key and the value of one token in one layer.
    pub(super) fn bytes<B: Backend>(&self) -> usize {
        let stored = if self.latent.is_some() { &self.dtypes[..1] } else { &self.dtypes };
        self.kv_heads * stored.iter().map(|dtype| Stored::<B>::token_bytes(self.head_dim, *dtype)).sum::<usize>()
    }

    /// An error unless a layer of this specification, with activations of `activations`, can use a cache of this size.
    pub(super) fn check(&self, spec: &AttentionSpec, activations: DType) -> Result<(), AttentionError> {
        let layer = Self::of_layer(spec, activations);
        let (own, needed) = (self.types(), layer.types());
        if self.kv_heads != layer.kv_heads {
            return Err(AttentionError::cache_mismatch("key/value heads:", layer.kv_heads, self.kv_heads));
        }
        if self.head_dim != layer.head_dim {
            return Err(AttentionError::cache_mismatch("a head size of", layer.head_dim, self.head_dim));
        }
        if self.latent != layer.latent {
            let values = |latent: Option<usize>| match latent {
                Some(features) => format!("the first {features} features of the keys"),
                None => "stored apart from the keys".into(),
            };
            return Err(AttentionError::cache_mismatch("values that are", values(layer.latent), values(self.latent)));
        }
        if own.key != needed.key {
            return Err(AttentionError::cache_mismatch("keys of type", needed.key, own.key));
        }
        if own.value != needed.value {
            return Err(AttentionError::cache_mismatch("values of type", needed.value, own.value));
        }
        Ok(())
    }
}

/// The sizes of all layers of a cache.
pub(super) struct CacheSize {
    /// Those of the layers that have keys and values of their own.
    pub(super) stores: Vec<TokenSize>,
    /// For each layer, which of them holds its keys and values.
    pub(super) layers: Vec<usize>,
    /// Tokens that a row can hold.
    pub(super) capacity: usize,
}

impl CacheSize {
    pub(super) fn new<B: Backend>(specs: &[AttentionSpec], device: &B::Device) -> Result<Self, ConfigError> {
        let capacity = specs.first().map_or(0, |spec| spec.max_out_tokens);
        if let Some(layer) = specs.iter().position(|spec| spec.max_out_tokens != capacity) {
            return Err(ConfigError::LayerCapacity { layer, capacity: specs[layer].max_out_tokens, first: capacity });
        }
        let (mut stores, mut layers) = (Vec::<TokenSize>::new(), Vec::new());
        for (layer, spec) in specs.iter().enumerate() {
            let size = TokenSize::new::<B>(spec, device)?;
            let KvSource::Layer(source) = spec.kv_source else {
                layers.push(stores.len());
                stores.push(size);
                continue;
            };
            let shared = |problem| ConfigError::SharedLayer { layer, keys_of: source, problem };
            let own = specs[..layer].get(source).ok_or_else(|| shared("is not a layer before it"))?;
            if !own.kv_source.is_own() {
                return Err(shared("has none of its own"));
            }
            if stores[layers[source]] != size {
                return Err(shared("has other key/value heads, another head size or other element types"));
            }
            layers.push(layers[source]);
        }
        Ok(Self { stores, layers, capacity })
    }

    /// Bytes of the keys and values of all layers together.
    pub(super) fn bytes<B: Backend>(&self, batch: usize) -> usize {
        self.stores.iter().map(TokenSize::bytes::<B>).sum::<usize>() * batch * self.capacity
    }
}
