//! BERT, an encoder.

use crate::checkpoint::family::{Defaults, Family, LayerPaths, PositionTable, QkvPaths};
use crate::error::ConfigError;

pub(super) static FAMILY: Family = Family {
    model_types: &["bert"],
    reads: &["position_embedding_type", "type_vocab_size"],
    harmless: &[
        "attention_probs_dropout_prob",
        "classifier_dropout",
        "directionality",
        "gradient_checkpointing",
        "hidden_dropout_prob",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
    ],
    defaults: Defaults { epsilon_keys: &["layer_norm_eps"], epsilon: 1e-12, activation: "gelu", ..Defaults::SHARED },
    attention: |base, fields| {
        let positions = fields.text(&["position_embedding_type"]).unwrap_or("absolute");
        if positions != "absolute" {
            return Err(ConfigError::UnknownValue {
                key: "position_embedding_type".into(),
                value: format!("`{positions}`"),
                accepted: "absolute".into(),
            });
        }
        Ok(base.with_pre_layer_norm(false).with_triangular_masking(false).into())
    },
    layer: LayerPaths {
        layers: "encoder.layer",
        prefixes: &["bert."],
        qkv: QkvPaths::Separate("attention.self", ["query", "key", "value"]),
        output: "attention.output.dense",
        ..LayerPaths::SHARED
    },
    positions: Some(PositionTable { path: "embeddings.position_embeddings", offset: 0 }),
    decoder: None,
};
