//! BLOOM.

use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::DecoderPaths;
use crate::checkpoint::family::Family;
use crate::checkpoint::layer_paths::{LayerPaths, QkvPaths};
use crate::checkpoint::layout::QkvLayout;
use crate::checkpoint::only::Only;

pub(super) static FAMILY: Family = Family {
    title: "BLOOM",
    about: "ALiBi",
    model_types: &["bloom"],
    class: Class {
        name: "BloomConfig",
        hidden_size: &["hidden_size", "n_embed"],
        heads: &["n_head", "num_attention_heads"],
        layers: &["n_layer", "num_hidden_layers"],
        mlp_size: Setting::new(&[], MlpSize::TimesHidden(4)),
        vocab_size: Setting::new(&["vocab_size"], 250880),
        // The class does not read it: positions have no limit.
        max_positions: Setting::new(&["seq_length"], None),
        epsilon: Setting::new(&["layer_norm_epsilon"], 1e-5),
        activation: Setting::new(&[], "gelu_new"),
        ..Class::SHARED
    },
    reads: &[],
    rope: None,
    only: &[Only::nothing("n_inner", "the MLP has four times the features of the model")],
    harmless: &[
        "attention_softmax_in_fp32",
        "bias_dropout_fusion",
        "masked_softmax_fusion",
        "offset_alibi",
        "skip_bias_add",
        "skip_bias_add_qkv",
        "slow_but_exact",
    ],
    attention: |base, _| Ok(base.with_bigscience_bloom(true).into()),
    layer: LayerPaths {
        layers: "h",
        prefixes: &["transformer."],
        norm: Some("input_layernorm"),
        qkv: QkvPaths::Fused("self_attention.query_key_value", QkvLayout::PerHead),
        output: "self_attention.dense",
        ..LayerPaths::SHARED
    },
    buffers: &[],
    positions: None,
    decoder: Some(DecoderPaths {
        tokens: "word_embeddings",
        embedding_norm: Some("word_embeddings_layernorm"),
        final_norm: "ln_f",
        mlp_norm: Some("post_attention_layernorm"),
        up: "mlp.dense_h_to_4h",
        down: "mlp.dense_4h_to_h",
        only: &[Only::flag("apply_residual_connection_post_layernorm", false)],
        ..DecoderPaths::SHARED
    }),
    ..Family::SHARED
};
