//! Mistral: LLaMA with a window. With `layer_types`, which `transformers` reads as a Ministral, only some layers have it.

use super::llama;
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::family::{Family, FamilyAttention};
use crate::checkpoint::layer_types::LayerType;
use crate::checkpoint::local::LocalLayers;
use crate::checkpoint::only::Only;
use crate::checkpoint::rope::RopeKeys;
use crate::error::{ConfigError, Origin};

/// Key/value heads, if `num_key_value_heads` is not given; `null` is one for each query head.
const KV_HEADS: usize = 8;
/// Keys that a query sees, if `sliding_window` is not given; `null` is all.
const WINDOW: usize = 4096;

pub(super) static FAMILY: Family = Family {
    model_types: &["mistral"],
    class: Class {
        name: "MistralConfig",
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(14336)),
        max_positions: Setting::new(&["max_position_embeddings"], Some(131072)),
        ..llama::CLASS
    },
    reads: &["head_dim", "layer_types", "num_key_value_heads", "sliding_window"],
    rope: Some(RopeKeys::SHARED),
    only: &[Only::flag("attention_bias", false), Only::flag("mlp_bias", false), Only::flag("rope_interleaved", false)],
    harmless: llama::HARMLESS,
    attention: |base, fields| {
        let mut config = base.with_qkv_bias(false).with_output_bias(false);
        config.num_kv = fields.positive_or_null("num_key_value_heads", Some(KV_HEADS))?;
        let window = fields.positive_or_null("sliding_window", Some(WINDOW))?;
        let types = LayerType::list(fields, config.num_hidden_layers.unwrap_or(0))?;
        let local: LocalLayers = match (types, window) {
            (Some(types), None) if types.contains(&LayerType::Sliding) => {
                return Err(ConfigError::Missing { key: "sliding_window", origin: Origin::HuggingFace });
            }
            (Some(types), _) => types.into_iter().collect(),
            (None, Some(_)) => LocalLayers::All,
            (None, None) => LocalLayers::None,
        };
        let config = llama::attention(config, fields, FAMILY.read_rope(fields)?)?;
        Ok(FamilyAttention { config: config.with_window_size(window.unwrap_or(WINDOW)), local })
    },
    layer: llama::LAYER,
    buffers: &[],
    positions: None,
    decoder: Some(llama::DECODER),
};
