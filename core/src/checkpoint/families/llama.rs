//! LLaMA, and what Mistral shares with it.

use crate::checkpoint::family::{DecoderPaths, Defaults, Family, Flag, LayerPaths, QkvPaths};
use crate::checkpoint::fields::Fields;
use crate::config::{DeepSpeedInferenceConfig, NormType};
use crate::error::ConfigError;

pub(super) static FAMILY: Family = Family {
    model_types: &["llama"],
    reads: &[
        "attention_bias",
        "head_dim",
        "mlp_bias",
        "num_key_value_heads",
        "partial_rotary_factor",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "rotary_emb_base",
    ],
    harmless: HARMLESS,
    defaults: DEFAULTS,
    attention: |base, fields| Ok(attention(base, fields)?.into()),
    layer: LAYER,
    positions: None,
    decoder: Some(DecoderPaths { mlp_bias: Flag::Key("mlp_bias", false), ..DECODER }),
};

pub(super) const HARMLESS: &[&str] = &["attention_dropout", "pretraining_tp"];

pub(super) const DEFAULTS: Defaults = Defaults { tie_word_embeddings: false, ..Defaults::SHARED };

pub(super) fn attention(
    base: DeepSpeedInferenceConfig,
    fields: &Fields<'_>,
) -> Result<DeepSpeedInferenceConfig, ConfigError> {
    let bias = fields.flag("attention_bias", false);
    let mut config = base.with_norm_type(NormType::RMSNorm).with_qkv_bias(bias).with_output_bias(bias);
    config.num_kv = fields.size(&["num_key_value_heads"]);
    config.head_dim = fields.size(&["head_dim"]);
    let share = fields.rope_number("partial_rotary_factor").unwrap_or(1.0);
    fields.rotary_halves(config, share)
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
    gate: Some("mlp.gate_proj"),
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    mlp_bias: Flag::Fixed(false),
    ..DecoderPaths::SHARED
};
