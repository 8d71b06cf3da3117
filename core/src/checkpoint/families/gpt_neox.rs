//! GPT-NeoX and Pythia.

use crate::checkpoint::family::{DecoderPaths, Defaults, Family, Flag, LayerPaths, QkvPaths};
use crate::checkpoint::layout::QkvLayout;

pub(super) static FAMILY: Family = Family {
    model_types: &["gpt_neox"],
    reads: &[
        "attention_bias",
        "partial_rotary_factor",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "rotary_emb_base",
        "rotary_pct",
        "use_parallel_residual",
    ],
    harmless: &["attention_dropout", "classifier_dropout", "hidden_dropout", "is_decoder"],
    defaults: Defaults::SHARED,
    attention: |base, fields| {
        let bias = fields.flag("attention_bias", true);
        let share = fields.rope_number("partial_rotary_factor").or(fields.number(&["rotary_pct"])).unwrap_or(0.25);
        Ok(fields.rotary_halves(base.with_qkv_bias(bias).with_output_bias(bias), share)?.into())
    },
    layer: LayerPaths {
        layers: "layers",
        prefixes: &["gpt_neox."],
        norm: Some("input_layernorm"),
        qkv: QkvPaths::Fused("attention.query_key_value", QkvLayout::PerHead),
        output: "attention.dense",
        ..LayerPaths::SHARED
    },
    positions: None,
    decoder: Some(DecoderPaths {
        tokens: "embed_in",
        final_norm: "final_layer_norm",
        head: "embed_out",
        mlp_norm: Some("post_attention_layernorm"),
        up: "mlp.dense_h_to_4h",
        down: "mlp.dense_4h_to_h",
        parallel: Flag::Key("use_parallel_residual", true),
        ..DecoderPaths::SHARED
    }),
};
