//! What distinguishes the families: which layers have which attention, and how their configurations say so.
#![allow(clippy::unwrap_used)]

use burn_deepspeed_core::checkpoint::families::{self, QkvPaths};
use burn_deepspeed_core::checkpoint::{HuggingFaceConfig, QkvLayout};
use burn_deepspeed_core::config::DeepSpeedInferenceConfig;
use burn_deepspeed_core::error::ConfigError;
use burn_deepspeed_core::position::QueryFactor;
use burn_deepspeed_core::position::rotary::RopeScaling;
use burn_deepspeed_core::qk_norm::QkNormKind;
use serde_json::{Value, json};

/// A configuration of 4 layers with these keys.
fn record(family: &str, keys: Value) -> Value {
    let mut record =
        json!({ "model_type": family, "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 4 });
    record.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    if let Some(family) = families::ALL.iter().find(|known| known.name() == family)
        && family.reads.contains(&"num_key_value_heads")
        && family.name() != "gpt_bigcode"
    {
        record.as_object_mut().unwrap().entry("num_key_value_heads").or_insert(2.into());
    }
    record
}

fn read(family: &str, keys: Value) -> Result<HuggingFaceConfig, ConfigError> {
    HuggingFaceConfig::from_json(record(family, keys))
}

fn layers<T>(family: &str, keys: Value, of: impl Fn(&DeepSpeedInferenceConfig) -> T) -> Vec<T> {
    let config = read(family, keys).unwrap_or_else(|error| panic!("{family}: {error}"));
    (0..config.layers).map(|layer| of(&config.attention_config(layer))).collect()
}

fn message(family: &str, keys: Value) -> String {
    read(family, keys).unwrap_err().to_string()
}

/// The window of a layer.
fn window(config: &DeepSpeedInferenceConfig) -> Option<usize> {
    config.local_attention.then_some(config.window_size)
}

const ALTERNATING: [&str; 4] = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"];

#[test]
fn each_class_has_its_own_pattern_of_windows() {
    let of = |family, keys| layers(family, keys, window);
    let (all, none) = (Some(9), None);
    let listed = json!({ "sliding_window": 9, "use_sliding_window": true, "layer_types": ALTERNATING });
    for family in ["qwen2", "qwen3", "smollm3"] {
        assert_eq!(of(family, listed.clone()), [all, none, all, none], "{family}");
    }
    let listed = json!({ "sliding_window": 9, "layer_types": ALTERNATING });
    for family in ["cohere2", "gemma2", "gemma3_text", "ministral", "mistral", "olmo3"] {
        assert_eq!(of(family, listed.clone()), [all, none, all, none], "{family}");
    }
    let keys = json!({ "sliding_window": 9, "use_sliding_window": true, "max_window_layers": 3 });
    assert_eq!(of("qwen2", keys), [none, none, none, all]);
    // Without `use_sliding_window` the window is not used.
    assert_eq!(of("qwen2", json!({ "sliding_window": 9, "max_window_layers": 0 })), [none; 4]);
    assert_eq!(of("gemma2", json!({ "sliding_window": 9 })), [all, none, all, none]);
    assert_eq!(of("olmo3", json!({ "sliding_window": 9 })), [all, all, all, none]);
    assert_eq!(of("cohere2", json!({ "sliding_window": 9 })), [all, all, all, none]);
    assert_eq!(of("gemma3_text", json!({ "sliding_window": 9, "sliding_window_pattern": 2 })), [all, none, all, none]);
    assert_eq!(of("gemma3_text", json!({})), [Some(4096); 4]);
    for family in ["phi3", "starcoder2", "ministral3"] {
        assert_eq!(of(family, json!({ "sliding_window": 9 })), [all; 4], "{family}");
        assert_eq!(of(family, json!({})), [none; 4], "{family}");
    }
}

#[test]
fn windows_that_contradict_each_other_are_named() {
    let error = message("qwen2", json!({ "sliding_window": 9, "layer_types": ALTERNATING }));
    assert!(error.contains("`use_sliding_window`") && error.contains("true"), "{error}");
    let keys = json!({ "layer_types": ALTERNATING, "sliding_window_pattern": 3 });
    assert!(message("gemma3_text", keys).contains("`sliding_window_pattern` is 3"));
    let error = message("gemma3_text", json!({ "_sliding_window_pattern": 3 }));
    assert!(error.contains("`_sliding_window_pattern` is 3") && error.contains("write `sliding_window_pattern`"));
    let error = message("gemma2", json!({ "sliding_window": 9, "sliding_window_size": 8 }));
    assert!(error.contains("`sliding_window_size` is 8"), "{error}");
    let error = message("cohere2", json!({ "sliding_window": null }));
    assert!(error.contains("`sliding_window` is missing"), "{error}");
    let error = message("cohere2", json!({ "layer_types": ["full_attention"] }));
    assert!(error.contains("`layer_types` describes 1 layers and the model has 4"), "{error}");
}

#[test]
fn some_layers_have_no_positions() {
    let rotary = |family, keys| layers(family, keys, |config| config.rotary_dim.is_some());
    assert_eq!(rotary("smollm3", json!({})), [true, true, true, false]);
    assert_eq!(rotary("smollm3", json!({ "no_rope_layer_interval": 2 })), [true, false, true, false]);
    assert_eq!(rotary("smollm3", json!({ "no_rope_layers": [0, 1, 1, 0] })), [false, true, true, false]);
    assert_eq!(rotary("cohere2", json!({})), [true, true, true, false]);
    let windows = |keys| layers("smollm3", keys, |config| (window(config), config.rotary_dim.is_some()));
    let keys = json!({ "sliding_window": 9, "use_sliding_window": true });
    assert_eq!(windows(keys), [(None, true), (None, true), (None, true), (Some(9), false)]);
    let keys = json!({ "sliding_window": 9, "use_sliding_window": true, "no_rope_layers": [1, 1, 0, 0], "layer_types": ALTERNATING });
    assert_eq!(windows(keys), [(Some(9), true), (None, true), (Some(9), false), (None, false)]);
    assert!(message("smollm3", json!({ "no_rope_layers": [0, 1] })).contains("`no_rope_layers` describes 2 layers"));
    assert!(message("smollm3", json!({ "no_rope_layers": [0, 1, 2, 0] })).contains("`no_rope_layers` is [0,1,2,0]"));
}

#[test]
fn rotary_settings_may_depend_on_the_type_of_a_layer() {
    let of = |family, keys| layers(family, keys, |config| (config.rope_theta, config.rope_scaling.clone()));
    let (linear, plain) = (RopeScaling::Linear { factor: 8.0 }, RopeScaling::Default);
    let full = |theta| (theta, linear.clone());
    let old = json!({
        "rope_theta": 7e5, "rope_local_base_freq": 500, "rope_scaling": { "rope_type": "linear", "factor": 8.0 },
        "sliding_window_pattern": 2
    });
    let expected = [(500.0, plain.clone()), full(7e5), (500.0, plain.clone()), full(7e5)];
    assert_eq!(of("gemma3_text", old), expected);
    let new = json!({
        "rope_parameters": {
            "full_attention": { "rope_type": "linear", "factor": 8.0, "rope_theta": 7e5 },
            "sliding_attention": { "rope_type": "default", "rope_theta": 500.0 }
        },
        "sliding_window_pattern": 2
    });
    assert_eq!(of("gemma3_text", new), expected);
    let defaults = of("gemma3_text", json!({ "sliding_window_pattern": 4 }));
    assert_eq!((defaults[0].0, defaults[3].0), (10000.0, 1e6));
    // The base outside of the records belongs to layers that see all tokens.
    let olmo = of("olmo3", json!({ "rope_theta": 3e5, "rope_scaling": { "rope_type": "linear", "factor": 8.0 } }));
    assert_eq!((olmo[0].clone(), olmo[3].clone()), ((5e5, plain), full(3e5)));

    let both = json!({ "full_attention": { "rope_theta": 5e5 }, "rope_theta": 5e5, "rope_type": "default" });
    read("olmo3", json!({ "rope_parameters": both })).unwrap();
    for (keys, expected) in [
        (json!({ "rope_parameters": { "rope_theta": 1e4 } }), "`rope_parameters.rope_theta` is 10000.0"),
        (json!({ "rope_parameters": { "rope_type": "yarn" } }), "`rope_parameters.rope_type` is \"yarn\""),
        (json!({ "rope_parameters": { "factor": 4.0 } }), "`rope_parameters.factor` is 4.0"),
        (
            json!({ "rope_parameters": { "full_attention": { "partial_rotary_factor": 0.5 } } }),
            "`partial_rotary_factor` is 0.5",
        ),
        (
            json!({ "rope_parameters": { "sliding_attention": { "partial_rotary_factor": 0.5 } } }),
            "`partial_rotary_factor` is 0.5",
        ),
        (
            json!({ "rope_parameters": { "full_attention": { "fator": 1 } } }),
            "`rope_parameters.full_attention.fator` is 1",
        ),
        (
            json!({ "rope_parameters": { "full_attention": { "rope_theta": 1 } }, "rope_scaling": { "factor": 2 } }),
            "null next to `rope_parameters.full_attention`",
        ),
        (
            json!({ "rope_parameters": { "full_attention": { "rope_theta": 1 } }, "rope_theta": 2 }),
            "`rope_parameters.full_attention.rope_theta` is 1 and `rope_theta` is 2",
        ),
    ] {
        let error = message("olmo3", keys);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn scores_and_queries_have_the_factors_of_their_class() {
    let of = |family, keys| read(family, keys).unwrap().attention_config(3);
    assert_eq!(of("gemma2", json!({})).score_factor, Some(0.0625));
    assert_eq!(of("gemma2", json!({})).softcap, Some(50.0));
    assert_eq!(of("gemma2", json!({ "attn_logit_softcapping": null })).softcap, None);
    assert_eq!(of("gemma3_text", json!({ "query_pre_attn_scalar": 4 })).score_factor, Some(0.5));
    assert_eq!(of("gemma3_text", json!({})).softcap, None);
    assert_eq!(of("granite", json!({})).score_factor, Some(1.0));
    assert_eq!(of("mpt", json!({ "attn_config": { "softmax_scale": 0.3 } })).score_factor, Some(0.3));
    assert!(of("mpt", json!({})).bigscience_bloom);
    let ministral = of("ministral3", json!({}));
    assert_eq!(ministral.query_factor, Some(QueryFactor::ministral3(0.1, 16384)));
    assert_eq!(ministral.rope_theta, 1e6);
    let keys = json!({ "rope_parameters": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "llama_4_scaling_beta": 0.3
    } });
    assert_eq!(of("ministral3", keys).query_factor, Some(QueryFactor::ministral3(0.3, 32)));
    let error = message("ministral3", json!({ "rope_parameters": { "rope_type": "default" } }));
    assert!(error.contains("`llama_4_scaling_beta` is missing"), "{error}");
    for (record, expected) in [
        (json!({ "clip_qkv": 8.0 }), "`attn_config.clip_qkv` is 8.0"),
        (json!({ "alibi": false }), "`attn_config.alibi` is false"),
        (json!({ "qk_ln": true }), "`attn_config.qk_ln` is true"),
        (json!({ "kv_heads": 2 }), "`attn_config.kv_heads` is 2, and MptConfig does not read it"),
        (json!({ "softmax_scale": "1" }), "`attn_config.softmax_scale` is \"1\""),
    ] {
        let error = message("mpt", json!({ "attn_config": record }));
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn norms_of_queries_and_keys_are_those_of_the_class() {
    let norm = |family, keys| read(family, keys).unwrap().attention_config(0).qk_norm;
    for family in ["qwen3", "gemma3_text"] {
        assert_eq!(norm(family, json!({ "rms_norm_eps": 0.5 })).unwrap().epsilon, 0.5, "{family}");
        assert_eq!(norm(family, json!({})).unwrap().plus_one, family == "gemma3_text");
    }
    assert_eq!(norm("olmo2", json!({})).unwrap().kind, QkNormKind::RmsOfAllHeads);
    for (family, key) in [("cohere", "use_qk_norm"), ("stablelm", "qk_layernorm")] {
        assert_eq!(norm(family, json!({})), None);
        assert_eq!(norm(family, json!({ key: true })).unwrap().kind, QkNormKind::LayerNorm);
    }
}

#[test]
fn paths_depend_on_the_configuration_where_the_class_says_so() {
    let layer = |family, keys| *read(family, keys).unwrap().layer();
    let layout = |family, keys| match layer(family, keys).qkv {
        QkvPaths::Fused(_, layout) => layout,
        QkvPaths::Separate(..) => panic!("{family} has three matrices"),
    };
    assert_eq!(layout("gpt_bigcode", json!({})), QkvLayout::Concat);
    assert_eq!(layout("gpt_bigcode", json!({ "multi_query": false })), QkvLayout::PerHead);
    let norms = |family, keys| {
        let config = read(family, keys).unwrap();
        (config.layer().norm.unwrap(), config.decoder().unwrap().mlp_norm)
    };
    let one = ("input_layernorm", None);
    assert_eq!(norms("falcon", json!({})), one);
    let (new, both) = (json!({ "new_decoder_architecture": true }), ("ln_attn", Some("ln_mlp")));
    assert_eq!(norms("falcon", new), both);
    assert_eq!(norms("falcon", json!({ "new_decoder_architecture": true, "num_ln_in_parallel_attn": 1 })), one);
    let sequential = ("input_layernorm", Some("post_attention_layernorm"));
    assert_eq!(norms("falcon", json!({ "parallel_attn": false })), sequential);
    let error = message("falcon", json!({ "parallel_attn": false, "new_decoder_architecture": true }));
    assert!(error.contains("`parallel_attn` is false"), "{error}");
    assert_eq!(norms("stablelm", json!({})), sequential);
    assert_eq!(norms("stablelm", json!({ "use_parallel_residual": true })), one);
    let heads = |keys| read("falcon", keys).unwrap().attention_config(0).num_kv;
    assert_eq!((heads(json!({})), heads(json!({ "multi_query": false }))), (Some(1), Some(4)));
    assert_eq!(heads(json!({ "new_decoder_architecture": true, "num_kv_heads": 2 })), Some(2));
    assert_eq!(heads(json!({ "new_decoder_architecture": true })), None);
}

#[test]
fn the_long_variants_of_phi_3_have_factors_for_two_lengths() {
    let long = |name: &str| {
        let factors = |factor: f64| vec![factor; 8];
        json!({
            "rope_scaling": { "type": name, "short_factor": factors(1.0), "long_factor": factors(2.0) },
            "original_max_position_embeddings": 32, "max_position_embeddings": 128
        })
    };
    for name in ["longrope", "su", "yarn"] {
        let scaling = read("phi3", long(name)).unwrap().attention_config(0).rope_scaling;
        let RopeScaling::LongRope { original_max_position_embeddings: 32, long_factor, .. } = scaling else {
            panic!("{name}: {scaling:?}")
        };
        assert_eq!(long_factor, [2.0; 8]);
    }
    let mut record = long("su");
    record.as_object_mut().unwrap().remove("original_max_position_embeddings");
    let error = message("phi3", record);
    assert!(error.contains("`original_max_position_embeddings` is missing outside of the record"), "{error}");
    let error = message("phi3", json!({ "rope_scaling": { "type": "linear", "factor": 4.0 } }));
    assert!(error.contains("`rope_scaling.type` is \"linear\"") && error.contains("longrope"), "{error}");
}

#[test]
fn early_checkpoints_of_gemma_mean_the_approximation() {
    assert_eq!(read("gemma", json!({ "hidden_act": "gelu" })).unwrap().activation, "gelu_pytorch_tanh");
}

/// Configurations with the keys and spellings that published models have.
#[test]
fn published_files_are_read() {
    let text = include_str!("published/decoders.json");
    let files: serde_json::Map<String, Value> = serde_json::from_str(text).unwrap();
    assert!(files.len() > 25);
    for (name, record) in files {
        let config = HuggingFaceConfig::from_json(record).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(config.decoder().is_some() && config.unread_keys().is_empty(), "{name}");
    }
}
