//! Cohere's Command R, and what the second version shares.

use super::{llama, rotary};
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::{DecoderPaths, Factor};
use crate::checkpoint::family::Family;
use crate::checkpoint::flag::Flag;
use crate::checkpoint::layer_paths::{LayerPaths, QkNormPaths};
use crate::checkpoint::rope::{Rope, RopeKeys};
use crate::config::DeepSpeedInferenceConfig;
use crate::error::ConfigError;
use crate::fields::Fields;
use crate::qk_norm::{QkNorm, QkNormKind, QkNormWeights};

pub(super) static FAMILY: Family = Family {
    title: "Cohere (Command R)",
    about: "LayerNorm without bias, parallel residual with one norm, interleaved rotary, factor of the logits; \
            in some a norm of queries and keys",
    model_types: &["cohere"],
    class: Class { name: "CohereConfig", ..CLASS },
    reads: &["attention_bias", "head_dim", "num_key_value_heads", "use_qk_norm"],
    // The tokenizer's.
    harmless: &["model_max_length"],
    rope: Some(RopeKeys { theta: rotary::theta(5e5), ..RopeKeys::SHARED }),
    attention: |base, fields| {
        let norm = QkNorm::new(QkNormKind::LayerNorm, QkNormWeights::PerHead, base.layer_norm_eps);
        let config = attention(base, fields, FAMILY.read_rope(fields)?)?;
        let normalised = fields.flag(&["use_qk_norm"])?.unwrap_or(false);
        Ok(config.with_qk_norm(normalised.then_some(norm)).into())
    },
    layer: LayerPaths { qk_norm: Some(QkNormPaths::Whole(["self_attn.q_norm", "self_attn.k_norm"])), ..llama::LAYER },
    decoder: Some(DECODER),
    ..Family::SHARED
};

pub(super) const CLASS: Class = Class {
    mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(22528)),
    vocab_size: Setting::new(&["vocab_size"], 256000),
    max_positions: Setting::new(&["max_position_embeddings"], Some(8192)),
    activation: Setting::new(&["hidden_act"], "silu"),
    ..Class::SHARED
};

pub(super) const DECODER: DecoderPaths = DecoderPaths {
    mlp_norm: None,
    parallel: Flag::Fixed(true),
    logit_factor: Factor::Key("logit_scale", 0.0625),
    ..llama::DECODER
};

/// Biases, heads and interleaved positions.
pub(super) fn attention(
    base: DeepSpeedInferenceConfig,
    fields: &Fields<'_>,
    rope: Rope,
) -> Result<DeepSpeedInferenceConfig, ConfigError> {
    let bias = fields.flag(&["attention_bias"])?.unwrap_or(false);
    let mut config = base.with_qkv_bias(bias).with_output_bias(bias).with_norm_bias(false);
    config.num_kv = fields.positive(&["num_key_value_heads"])?;
    config.head_dim = fields.positive(&["head_dim"])?;
    Ok(rotary::interleaved(rope.whole()?.halves(config)))
}
