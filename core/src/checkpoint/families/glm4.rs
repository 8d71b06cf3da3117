//! GLM-4: norms before and after each branch, interleaved rotary over half of each head.

use super::{llama, rotary};
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::{DecoderPaths, Gate};
use crate::checkpoint::family::{Family, FamilyAttention};
use crate::checkpoint::rope::{Rope, RopeKeys};
use crate::config::{DeepSpeedInferenceConfig, NormType};
use crate::error::ConfigError;
use crate::fields::Fields;

/// Key/value heads, if `num_key_value_heads` is not given; `null` is one for each query head.
const KV_HEADS: usize = 2;
/// Features of a head, if `head_dim` is not given.
const HEAD_DIM: usize = 128;

pub(super) static FAMILY: Family = Family {
    title: "GLM-4 (0414)",
    about: "norms before and after each branch, interleaved partial rotary, gate and MLP in one matrix",
    model_types: &["glm4"],
    class: CLASS,
    reads: READS,
    rope: Some(RopeKeys { share: rotary::share(0.5), ..RopeKeys::SHARED }),
    attention: |base, fields| attention(base, fields, FAMILY.read_rope(fields)?),
    layer: llama::LAYER,
    decoder: Some(DecoderPaths {
        attention_output_norm: Some("post_self_attn_layernorm"),
        mlp_output_norm: Some("post_mlp_layernorm"),
        gate: Gate::WithUp,
        up: "mlp.gate_up_proj",
        ..llama::DECODER
    }),
    ..Family::SHARED
};

pub(super) const CLASS: Class = Class {
    name: "Glm4Config",
    mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(13696)),
    vocab_size: Setting::new(&["vocab_size"], 151552),
    max_positions: Setting::new(&["max_position_embeddings"], Some(131072)),
    epsilon: Setting::new(&["rms_norm_eps"], 1.5625e-7),
    ..llama::CLASS
};

pub(super) const READS: &[&str] = &["attention_bias", "head_dim", "num_key_value_heads"];

/// Biases, heads and positions.
pub(super) fn attention(
    base: DeepSpeedInferenceConfig,
    fields: &Fields<'_>,
    rope: Rope,
) -> Result<FamilyAttention, ConfigError> {
    let bias = fields.flag(&["attention_bias"])?.unwrap_or(true);
    let base = base.with_norm_type(NormType::RMSNorm);
    let mut config = base.with_qkv_bias(bias).with_output_bias(false);
    config.num_kv = fields.positive_or_null("num_key_value_heads", Some(KV_HEADS))?;
    let config = llama::with_head_dim(config, fields, HEAD_DIM)?;
    Ok(rotary::interleaved(rope.halves(config)).into())
}
