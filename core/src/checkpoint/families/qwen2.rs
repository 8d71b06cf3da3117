//! Qwen 2 and 2.5: LLaMA with biases of queries, keys and values, and a window in some layers.

use super::llama;
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::family::{Family, FamilyAttention};
use crate::checkpoint::layer_kinds::LayerKinds;
use crate::checkpoint::layer_types::LayerType;
use crate::checkpoint::only::Only;
use crate::checkpoint::rope::RopeKeys;
use crate::checkpoint::window;
use crate::config::DeepSpeedInferenceConfig;
use crate::error::ConfigError;
use crate::fields::Fields;

/// Key/value heads, if `num_key_value_heads` is not given; `null` is one for each query head.
pub(super) const KV_HEADS: usize = 32;
/// Keys that a query sees in a layer with a window, if `sliding_window` is not given.
const WINDOW: usize = 4096;
/// The first layer with a window, if `max_window_layers` is not given.
const FIRST_WINDOW: usize = 28;

pub(super) static FAMILY: Family = Family {
    title: "Qwen 2, Qwen 2.5",
    about: "biases of queries, keys and values; window in some layers",
    model_types: &["qwen2"],
    class: Class { name: "Qwen2Config", ..CLASS },
    reads: READS,
    rope: Some(RopeKeys::SHARED),
    only: ONLY,
    attention: |base, fields| {
        let mut config = base.with_qkv_bias(true).with_output_bias(false);
        config.num_kv = fields.positive_or_null("num_key_value_heads", Some(KV_HEADS))?;
        windowed(llama::attention(config, fields, FAMILY.read_rope(fields)?)?, fields)
    },
    layer: llama::LAYER,
    decoder: Some(llama::DECODER),
    ..Family::SHARED
};

/// What Qwen 3 shares.
pub(super) const CLASS: Class = Class {
    mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(22016)),
    vocab_size: Setting::new(&["vocab_size"], 151936),
    max_positions: Setting::new(&["max_position_embeddings"], Some(32768)),
    ..llama::CLASS
};

pub(super) const READS: &[&str] =
    &["head_dim", "layer_types", "max_window_layers", "num_key_value_heads", "sliding_window", "use_sliding_window"];

pub(super) const ONLY: &[Only] = &[Only::flag("use_mrope", false)];

/// The window of the layers from `max_window_layers` on, if `use_sliding_window` is true.
pub(super) fn windowed(config: DeepSpeedInferenceConfig, fields: &Fields<'_>) -> Result<FamilyAttention, ConfigError> {
    let used = used(fields, config.num_hidden_layers.unwrap_or(0))?;
    let window = window::size(fields, Some(WINDOW))?.filter(|_| used);
    let first = fields.size(&["max_window_layers"])?.unwrap_or(FIRST_WINDOW);
    let layers = window.map_or(LayerKinds::default(), |_| LayerKinds::since(first, 1, 0));
    window::listed(fields, config, window, layers)
}

/// `use_sliding_window`, which must be true if `layer_types` lists layers with a window.
pub(super) fn used(fields: &Fields<'_>, layers: usize) -> Result<bool, ConfigError> {
    const KEY: &str = "use_sliding_window";
    let used = fields.flag(&[KEY])?.unwrap_or(false);
    match LayerType::list(fields, layers)?.is_some_and(|types| types.contains(&LayerType::Sliding)) && !used {
        true => Err(fields.unsupported(KEY, "true, since `layer_types` lists layers with a window")),
        false => Ok(used),
    }
}
