//! MPT: ALiBi, LayerNorm without bias, and no biases at all.

use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::DecoderPaths;
use crate::checkpoint::family::Family;
use crate::checkpoint::flag::Flag;
use crate::checkpoint::known;
use crate::checkpoint::layer_paths::{LayerPaths, QkvPaths};
use crate::checkpoint::layout::QkvLayout;
use crate::checkpoint::only::Only;
use crate::error::ConfigError;
use crate::fields::Fields;

pub(super) static FAMILY: Family = Family {
    title: "MPT",
    about: "ALiBi, LayerNorm without bias, no biases",
    model_types: &["mpt"],
    class: Class {
        name: "MptConfig",
        hidden_size: &["d_model", "hidden_size"],
        heads: &["n_heads", "num_attention_heads"],
        layers: &["n_layers", "num_hidden_layers"],
        // The class does not read `expansion_ratio`.
        mlp_size: Setting::new(&[], MlpSize::TimesHidden(4)),
        vocab_size: Setting::new(&["vocab_size"], 50368),
        max_positions: Setting::new(&["max_seq_len"], Some(2048)),
        epsilon: Setting::new(&["layer_norm_epsilon"], 1e-5),
        activation: Setting::new(&[], "gelu"),
        ..Class::SHARED
    },
    reads: &["attn_config"],
    only: &[
        Only::flag("no_bias", true),
        Only::nothing("logit_scale", "the class does not scale logits"),
        Only::number("embedding_fraction", 1.0),
        Only::text("norm_type", "low_precision_layernorm"),
    ],
    harmless: &[
        "emb_pdrop",
        "expansion_ratio",
        "init_config",
        "init_device",
        // With ALiBi there are no learned positions, whatever it says.
        "learned_pos_emb",
        "tokenizer_name",
        "verbose",
    ],
    attention: |base, fields| {
        let base = base.with_qkv_bias(false).with_output_bias(false).with_norm_bias(false);
        let config = base.with_bigscience_bloom(true);
        let (scale, clip) = scale_and_clip(fields)?;
        Ok(config.with_score_factor(scale).with_qkv_clip(clip).into())
    },
    layer: LayerPaths {
        layers: "blocks",
        prefixes: &["transformer."],
        norm: Some("norm_1"),
        qkv: QkvPaths::Fused("attn.Wqkv", QkvLayout::Concat),
        output: "attn.out_proj",
        ..LayerPaths::SHARED
    },
    decoder: Some(DecoderPaths {
        tokens: "wte",
        final_norm: "norm_f",
        mlp_norm: Some("norm_2"),
        up: "ffn.up_proj",
        down: "ffn.down_proj",
        mlp_bias: Flag::Fixed(false),
        ..DecoderPaths::SHARED
    }),
    ..Family::SHARED
};

/// `clip_qkv`; the class takes 0 for none.
fn clip(record: &Fields<'_>) -> Result<Option<f64>, ConfigError> {
    match record.number(&["clip_qkv"])? {
        Some(0.0) => Ok(None),
        _ => record.above_zero(&["clip_qkv"]),
    }
}

/// What the record `attn_config` must say: the class computes this and nothing else.
const ATTENTION: &[Only] = &[
    Only::flag("alibi", true),
    Only::flag("attn_uses_sequence_id", false),
    Only::flag("is_encoder_decoder", false),
    Only::flag("prefix_lm", false),
    Only::flag("qk_ln", false),
    Only::number("alibi_bias_max", 8.0),
    Only::text("attn_type", "multihead_attention"),
];

/// `attn_config.softmax_scale` and `attn_config.clip_qkv`, after a check of the whole record.
fn scale_and_clip(fields: &Fields<'_>) -> Result<(Option<f64>, Option<f64>), ConfigError> {
    let Some(record) = fields.record("attn_config")? else { return Ok((None, None)) };
    let own = ["attn_impl", "attn_pdrop", "clip_qkv", "dtype", "model_type", "softmax_scale"];
    let harmless = known::HARMLESS.iter().copied().flatten().copied();
    let known: Vec<&str> = own.into_iter().chain(harmless).chain(ATTENTION.iter().map(|only| only.key)).collect();
    record.check_keys(&known, FAMILY.class.name)?;
    ATTENTION.iter().try_for_each(|only| only.check(&record))?;
    Ok((record.above_zero(&["softmax_scale"])?, clip(&record)?))
}
