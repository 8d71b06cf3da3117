//! OPT.

use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::DecoderPaths;
use crate::checkpoint::family::{Family, PositionTable};
use crate::checkpoint::flag::Flag;
use crate::checkpoint::layer_paths::{LayerPaths, QkvPaths};
use crate::checkpoint::only::Only;

pub(super) static FAMILY: Family = Family {
    title: "OPT",
    about: "learned positions",
    model_types: &["opt"],
    class: Class {
        name: "OPTConfig",
        mlp_size: Setting::new(&["ffn_dim"], MlpSize::Fixed(3072)),
        vocab_size: Setting::new(&["vocab_size"], 50272),
        max_positions: Setting::new(&["max_position_embeddings"], Some(2048)),
        // The epsilon of OPT is part of its code.
        epsilon: Setting::new(&[], 1e-5),
        activation: Setting::new(&["activation_function"], "relu"),
        ..Class::SHARED
    },
    reads: &["do_layer_norm_before", "enable_bias", "word_embed_proj_dim"],
    rope: None,
    only: &[
        Only::flag("layer_norm_elementwise_affine", true),
        Only::flag("learned_embeddings", true),
        Only::flag("scale_embeddings", false),
    ],
    // The prefix is text for the tokenizer, which adds it itself.
    harmless: &["prefix"],
    attention: |base, fields| {
        let bias = fields.flag(&["enable_bias"])?.unwrap_or(true);
        let pre_norm = fields.flag(&["do_layer_norm_before"])?.unwrap_or(true);
        fields.positive(&["word_embed_proj_dim"])?;
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
    buffers: &[".decoder.version"],
    positions: Some(PositionTable { path: "embed_positions", offset: 2 }),
    decoder: Some(DecoderPaths {
        tokens: "embed_tokens",
        final_norm: "final_layer_norm",
        mlp_norm: Some("final_layer_norm"),
        up: "fc1",
        down: "fc2",
        mlp_bias: Flag::Key("enable_bias", true),
        only: &[Only::flag("do_layer_norm_before", true), Only::flag("_remove_final_layer_norm", false)],
        ..DecoderPaths::SHARED
    }),
    ..Family::SHARED
};
