//! GPT-Neo, whose layers alternate between global and local attention.

use serde_json::Value;

use crate::checkpoint::family::{
    DecoderPaths, Defaults, Family, FamilyAttention, LayerPaths, LocalLayers, PositionTable, QkvPaths,
};
use crate::checkpoint::fields::Fields;

pub(super) static FAMILY: Family = Family {
    model_types: &["gpt_neo"],
    reads: &["attention_layers", "attention_types", "sliding_window", "window_size"],
    harmless: &[
        "attention_dropout",
        "classifier_dropout",
        "embed_dropout",
        "resid_dropout",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    ],
    defaults: Defaults::SHARED,
    attention: |base, fields| {
        let window = fields.size(&["sliding_window", "window_size"]).unwrap_or(256);
        let config = base.with_window_size(window).with_scale_attention(false).with_qkv_bias(false);
        Ok(FamilyAttention { config, local: local_layers(fields) })
    },
    layer: LayerPaths {
        layers: "h",
        prefixes: &["transformer."],
        norm: Some("ln_1"),
        qkv: QkvPaths::projections("attn.attention"),
        output: "attn.attention.out_proj",
        ..LayerPaths::SHARED
    },
    positions: Some(PositionTable { path: "wpe", offset: 0 }),
    decoder: Some(DecoderPaths {
        tokens: "wte",
        final_norm: "ln_f",
        mlp_norm: Some("ln_2"),
        up: "mlp.c_fc",
        down: "mlp.c_proj",
        ..DecoderPaths::SHARED
    }),
};

/// The kinds of layers: `[[["global", "local"], 12]]`, a pattern and how often it repeats; or the expanded `attention_layers`.
/// Without either, every second layer is local.
fn local_layers(fields: &Fields<'_>) -> LocalLayers {
    let is_local = |kind: &Value| kind.as_str() == Some("local");
    if let Some(list) = fields.list("attention_layers") {
        return LocalLayers::Patterns(vec![(list.iter().map(is_local).collect(), 1)]);
    }
    let pattern = |entry: &Value| {
        let pattern: Vec<bool> = entry.get(0).and_then(Value::as_array)?.iter().map(is_local).collect();
        Some((pattern, entry.get(1).and_then(Value::as_u64).unwrap_or(1)))
    };
    let patterns: Vec<_> = fields.list("attention_types").unwrap_or_default().iter().filter_map(pattern).collect();
    match patterns.iter().all(|(pattern, times)| pattern.is_empty() || *times == 0) {
        true => LocalLayers::Patterns(vec![(vec![false, true], u64::MAX)]),
        false => LocalLayers::Patterns(patterns),
    }
}
