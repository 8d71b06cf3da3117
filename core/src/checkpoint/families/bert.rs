//! BERT, an encoder.

use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::encoder::{BlockNorms, EncoderInput, EncoderPaths, PositionIds, TokenPaths};
use crate::checkpoint::family::{Family, PositionTable};
use crate::checkpoint::layer_paths::{LayerPaths, QkvPaths};
use crate::checkpoint::only::Only;

pub(super) static FAMILY: Family = Family {
    title: "BERT",
    about: "post-norm, an encoder",
    model_types: &["bert"],
    class: CLASS,
    only: ONLY,
    harmless: &[
        "directionality",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
    ],
    attention: |base, _| Ok(base.with_pre_layer_norm(false).with_triangular_masking(false).into()),
    layer: LayerPaths { prefixes: &["bert."], ..LAYER },
    positions: Some(POSITIONS),
    encoder: Some(ENCODER),
    ..Family::SHARED
};

pub(super) const CLASS: Class = Class {
    name: "BertConfig",
    mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(3072)),
    vocab_size: Setting::new(&["vocab_size"], 30522),
    max_positions: Setting::new(&["max_position_embeddings"], Some(512)),
    epsilon: Setting::new(&["layer_norm_eps"], 1e-12),
    ..Class::SHARED
};

pub(super) const ONLY: &[Only] = &[Only::text("position_embedding_type", "absolute"), Only::flag("is_decoder", false)];

pub(super) const LAYER: LayerPaths = LayerPaths {
    layers: "encoder.layer",
    qkv: QkvPaths::Separate("attention.self", ["query", "key", "value"]),
    output: "attention.output.dense",
    ..LayerPaths::SHARED
};

pub(super) const POSITIONS: PositionTable = PositionTable { path: "embeddings.position_embeddings", offset: 0 };

pub(super) const ENCODER: EncoderPaths = EncoderPaths {
    input: EncoderInput::Tokens(TOKENS),
    input_norm: Some("embeddings.LayerNorm"),
    norms: BlockNorms::After { attention: "attention.output.LayerNorm", mlp: "output.LayerNorm" },
    up: "intermediate.dense",
    down: "output.dense",
    unused: &["pooler."],
    heads: &["classifier.", "cls.", "qa_outputs."],
    ..EncoderPaths::SHARED
};

pub(super) const TOKENS: TokenPaths = TokenPaths {
    words: "embeddings.word_embeddings",
    segments: Some("embeddings.token_type_embeddings"),
    position_ids: PositionIds::Slots,
};
