//! GPT-Neo, whose layers alternate between global and local attention.

use serde_json::Value;

use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::family::{DecoderPaths, Family, FamilyAttention, LayerPaths, PositionTable, QkvPaths};
use crate::checkpoint::local::LocalLayers;
use crate::error::ConfigError;
use crate::fields::{Fields, shown};

pub(super) static FAMILY: Family = Family {
    model_types: &["gpt_neo"],
    class: Class {
        name: "GPTNeoConfig",
        heads: &["num_heads", "num_attention_heads"],
        layers: &["num_layers", "num_hidden_layers"],
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::TimesHidden(4)),
        vocab_size: Setting::new(&["vocab_size"], 50257),
        max_positions: Setting::new(&["max_position_embeddings"], Some(2048)),
        epsilon: Setting::new(&["layer_norm_epsilon"], 1e-5),
        activation: Setting::new(&["activation_function"], "gelu_new"),
        ..Class::SHARED
    },
    reads: &["attention_layers", "attention_types", "window_size"],
    rope: None,
    only: &[],
    harmless: &[],
    attention: |base, fields| {
        let window = fields.positive(&["window_size"])?.unwrap_or(256);
        let local = local_layers(fields, base.num_hidden_layers.unwrap_or(0))?;
        let config = base.with_window_size(window).with_scale_attention(false).with_qkv_bias(false);
        Ok(FamilyAttention { config, local })
    },
    layer: LayerPaths {
        layers: "h",
        prefixes: &["transformer."],
        norm: Some("ln_1"),
        qkv: QkvPaths::projections("attn.attention"),
        output: "attn.attention.out_proj",
        ..LayerPaths::SHARED
    },
    buffers: &[".attn.attention.bias"],
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

/// The kinds of layers: `[[["global", "local"], 12]]`, patterns and how often each repeats, and their expansion
/// `attention_layers`, either of which a file may have. Without both, the class alternates 24 layers.
fn local_layers(fields: &Fields<'_>, layers: usize) -> Result<LocalLayers, ConfigError> {
    let (key, expanded) = ("attention_types", "attention_layers");
    let listed = match fields.list(expanded)? {
        Some(list) => Some(vec![(kinds(list, expanded)?, 1)]),
        None => None,
    };
    let wrong = |found: &Value| {
        let expected = "a list of pairs, as in [[[\"global\", \"local\"], 12]]";
        ConfigError::WrongType { key: key.into(), found: shown(found), expected }
    };
    let patterns = match fields.list(key)? {
        Some(list) => {
            let pattern = |entry: &Value| {
                let pair = entry.as_array().filter(|pair| pair.len() == 2).ok_or_else(|| wrong(entry))?;
                let pattern = pair[0].as_array().ok_or_else(|| wrong(entry))?;
                Ok((kinds(pattern, key)?, pair[1].as_u64().ok_or_else(|| wrong(entry))?))
            };
            Some(list.iter().map(pattern).collect::<Result<Vec<_>, _>>()?)
        }
        None if listed.is_none() => Some(vec![(vec![false, true], 12)]),
        None => None,
    };
    for (key, patterns) in [(expanded, &listed), (key, &patterns)] {
        let Some(patterns) = patterns else { continue };
        let described = patterns.iter().map(|(pattern, times)| (pattern.len() as u64).saturating_mul(*times));
        let described = described.fold(0, u64::saturating_add);
        if described != layers as u64 {
            return Err(ConfigError::LayerCount { key: key.into(), listed: described, layers });
        }
    }
    let (listed, patterns) = (listed.map(LocalLayers::Patterns), patterns.map(LocalLayers::Patterns));
    if let (Some(listed), Some(patterns)) = (&listed, &patterns)
        && (0..layers).any(|layer| listed.contains(layer) != patterns.contains(layer))
    {
        return Err(fields.conflict(fields, [expanded, key]));
    }
    Ok(listed.or(patterns).unwrap_or_default())
}

/// Whether each of these layers is local.
fn kinds(list: &[Value], key: &str) -> Result<Vec<bool>, ConfigError> {
    let is_local = |kind: &Value| match kind.as_str() {
        Some("local") => Ok(true),
        Some("global") => Ok(false),
        _ => Err(ConfigError::Unsupported {
            key: key.into(),
            value: shown(kind),
            supported: "\"global\", \"local\"".into(),
        }),
    };
    list.iter().map(is_local).collect()
}
