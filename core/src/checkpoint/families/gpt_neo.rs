//! GPT-Neo, whose layers alternate between global and local attention.

use serde_json::Value;

use super::gpt2;
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::family::Family;
use crate::checkpoint::layer_kinds::LayerKinds;
use crate::checkpoint::layer_paths::{LayerPaths, QkvPaths};
use crate::checkpoint::window;
use crate::error::ConfigError;
use crate::fields::{Fields, shown};

pub(super) static FAMILY: Family = Family {
    title: "GPT-Neo",
    about: "learned positions, window in some layers, scores without a factor",
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
        let config = base.with_scale_attention(false).with_qkv_bias(false);
        window::attention([config.clone(), config], Some(window), local)
    },
    layer: LayerPaths {
        qkv: QkvPaths::projections("attn.attention"),
        output: "attn.attention.out_proj",
        ..gpt2::LAYER
    },
    buffers: &[".attn.attention.bias"],
    positions: Some(gpt2::POSITIONS),
    decoder: Some(gpt2::DECODER),
    ..Family::SHARED
};

/// The kinds of layers: `[[["global", "local"], 12]]`, patterns and how often each repeats, and their expansion
/// `attention_layers`, either of which a file may have. Without both, the class alternates 24 layers.
fn local_layers(fields: &Fields<'_>, layers: usize) -> Result<LayerKinds, ConfigError> {
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
        None if listed.is_none() => Some(vec![(vec![0, 1], 12)]),
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
    let (listed, patterns) = (listed.map(LayerKinds::repeated), patterns.map(LayerKinds::repeated));
    if let (Some(listed), Some(patterns)) = (&listed, &patterns)
        && (0..layers).any(|layer| listed.of(layer) != patterns.of(layer))
    {
        return Err(fields.conflict(fields, [expanded, key]));
    }
    Ok(listed.or(patterns).unwrap_or_default())
}

/// 1 for each of these layers that is local, else 0.
fn kinds(list: &[Value], key: &str) -> Result<Vec<usize>, ConfigError> {
    let number = |kind: &Value| match kind.as_str() {
        Some("local") => Ok(1),
        Some("global") => Ok(0),
        _ => Err(ConfigError::Unsupported {
            key: key.into(),
            value: shown(kind),
            supported: "\"global\", \"local\"".into(),
        }),
    };
    list.iter().map(number).collect()
}
