//! OPT.

use crate::checkpoint::family::{DecoderPaths, Defaults, Family, Flag, LayerPaths, PositionTable, QkvPaths};

pub(super) static FAMILY: Family = Family {
    model_types: &["opt"],
    reads: &["do_layer_norm_before", "enable_bias", "word_embed_proj_dim"],
    harmless: &["activation_dropout", "attention_dropout", "dropout", "init_std", "layerdrop"],
    // The epsilon of OPT is part of its code.
    defaults: Defaults { epsilon_keys: &[], ..Defaults::SHARED },
    attention: |base, fields| {
        let bias = fields.flag("enable_bias", true);
        let pre_norm = fields.flag("do_layer_norm_before", true);
        Ok(base.with_qkv_bias(bias).with_output_bias(bias).with_pre_layer_norm(pre_norm).into())
    },
    layer: LayerPaths {
        layers: "layers",
        prefixes: &["model.decoder.", "decoder."],
        norm: Some("self_attn_layer_norm"),
        qkv: QkvPaths::projections("self_attn"),
        output: "self_attn.out_proj",
        ..LayerPaths::SHARED
    },
    positions: Some(PositionTable { path: "embed_positions", offset: 2 }),
    decoder: Some(DecoderPaths {
        tokens: "embed_tokens",
        final_norm: "final_layer_norm",
        mlp_norm: Some("final_layer_norm"),
        up: "fc1",
        down: "fc2",
        mlp_bias: Flag::Key("enable_bias", true),
        ..DecoderPaths::SHARED
    }),
};
