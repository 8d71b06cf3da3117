//! Mistral: LLaMA with a window.

use super::llama;
use crate::checkpoint::family::{Family, FamilyAttention, LocalLayers};

pub(super) static FAMILY: Family = Family {
    model_types: &["mistral"],
    reads: &[
        "attention_bias",
        "head_dim",
        "num_key_value_heads",
        "partial_rotary_factor",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "rotary_emb_base",
        "sliding_window",
        "window_size",
    ],
    harmless: llama::HARMLESS,
    defaults: llama::DEFAULTS,
    attention: |base, fields| {
        let config = llama::attention(base, fields)?;
        Ok(match fields.size(&["sliding_window", "window_size"]) {
            Some(window) => FamilyAttention { config: config.with_window_size(window), local: LocalLayers::All },
            None => config.into(),
        })
    },
    layer: llama::LAYER,
    positions: None,
    decoder: Some(llama::DECODER),
};
