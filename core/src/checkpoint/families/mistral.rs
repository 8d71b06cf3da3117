//! Mistral: LLaMA with a window. With `layer_types`, which `transformers` reads as a Ministral, only some layers have it.

use super::llama;
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::family::{Family, FamilyAttention};
use crate::checkpoint::layer_kinds::LayerKinds;
use crate::checkpoint::only::Only;
use crate::checkpoint::rope::RopeKeys;
use crate::checkpoint::window;
use crate::config::DeepSpeedInferenceConfig;
use crate::error::ConfigError;
use crate::fields::Fields;

/// Key/value heads, if `num_key_value_heads` is not given; `null` is one for each query head.
const KV_HEADS: usize = 8;
/// Keys that a query sees, if `sliding_window` is not given; `null` is all.
const WINDOW: usize = 4096;

pub(super) static FAMILY: Family = Family {
    title: "Mistral",
    about: "LLaMA with a window",
    model_types: &["mistral"],
    class: Class { name: "MistralConfig", ..CLASS },
    reads: READS,
    rope: Some(RopeKeys::SHARED),
    only: ONLY,
    harmless: llama::HARMLESS,
    attention: |base, fields| attention(base, fields, &FAMILY),
    layer: llama::LAYER,
    decoder: Some(llama::DECODER),
    ..Family::SHARED
};

pub(super) const CLASS: Class = Class {
    mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(14336)),
    max_positions: Setting::new(&["max_position_embeddings"], Some(131072)),
    ..llama::CLASS
};

pub(super) const READS: &[&str] = &["head_dim", "layer_types", "num_key_value_heads", "sliding_window"];

pub(super) const ONLY: &[Only] =
    &[Only::flag("attention_bias", false), Only::flag("mlp_bias", false), Only::flag("rope_interleaved", false)];

/// The attention of Mistral and Ministral.
pub(super) fn attention(
    base: DeepSpeedInferenceConfig,
    fields: &Fields<'_>,
    family: &Family,
) -> Result<FamilyAttention, ConfigError> {
    let mut config = base.with_qkv_bias(false).with_output_bias(false);
    config.num_kv = fields.positive_or_null("num_key_value_heads", Some(KV_HEADS))?;
    let window = window::size(fields, Some(WINDOW))?;
    let layers = LayerKinds::all(usize::from(window.is_some()));
    let config = llama::attention(config, fields, family.read_rope(fields)?)?;
    window::listed(fields, config, window, layers)
}
