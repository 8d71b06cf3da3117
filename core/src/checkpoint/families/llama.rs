//! LLaMA, and what its many relatives share with it.

use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::{DecoderPaths, Gate};
use crate::checkpoint::family::Family;
use crate::checkpoint::flag::Flag;
use crate::checkpoint::layer_paths::{LayerPaths, QkvPaths};
use crate::checkpoint::only::Only;
use crate::checkpoint::rope::{Rope, RopeKeys};
use crate::config::{DeepSpeedInferenceConfig, NormType};
use crate::error::ConfigError;
use crate::fields::Fields;

pub(super) static FAMILY: Family = Family {
    title: "LLaMA, SmolLM 2",
    about: "rotary, grouped heads, gated MLP",
    model_types: &["llama"],
    class: Class {
        name: "LlamaConfig",
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(11008)),
        max_positions: Setting::new(&["max_position_embeddings"], Some(2048)),
        ..CLASS
    },
    reads: &["attention_bias", "head_dim", "num_key_value_heads"],
    rope: Some(RopeKeys::SHARED),
    only: ONLY,
    harmless: HARMLESS,
    attention: |base, fields| {
        let bias = fields.flag(&["attention_bias"])?.unwrap_or(false);
        let mut config = base.with_qkv_bias(bias).with_output_bias(bias);
        config.num_kv = fields.positive(&["num_key_value_heads"])?;
        Ok(attention(config, fields, FAMILY.read_rope(fields)?)?.into())
    },
    layer: LAYER,
    buffers: &[],
    positions: None,
    decoder: Some(DecoderPaths { mlp_bias: Flag::Key("mlp_bias", false), ..DECODER }),
    ..Family::SHARED
};

pub(super) const CLASS: Class = Class {
    vocab_size: Setting::new(&["vocab_size"], 32000),
    epsilon: Setting::new(&["rms_norm_eps"], 1e-6),
    activation: Setting::new(&["hidden_act"], "silu"),
    tie_word_embeddings: false,
    ..Class::SHARED
};

pub(super) const ONLY: &[Only] = &[
    Only::flag("rope_interleaved", false),
    Only::flag("use_sliding_window", false),
    // Falcon 3 says it next to `hidden_act`.
    Only::text("activation", "swiglu"),
];

pub(super) const HARMLESS: &[&str] = &["is_llama_config", "max_sequence_length"];

/// Norm, size of a head and rotary positions.
pub(super) fn attention(
    base: DeepSpeedInferenceConfig,
    fields: &Fields<'_>,
    rope: Rope,
) -> Result<DeepSpeedInferenceConfig, ConfigError> {
    let config = DeepSpeedInferenceConfig { head_dim: fields.positive(&["head_dim"])?, ..base };
    positions(config, rope)
}

/// Norm and rotary positions of whole heads.
pub(super) fn positions(config: DeepSpeedInferenceConfig, rope: Rope) -> Result<DeepSpeedInferenceConfig, ConfigError> {
    Ok(rope.whole()?.halves(config.with_norm_type(NormType::RMSNorm)))
}

/// The size of a head, `default` if `head_dim` is absent.
pub(super) fn with_head_dim(
    config: DeepSpeedInferenceConfig,
    fields: &Fields<'_>,
    default: usize,
) -> Result<DeepSpeedInferenceConfig, ConfigError> {
    Ok(config.with_head_dim(Some(fields.positive(&["head_dim"])?.unwrap_or(default))))
}

pub(super) const LAYER: LayerPaths = LayerPaths {
    layers: "layers",
    prefixes: &["model."],
    norm: Some("input_layernorm"),
    qkv: QkvPaths::projections("self_attn"),
    output: "self_attn.o_proj",
    ..LayerPaths::SHARED
};

pub(super) const DECODER: DecoderPaths = DecoderPaths {
    tokens: "embed_tokens",
    final_norm: "norm",
    mlp_norm: Some("post_attention_layernorm"),
    gate: Gate::At("mlp.gate_proj"),
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    mlp_bias: Flag::Fixed(false),
    ..DecoderPaths::SHARED
};
