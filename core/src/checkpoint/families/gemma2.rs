//! Gemma 2: norms before and after each branch, softcaps, and a window in every other layer.

use super::{gemma, llama};
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::DecoderPaths;
use crate::checkpoint::family::Family;
use crate::checkpoint::layer_kinds::LayerKinds;
use crate::checkpoint::only::Only;
use crate::checkpoint::rope::RopeKeys;
use crate::checkpoint::window;
use crate::config::DeepSpeedInferenceConfig;
use crate::error::ConfigError;
use crate::fields::Fields;

/// Key/value heads, if `num_key_value_heads` is not given.
const KV_HEADS: usize = 4;
/// Keys that a query sees in a layer with a window, if `sliding_window` is not given.
pub(super) const WINDOW: usize = 4096;
/// The scores are divided by its root, if `query_pre_attn_scalar` is not given.
const QUERY_SCALAR: f64 = 256.0;

pub(super) static FAMILY: Family = Family {
    title: "Gemma 2",
    about: "norms before and after each branch, softcaps of scores and logits, score factor, window in every other layer",
    model_types: &["gemma2"],
    class: Class {
        name: "Gemma2Config",
        max_positions: Setting::new(&["max_position_embeddings"], Some(8192)),
        ..CLASS
    },
    reads: &[
        "attention_bias",
        "attn_logit_softcapping",
        "head_dim",
        "layer_types",
        "num_key_value_heads",
        "query_pre_attn_scalar",
        "sliding_window",
        "sliding_window_size",
    ],
    rope: Some(RopeKeys::SHARED),
    only: ONLY,
    attention: |base, fields| {
        let config = attention(base, fields, Some(50.0))?;
        let config = llama::positions(config, FAMILY.read_rope(fields)?)?;
        let window = window::size(fields, Some(WINDOW))?;
        // Early files state the window twice, and the class reads one of them.
        if fields.positive(&["sliding_window_size"])?.is_some_and(|size| Some(size) != window) {
            return Err(fields.unsupported("sliding_window_size", "the value of `sliding_window`"));
        }
        window::listed(fields, config, window, LayerKinds::every(2, 0, 1))
    },
    layer: gemma::LAYER,
    decoder: Some(DecoderPaths { logit_softcap: Some(("final_logit_softcapping", Some(30.0))), ..DECODER }),
    ..Family::SHARED
};

pub(super) const CLASS: Class = Class {
    mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(9216)),
    activation: Setting::new(&["hidden_activation"], "gelu_pytorch_tanh"),
    ..gemma::CLASS
};

pub(super) const ONLY: &[Only] = &[
    Only::flag("use_bidirectional_attention", false),
    // The class does not read it.
    Only::text("hidden_act", "gelu_pytorch_tanh"),
];

pub(super) const DECODER: DecoderPaths = DecoderPaths {
    attention_output_norm: Some("post_attention_layernorm"),
    mlp_norm: Some("pre_feedforward_layernorm"),
    mlp_output_norm: Some("post_feedforward_layernorm"),
    ..gemma::DECODER
};

/// Biases, heads, score factor and softcap. `softcap` is what absence of `attn_logit_softcapping` means.
pub(super) fn attention(
    base: DeepSpeedInferenceConfig,
    fields: &Fields<'_>,
    softcap: Option<f64>,
) -> Result<DeepSpeedInferenceConfig, ConfigError> {
    let scalar = fields.above_zero(&["query_pre_attn_scalar"])?.unwrap_or(QUERY_SCALAR);
    let softcap = fields.above_zero_or_null("attn_logit_softcapping", softcap)?;
    let config = gemma::attention(base, fields, KV_HEADS)?;
    Ok(config.with_score_factor(Some(scalar.powf(-0.5))).with_softcap(softcap))
}
