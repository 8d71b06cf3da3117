//! OLMo 2, and what OLMo 3 shares: a norm over all heads of queries and of keys, and norms after the branches only.

use super::llama;
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::DecoderPaths;
use crate::checkpoint::family::Family;
use crate::checkpoint::layer_paths::{LayerPaths, QkNormPaths};
use crate::checkpoint::rope::RopeKeys;
use crate::config::{DeepSpeedInferenceConfig, NormType};
use crate::error::ConfigError;
use crate::fields::Fields;
use crate::qk_norm::{QkNorm, QkNormKind, QkNormWeights};

pub(super) static FAMILY: Family = Family {
    title: "OLMo 2",
    about: "norm over all heads of queries and keys, norms after the branches only",
    model_types: &["olmo2"],
    class: Class { name: "Olmo2Config", ..CLASS },
    reads: &["attention_bias", "head_dim", "num_key_value_heads"],
    rope: Some(RopeKeys::SHARED),
    attention: |base, fields| Ok(llama::positions(attention(base, fields)?, FAMILY.read_rope(fields)?)?.into()),
    layer: LAYER,
    decoder: Some(DECODER),
    ..Family::SHARED
};

pub(super) const CLASS: Class = Class {
    mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(11008)),
    vocab_size: Setting::new(&["vocab_size"], 50304),
    max_positions: Setting::new(&["max_position_embeddings"], Some(2048)),
    epsilon: Setting::new(&["rms_norm_eps"], 1e-5),
    ..llama::CLASS
};

pub(super) const LAYER: LayerPaths = LayerPaths {
    norm: None,
    qk_norm: Some(QkNormPaths::Whole(["self_attn.q_norm", "self_attn.k_norm"])),
    ..llama::LAYER
};

pub(super) const DECODER: DecoderPaths = DecoderPaths {
    attention_output_norm: Some("post_attention_layernorm"),
    mlp_norm: None,
    mlp_output_norm: Some("post_feedforward_layernorm"),
    ..llama::DECODER
};

/// Biases, heads and norms.
pub(super) fn attention(
    base: DeepSpeedInferenceConfig,
    fields: &Fields<'_>,
) -> Result<DeepSpeedInferenceConfig, ConfigError> {
    let bias = fields.flag(&["attention_bias"])?.unwrap_or(false);
    let norm = QkNorm::new(QkNormKind::RmsOfAllHeads, QkNormWeights::PerHead, base.layer_norm_eps);
    let base = base.with_norm_type(NormType::RMSNorm).with_pre_layer_norm(false);
    let mut config = base.with_qkv_bias(bias).with_output_bias(bias).with_qk_norm(Some(norm));
    config.num_kv = fields.positive(&["num_key_value_heads"])?;
    config.head_dim = fields.positive(&["head_dim"])?;
    Ok(config)
}
