//! SmolLM 3: LLaMA whose every fourth layer has no positions.

use super::{llama, qwen2, rotary};
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::DecoderPaths;
use crate::checkpoint::family::{Family, FamilyAttention};
use crate::checkpoint::flag::Flag;
use crate::checkpoint::layer_kinds::LayerKinds;
use crate::checkpoint::layer_types::LayerType;
use crate::checkpoint::rope::RopeKeys;
use crate::checkpoint::window;
use crate::error::{ConfigError, Origin};
use crate::fields::Fields;

/// Key/value heads, if `num_key_value_heads` is not given; `null` is one for each query head.
const KV_HEADS: usize = 4;
/// Layers from one without positions to the next, if neither `no_rope_layers` nor `no_rope_layer_interval` is given.
const INTERVAL: usize = 4;

pub(super) static FAMILY: Family = Family {
    title: "SmolLM 3",
    about: "layers without positions",
    model_types: &["smollm3"],
    class: Class {
        name: "SmolLM3Config",
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(11008)),
        vocab_size: Setting::new(&["vocab_size"], 128256),
        max_positions: Setting::new(&["max_position_embeddings"], Some(32768)),
        tie_word_embeddings: true,
        ..llama::CLASS
    },
    reads: &[
        "attention_bias",
        "head_dim",
        "layer_types",
        "no_rope_layer_interval",
        "no_rope_layers",
        "num_key_value_heads",
        "sliding_window",
        "use_sliding_window",
    ],
    rope: Some(RopeKeys { theta: rotary::theta(2e6), ..RopeKeys::SHARED }),
    harmless: &["max_window_layers"],
    attention: |base, fields| {
        let bias = fields.flag(&["attention_bias"])?.unwrap_or(false);
        let mut config = base.with_qkv_bias(bias).with_output_bias(bias);
        config.num_kv = fields.positive_or_null("num_key_value_heads", Some(KV_HEADS))?;
        let rotary = llama::attention(config, fields, FAMILY.read_rope(fields)?)?;
        let layers = rotary.num_hidden_layers.unwrap_or(0);
        let (used, window) = (qwen2::used(fields, layers)?, window::size(fields, None)?);
        let window = window.filter(|_| used);
        // Kinds 0 and 1 have positions, 2 and 3 have none; 1 and 3 have a window.
        let bare = rotary.clone().with_rotary_dim(None);
        let local = |config: &crate::config::DeepSpeedInferenceConfig| {
            let config = config.clone().with_local_attention(window.is_some());
            window.map_or(config.clone(), |window| config.with_window_size(window))
        };
        let kinds = vec![rotary.clone(), local(&rotary), bare.clone(), local(&bare)];
        let without = if window.is_some() { 3 } else { 2 };
        let Some(types) = LayerType::list(fields, layers)? else {
            return Ok(FamilyAttention { kinds, layers: without_positions(fields, layers, [0, without])? });
        };
        if window.is_none() && types.contains(&LayerType::Sliding) {
            return Err(ConfigError::Missing { key: "sliding_window", origin: Origin::HuggingFace });
        }
        let positions = without_positions(fields, layers, [0, 2])?;
        let kind = |(layer, kind)| positions.of(layer) + usize::from(kind == LayerType::Sliding);
        let layers = LayerKinds::listed(types.into_iter().enumerate().map(kind));
        Ok(FamilyAttention { kinds, layers })
    },
    layer: llama::LAYER,
    decoder: Some(DecoderPaths { mlp_bias: Flag::Key("mlp_bias", false), ..llama::DECODER }),
    ..Family::SHARED
};

/// Layers from one without positions to the next.
pub(super) fn interval(fields: &Fields<'_>) -> Result<usize, ConfigError> {
    Ok(fields.positive(&["no_rope_layer_interval"])?.unwrap_or(INTERVAL))
}

/// The first of two kinds for layers with positions, the second for those without: 0 in the list `no_rope_layers`, or every
/// `no_rope_layer_interval`th layer.
pub(super) fn without_positions(
    fields: &Fields<'_>,
    layers: usize,
    [with, without]: [usize; 2],
) -> Result<LayerKinds, ConfigError> {
    const KEY: &str = "no_rope_layers";
    let interval = interval(fields)?;
    let Some(list) = fields.list(KEY)? else {
        return Ok(LayerKinds::every(interval, without, with));
    };
    let kinds = list.iter().map(|entry| match entry.as_u64() {
        Some(0) => Ok(without),
        Some(1) => Ok(with),
        _ => Err(fields.wrong(KEY, "a list with 0 for each layer without positions, and 1 for the others")),
    });
    let kinds = kinds.collect::<Result<Vec<_>, _>>()?;
    match kinds.len() == layers {
        true => Ok(LayerKinds::listed(kinds)),
        false => Err(ConfigError::LayerCount { key: KEY.into(), listed: kinds.len() as u64, layers }),
    }
}
