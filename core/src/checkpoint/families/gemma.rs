//! Gemma 1, and what the later ones share.

use super::llama;
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::{DecoderPaths, Factor};
use crate::checkpoint::family::Family;
use crate::checkpoint::layer_paths::LayerPaths;
use crate::checkpoint::only::Only;
use crate::checkpoint::rope::RopeKeys;
use crate::config::DeepSpeedInferenceConfig;
use crate::error::ConfigError;
use crate::fields::Fields;

/// Key/value heads, if `num_key_value_heads` is not given.
const KV_HEADS: usize = 16;
/// Features of a head, if `head_dim` is not given.
const HEAD_DIM: usize = 256;

pub(super) static FAMILY: Family = Family {
    title: "Gemma",
    about: "norm weights are stored minus 1, the embedding is multiplied by the root of its width",
    model_types: &["gemma"],
    class: Class {
        name: "GemmaConfig",
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(24576)),
        max_positions: Setting::new(&["max_position_embeddings"], Some(8192)),
        activation: Setting::new(&["hidden_act"], "gelu_pytorch_tanh"),
        // The first checkpoints say `gelu` and mean its approximation.
        replaced_activations: &[("gelu", "gelu_pytorch_tanh")],
        ..CLASS
    },
    reads: &["attention_bias", "head_dim", "num_key_value_heads"],
    rope: Some(RopeKeys::SHARED),
    only: &[
        Only::flag("use_bidirectional_attention", false),
        // The class does not read it.
        Only::text("hidden_activation", "gelu_pytorch_tanh"),
    ],
    attention: |base, fields| {
        let config = attention(base, fields, KV_HEADS)?;
        Ok(llama::positions(config, FAMILY.read_rope(fields)?)?.into())
    },
    layer: LAYER,
    decoder: Some(DECODER),
    ..Family::SHARED
};

pub(super) const CLASS: Class =
    Class { vocab_size: Setting::new(&["vocab_size"], 256000), tie_word_embeddings: true, ..llama::CLASS };

pub(super) const LAYER: LayerPaths = LayerPaths { norm_plus_one: true, ..llama::LAYER };

pub(super) const DECODER: DecoderPaths = DecoderPaths { embedding_factor: Factor::RootOfHidden, ..llama::DECODER };

/// Biases, heads and their size.
pub(super) fn attention(
    base: DeepSpeedInferenceConfig,
    fields: &Fields<'_>,
    kv_heads: usize,
) -> Result<DeepSpeedInferenceConfig, ConfigError> {
    let bias = fields.flag(&["attention_bias"])?.unwrap_or(false);
    let mut config = base.with_qkv_bias(bias).with_output_bias(bias);
    config.num_kv = Some(fields.positive(&["num_key_value_heads"])?.unwrap_or(kv_heads));
    llama::with_head_dim(config, fields, HEAD_DIM)
}
