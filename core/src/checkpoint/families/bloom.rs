//! BLOOM.

use crate::checkpoint::family::{DecoderPaths, Defaults, Family, LayerPaths, QkvPaths};
use crate::checkpoint::layout::QkvLayout;

pub(super) static FAMILY: Family = Family {
    model_types: &["bloom"],
    reads: &["apply_residual_connection_post_layernorm"],
    harmless: &[
        "attention_dropout",
        "attention_softmax_in_fp32",
        "bias_dropout_fusion",
        "hidden_dropout",
        "masked_softmax_fusion",
        "offset_alibi",
        "pretraining_tp",
        "skip_bias_add",
        "skip_bias_add_qkv",
        "slow_but_exact",
        "unk_token_id",
    ],
    // The activation of BLOOM is part of its code.
    defaults: Defaults { activation_keys: &[], ..Defaults::SHARED },
    attention: |base, _| Ok(base.with_bigscience_bloom(true).into()),
    layer: LayerPaths {
        layers: "h",
        prefixes: &["transformer."],
        norm: Some("input_layernorm"),
        qkv: QkvPaths::Fused("self_attention.query_key_value", QkvLayout::PerHead),
        output: "self_attention.dense",
        ..LayerPaths::SHARED
    },
    positions: None,
    decoder: Some(DecoderPaths {
        tokens: "word_embeddings",
        embedding_norm: Some("word_embeddings_layernorm"),
        final_norm: "ln_f",
        mlp_norm: Some("post_attention_layernorm"),
        up: "mlp.dense_h_to_4h",
        down: "mlp.dense_4h_to_h",
        ..DecoderPaths::SHARED
    }),
};
