//! BERT, an encoder.

use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::family::{Family, PositionTable};
use crate::checkpoint::layer_paths::{LayerPaths, QkvPaths};
use crate::checkpoint::only::Only;

pub(super) static FAMILY: Family = Family {
    title: "BERT",
    about: "post-norm, an encoder",
    model_types: &["bert"],
    class: Class {
        name: "BertConfig",
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(3072)),
        vocab_size: Setting::new(&["vocab_size"], 30522),
        max_positions: Setting::new(&["max_position_embeddings"], Some(512)),
        epsilon: Setting::new(&["layer_norm_eps"], 1e-12),
        ..Class::SHARED
    },
    reads: &["type_vocab_size"],
    rope: None,
    only: &[Only::text("position_embedding_type", "absolute"), Only::flag("is_decoder", false)],
    harmless: &[
        "directionality",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
    ],
    attention: |base, fields| {
        fields.positive(&["type_vocab_size"])?;
        Ok(base.with_pre_layer_norm(false).with_triangular_masking(false).into())
    },
    layer: LayerPaths {
        layers: "encoder.layer",
        prefixes: &["bert."],
        qkv: QkvPaths::Separate("attention.self", ["query", "key", "value"]),
        output: "attention.output.dense",
        ..LayerPaths::SHARED
    },
    buffers: &[],
    positions: Some(PositionTable { path: "embeddings.position_embeddings", offset: 0 }),
    decoder: None,
    ..Family::SHARED
};
