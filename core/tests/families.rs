//! What distinguishes the families: which layers have which attention, and how their configurations say so.
#![allow(clippy::unwrap_used)]

use burn_deepspeed_core::checkpoint::families::{self, QkvPaths};
use burn_deepspeed_core::checkpoint::{ConfigOptions, HuggingFaceConfig, QkvLayout};
use burn_deepspeed_core::config::{DataType, DeepSpeedInferenceConfig, WindowKind};
use burn_deepspeed_core::error::ConfigError;
use burn_deepspeed_core::kv_source::KvSource;
use burn_deepspeed_core::latent::LatentSizes;
use burn_deepspeed_core::position::QueryFactor;
use burn_deepspeed_core::position::rotary::RopeScaling;
use burn_deepspeed_core::qk_norm::{QkNormKind, QkNormWeights};
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
        (json!({ "clip_qkv": -8.0 }), "`attn_config.clip_qkv` is -8.0"),
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
fn queries_keys_and_values_are_limited_where_the_configuration_says_so() {
    let clip = |family, keys| read(family, keys).unwrap().attention_config(0).qkv_clip;
    assert_eq!((clip("olmo", json!({ "clip_qkv": 8.0 })), clip("olmo", json!({}))), (Some(8.0), None));
    assert_eq!(clip("mpt", json!({ "attn_config": { "clip_qkv": 6 } })), Some(6.0));
    // The class takes 0 for none.
    assert_eq!(clip("mpt", json!({ "attn_config": { "clip_qkv": 0 } })), None);
}

#[test]
fn alibi_of_falcon_is_divided_by_the_root_of_the_head_size() {
    let of = |keys| read("falcon", keys).unwrap().attention_config(0);
    let alibi = of(json!({ "alibi": true }));
    assert_eq!((alibi.bigscience_bloom, alibi.alibi_factor, alibi.rotary_dim), (true, 0.25, None));
    let slopes = alibi.resolve(0).unwrap();
    assert_eq!(slopes.position.slopes(&slopes.shard).unwrap(), [0.0625, 0.015625, 0.00390625, 0.0009765625]);
    let rotary = of(json!({}));
    assert_eq!((rotary.bigscience_bloom, rotary.alibi_factor, rotary.rotary_dim), (false, 1.0, Some(16)));
}

#[test]
fn layers_of_llama_4_have_chunks_or_no_positions() {
    let kind = |config: &DeepSpeedInferenceConfig| {
        let chunk = config.local_attention.then_some((config.window_size, config.window_kind));
        (chunk, config.rotary_dim.is_some(), config.qk_norm.is_some(), config.query_factor.is_some())
    };
    let of = |keys| layers("llama4_text", keys, kind);
    let chunked = |size| (Some((size, WindowKind::Chunked)), true, true, false);
    let full = (None, false, false, true);
    assert_eq!(of(json!({})), [chunked(8192), chunked(8192), chunked(8192), full]);
    let keys = json!({ "attention_chunk_size": 9, "no_rope_layers": [], "no_rope_layer_interval": 2 });
    assert_eq!(of(keys), [chunked(9), full, chunked(9), full]);
    let keys = json!({
        "no_rope_layers": [0, 1, 1, 0], "use_qk_norm": false, "attn_temperature_tuning": 0,
        "layer_types": ["full_attention", "chunked_attention", "full_attention", "chunked_attention"]
    });
    let chunk = Some((8192, WindowKind::Chunked));
    let expected = [(None, false), (chunk, true), (None, true), (chunk, false)];
    assert_eq!(of(keys), expected.map(|(chunk, rotary)| (chunk, rotary, false, false)));
    let config =
        read("llama4_text", json!({ "attn_temperature_tuning": 4, "attn_scale": 0.2, "rms_norm_eps": 0.5 })).unwrap();
    assert_eq!(config.attention_config(3).query_factor, Some(QueryFactor::llama4(0.2, 8192)));
    let rotary = config.attention_config(0);
    let norm = rotary.qk_norm.unwrap();
    assert_eq!(
        (norm.kind, norm.weights, norm.epsilon, norm.after_rotation),
        (QkNormKind::Rms, QkNormWeights::None, 0.5, true)
    );
    assert_eq!((rotary.head_dim, rotary.rotate_every_two, rotary.rope_theta), (Some(128), true, 5e5));
    for (keys, expected) in [
        (json!({ "attention_chunk_size": null }), "`attention_chunk_size` is null"),
        (json!({ "layer_types": ["sliding_attention"] }), "supported: \"full_attention\", \"chunked_attention\""),
        (json!({ "attn_temperature_tuning": "yes" }), "`attn_temperature_tuning` is \"yes\""),
    ] {
        let error = message("llama4_text", keys);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn gpt_oss_has_sinks_windows_and_yarn() {
    let config = read("gpt_oss", json!({})).unwrap();
    let windows: Vec<_> = (0..4).map(|layer| window(&config.attention_config(layer))).collect();
    assert_eq!(windows, [Some(128), None, Some(128), None]);
    let attention = config.attention_config(0);
    assert_eq!((attention.sinks, attention.qkv_bias, attention.output_bias), (true, true, true));
    assert_eq!((attention.head_dim, attention.rope_theta), (Some(64), 150000.0));
    let RopeScaling::Yarn { factor, truncate: false, original_max_position_embeddings: 4096, attention_factor, .. } =
        attention.rope_scaling
    else {
        panic!("{:?}", attention.rope_scaling)
    };
    assert_eq!((factor, attention_factor), (32.0, 0.1 * 32f64.ln() + 1.0));
    let plain = json!({ "rope_parameters": { "rope_type": "default" }, "attention_bias": false });
    let plain = read("gpt_oss", plain).unwrap().attention_config(1);
    assert_eq!((plain.rope_scaling, plain.rope_theta, plain.qkv_bias), (RopeScaling::Default, 150000.0, false));
}

#[test]
fn windows_of_models_with_experts_are_those_of_the_class() {
    let of = |family, keys| layers(family, keys, window);
    let (all, none) = (Some(9), None);
    let used = |more: Value| {
        let mut keys = json!({ "sliding_window": 9, "use_sliding_window": true });
        keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        keys
    };
    assert_eq!(of("qwen2_moe", used(json!({}))), [all, none, all, none]);
    assert_eq!(of("qwen2_moe", used(json!({ "max_window_layers": 1 }))), [all, none, none, none]);
    assert_eq!(of("qwen2_moe", used(json!({ "max_window_layers": 2 }))), [all, none, none, none]);
    assert_eq!(of("qwen2_moe", json!({ "sliding_window": 9 })), [none; 4]);
    assert_eq!(of("qwen3_moe", used(json!({}))), [all; 4]);
    assert_eq!(of("qwen3_moe", json!({ "sliding_window": 9 })), [none; 4]);
    assert_eq!(of("mixtral", json!({ "sliding_window": 9 })), [all; 4]);
    assert_eq!(of("mixtral", json!({})), [none; 4]);
    assert_eq!(read("mixtral", json!({})).unwrap().attention_config(0).rope_theta, 1e6);
}

#[test]
fn experts_have_the_numbers_and_layers_of_their_class() {
    let sizes = |family, keys| {
        let config = read(family, keys).unwrap();
        let layer = (0..4).find(|&layer| config.experts(layer).is_some()).unwrap();
        let (_, sizes) = config.experts(layer).unwrap();
        (sizes.count, sizes.chosen, sizes.size, sizes.shared)
    };
    for (family, expected) in [
        ("gpt_oss", (128, 4, 2880, None)),
        ("llama4_text", (16, 1, 8192, Some(8192))),
        ("mixtral", (8, 2, 14336, None)),
        ("qwen2_moe", (60, 4, 1408, Some(5632))),
        ("qwen3_moe", (128, 8, 768, None)),
    ] {
        assert_eq!(sizes(family, json!({})), expected, "{family}");
    }
    assert_eq!(sizes("qwen3_moe", json!({ "num_experts": 9, "moe_intermediate_size": 5 })), (9, 8, 5, None));
    let sparse = |family, keys| {
        let config = read(family, keys).unwrap();
        [0, 1, 2, 3].map(|layer| config.experts(layer).is_some())
    };
    for family in ["gpt_oss", "llama4_text", "mixtral", "qwen2_moe", "qwen3_moe"] {
        assert_eq!(sparse(family, json!({})), [true; 4], "{family}");
    }
    assert_eq!(sparse("qwen3_moe", json!({ "decoder_sparse_step": 2 })), [false, true, false, true]);
    let keys = json!({ "decoder_sparse_step": 2, "mlp_only_layers": [1, u64::MAX] });
    assert_eq!(sparse("qwen2_moe", keys), [false, false, false, true]);
    assert_eq!(sparse("llama4_text", json!({ "interleave_moe_layer_step": 2 })), [false, true, false, true]);
    assert_eq!(sparse("llama4_text", json!({ "moe_layers": [0, 3] })), [true, false, false, true]);
    assert!(read("llama", json!({})).unwrap().experts(0).is_none());
    for (family, keys, expected) in [
        ("gpt_oss", json!({ "num_local_experts": 3 }), "`num_experts_per_tok` is 4, which is not supported"),
        ("mixtral", json!({ "num_local_experts": 0 }), "`num_local_experts` is 0"),
        (
            "qwen2_moe",
            json!({ "num_local_experts": 60 }),
            "`num_local_experts` is 60, and Qwen2MoeConfig does not read it",
        ),
        ("qwen3_moe", json!({ "num_experts": 9, "num_local_experts": 8 }), "both are the same setting"),
        ("qwen3_moe", json!({ "norm_topk_prob": 1 }), "`norm_topk_prob` is 1"),
        ("qwen3_moe", json!({ "mlp_only_layers": 1 }), "`mlp_only_layers` is 1"),
        ("gpt_oss", json!({ "swiglu_alpha": "1" }), "`swiglu_alpha` is \"1\""),
    ] {
        let error = message(family, keys);
        assert!(error.contains(expected), "{family}: {error}");
    }
}

/// A DeepSeek of 4 layers.
fn deepseek(family: &str, keys: Value) -> Result<HuggingFaceConfig, ConfigError> {
    let mut all = json!({ "num_key_value_heads": 4, "num_experts_per_tok": 6 });
    all.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    read(family, all)
}

#[test]
fn latents_have_the_sizes_of_the_class() {
    for family in ["deepseek_v2", "deepseek_v3"] {
        let config = deepseek(family, json!({})).unwrap();
        let expected = LatentSizes::new(512, [128, 64], 128).with_q_lora_rank(Some(1536));
        assert_eq!((config.latent, expected.norm_epsilon), (Some(expected), 1e-6));
        let attention = config.attention_config(0);
        assert_eq!((attention.rotary_dim, attention.rope_theta), (Some(64), 10000.0));
        assert_eq!((attention.qkv_bias, attention.output_bias), (false, false));
        assert_eq!(attention.score_factor, Some(1.0 / 192f64.sqrt()));
        assert!(attention.rotate_every_two && !attention.rotate_half);
        assert_eq!(config.attention_spec(3).unwrap().latent, Some(expected));
        let without = deepseek(family, json!({ "q_lora_rank": null, "attention_bias": true })).unwrap();
        assert_eq!(without.latent.unwrap().q_lora_rank, None);
        assert!(without.attention_config(0).qkv_bias && without.attention_config(0).output_bias);
    }
    let half = deepseek("deepseek_v3", json!({ "rope_interleave": false })).unwrap().attention_config(0);
    assert!(half.rotate_half && !half.rotate_every_two);
    assert_eq!(read("llama", json!({})).unwrap().latent, None);
    let yarn = json!({
        "type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 0.5, "original_max_position_embeddings": 4096
    });
    let factor = deepseek("deepseek_v3", json!({ "rope_scaling": yarn })).unwrap().attention_config(0).score_factor;
    let expected = (0.05 * 40f64.ln() + 1.0).powi(2) / 192f64.sqrt();
    assert!((factor.unwrap() - expected).abs() < 1e-12, "{factor:?}");
    for (keys, expected) in [
        (json!({ "kv_lora_rank": "512" }), "`kv_lora_rank` is \"512\""),
        (json!({ "kv_lora_rank": 1 << 30 }), "`kv_lora_rank` is 1073741824"),
        (json!({ "qk_nope_head_dim": u64::MAX }), "`qk_nope_head_dim` is 18446744073709551615"),
        (json!({ "q_lora_rank": 0 }), "`q_lora_rank` is 0"),
        (json!({ "qk_rope_head_dim": 7 }), "rotary"),
        (json!({ "rope_interleave": 1 }), "`rope_interleave` is 1"),
        (json!({ "partial_rotary_factor": 0.5 }), "`partial_rotary_factor` is 0.5"),
    ] {
        let error = deepseek("deepseek_v3", keys).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn experts_of_deepseek_are_in_groups_after_the_first_layers() {
    let sizes = |family, keys| {
        let config = deepseek(family, keys).unwrap();
        let (_, sizes) = config.experts(3).unwrap();
        let groups = sizes.groups.map(|groups| (groups.count, groups.chosen));
        ((sizes.count, sizes.chosen, sizes.size, sizes.shared), groups)
    };
    assert_eq!(sizes("deepseek_v2", json!({})), ((64, 6, 1407, Some(2814)), None));
    // Under `greedy` the class does not read them.
    assert_eq!(sizes("deepseek_v2", json!({ "n_group": 7, "topk_group": 9 })).1, None);
    let limited =
        json!({ "topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3, "n_shared_experts": 3 });
    assert_eq!(sizes("deepseek_v2", limited), ((64, 6, 1407, Some(4221)), Some((8, 3))));
    assert_eq!(
        sizes("deepseek_v3", json!({ "num_experts_per_tok": null })),
        ((256, 8, 2048, Some(2048)), Some((8, 4)))
    );
    let sparse = |family, keys| {
        let config = deepseek(family, keys).unwrap();
        [0, 1, 2, 3].map(|layer| config.experts(layer).is_some())
    };
    assert_eq!(sparse("deepseek_v2", json!({})), [true; 4]);
    assert_eq!(sparse("deepseek_v3", json!({})), [false, false, false, true]);
    assert_eq!(sparse("deepseek_v3", json!({ "first_k_dense_replace": 1 })), [false, true, true, true]);
    assert_eq!(sparse("deepseek_v3", json!({ "first_k_dense_replace": u64::MAX })), [false; 4]);
    for (family, keys, expected) in [
        ("deepseek_v2", json!({ "num_experts_per_tok": null }), "`num_experts_per_tok` is missing"),
        ("deepseek_v2", json!({ "topk_method": "group_limited_greedy" }), "`n_group` is missing"),
        ("deepseek_v2", json!({ "topk_method": "group_limited_greedy", "n_group": 2 }), "`topk_group` is missing"),
        ("deepseek_v2", json!({ "topk_group": "1" }), "`topk_group` is \"1\""),
        ("deepseek_v2", json!({ "num_experts_per_tok": 65 }), "`num_experts_per_tok` is 65"),
        ("deepseek_v3", json!({ "n_group": 128, "topk_group": 2 }), "`topk_group` is 2"),
        ("deepseek_v3", json!({ "n_group": 256 }), "groups of at least 2"),
        ("deepseek_v3", json!({ "norm_topk_prob": "yes" }), "`norm_topk_prob` is \"yes\""),
        ("deepseek_v3", json!({ "n_shared_experts": 0 }), "`n_shared_experts` is 0"),
        ("deepseek_v3", json!({ "n_routed_experts": 8, "num_local_experts": 9 }), "both are the same setting"),
        ("deepseek_v3", json!({ "num_nextn_predict_layers": true }), "`num_nextn_predict_layers` is true"),
        ("deepseek_v3", json!({ "num_nextn_predict_layers": 1, "num_mtp_layers": 2 }), "both are the same setting"),
        ("deepseek_v3", json!({ "num_experts": 8 }), "`num_experts` is 8, and DeepseekV3Config does not read it"),
        ("deepseek_v2", json!({ "num_local_experts": 8 }), "and DeepseekV2Config does not read it"),
    ] {
        let error = deepseek(family, keys).unwrap_err().to_string();
        assert!(error.contains(expected), "{family}: {error}");
    }
    // As DeepSeek published V3.
    let fp8 = json!({ "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128] });
    let error = deepseek("deepseek_v3", json!({ "quantization_config": fp8 })).unwrap_err().to_string();
    assert!(error.contains("`quantization_config` is") && error.contains("fp8") && error.contains("bf16"), "{error}");
}

/// As Google published the one of 4B.
#[test]
fn the_language_model_of_a_gemma_3_leaves_out_its_defaults() {
    let text = json!({
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": { "factor": 8.0, "rope_type": "linear" }, "sliding_window": 1024
    });
    let whole = json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255_999, "eoi_token_index": 256_000,
        "eos_token_id": [1, 106], "image_token_index": 262_144, "initializer_range": 0.02, "mm_tokens_per_image": 256,
        "model_type": "gemma3", "text_config": text, "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
        "vision_config": { "hidden_size": 1152, "model_type": "siglip_vision_model", "vision_use_head": false }
    });
    let config = HuggingFaceConfig::read(whole.clone(), &ConfigOptions::default().with_text_only(true)).unwrap();
    assert_eq!((config.family.name(), config.eos_token_ids.as_slice()), ("gemma3_text", &[1, 106][..]));
    assert_eq!((config.vocab_size, config.mlp_size, config.tie_word_embeddings), (262_208, 10240, true));
    let [sliding, full] = [0, 5].map(|layer| config.attention_config(layer).clone());
    assert_eq!((sliding.hidden_size, sliding.heads, sliding.num_kv, sliding.head_dim), (2560, 8, Some(4), Some(256)));
    assert_eq!((sliding.local_attention, sliding.window_size, full.local_attention), (true, 1024, false));
    assert_eq!(sliding.dtype, Some(DataType::Bf16));
    let error = HuggingFaceConfig::from_json(whole).unwrap_err().to_string();
    assert!(error.contains("`model_type` is \"gemma3\"") && error.contains("`text_only`"), "{error}");
}

/// As Mistral published Small 3.1. The class around the language model says whether embeddings are tied.
#[test]
fn the_language_model_of_a_mistral_3_may_have_two_types() {
    let text = json!({
        "attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120, "initializer_range": 0.02,
        "intermediate_size": 32768, "max_position_embeddings": 131_072, "model_type": "mistral", "num_attention_heads": 32,
        "num_hidden_layers": 40, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e9, "sliding_window": null,
        "use_cache": true, "vocab_size": 131_072
    });
    let read = |text: &Value, keys: Value| {
        let mut whole = json!({
            "architectures": ["Mistral3ForConditionalGeneration"], "image_token_index": 10, "model_type": "mistral3",
            "multimodal_projector_bias": false, "projector_hidden_act": "gelu", "spatial_merge_size": 2, "text_config": text,
            "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0", "vision_config": { "model_type": "pixtral" },
            "vision_feature_layer": -1
        });
        whole.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        HuggingFaceConfig::read(whole, &ConfigOptions::default().with_text_only(true))
    };
    let config = read(&text, json!({})).unwrap();
    assert_eq!((config.family.name(), config.vocab_size, config.tie_word_embeddings), ("mistral", 131_072, true));
    assert!(!config.attention_config(0).local_attention);
    let untied = read(&text, json!({ "tie_word_embeddings": false })).unwrap();
    assert!(!untied.tie_word_embeddings);
    let ministral = record("ministral3", json!({}));
    assert_eq!(read(&ministral, json!({})).unwrap().family.name(), "ministral3");
    let mut absent = text.clone();
    absent.as_object_mut().unwrap().remove("model_type");
    assert_eq!(read(&absent, json!({})).unwrap().family.name(), "mistral");
    let error = read(&record("llama", json!({})), json!({})).unwrap_err().to_string();
    assert!(
        error.contains("`text_config.model_type` is \"llama\"") && error.contains("\"mistral\" or \"ministral3\""),
        "{error}"
    );
}

#[test]
fn the_language_model_of_a_llama_4_is_read_alone_if_that_is_asked_for() {
    let text = record("llama4_text", json!({ "attention_chunk_size": 9 }));
    let whole = |keys: Value| {
        let mut whole = json!({
            "architectures": ["Llama4ForConditionalGeneration"], "boi_token_index": 1, "dtype": "bfloat16", "eos_token_id": [2, 3],
            "image_token_index": 4, "model_type": "llama4", "text_config": text, "tie_word_embeddings": false,
            "transformers_version": "4.51.0", "vision_config": { "hidden_size": 8 }
        });
        whole.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        whole
    };
    let options = ConfigOptions::default().with_text_only(true);
    let read = |keys| HuggingFaceConfig::read(whole(keys), &options);
    let config = read(json!({})).unwrap();
    assert_eq!((config.family.name(), config.eos_token_ids.as_slice()), ("llama4_text", &[2, 3][..]));
    let attention = config.attention_config(0);
    assert_eq!((attention.window_size, attention.dtype), (9, Some(DataType::Bf16)));
    assert_eq!(config.head_path().as_deref(), Some("language_model.lm_head"));
    // A file without images is read as it is.
    let plain = HuggingFaceConfig::read(text.clone(), &options).unwrap();
    assert_eq!(plain.head_path().as_deref(), Some("lm_head"));
    let error = HuggingFaceConfig::from_json(whole(json!({}))).unwrap_err().to_string();
    assert!(error.contains("`model_type` is \"llama4\"") && error.contains("`text_only`"), "{error}");
    for (keys, expected) in [
        (json!({ "text_config": null }), "`text_config` is null"),
        (json!({ "text_config": [] }), "`text_config` is []"),
        (json!({ "text_config": { "model_type": "llama" } }), "`text_config.model_type` is \"llama\""),
        (json!({ "hidden_size": 8 }), "`hidden_size` is 8, and Llama4Config does not read it"),
        (json!({ "quantization_config": { "quant_method": "fp8" } }), "`quantization_config` is"),
        (json!({ "tie_word_embeddings": true }), "`tie_word_embeddings` is true"),
    ] {
        let error = read(keys).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn the_language_model_of_a_gemma_4_is_read_alone_if_that_is_asked_for() {
    let whole = |text: Value, keys: Value| {
        let mut whole = json!({
            "architectures": ["Gemma4ForConditionalGeneration"], "audio_config": null, "boa_token_id": 1, "dtype": "bfloat16",
            "eoa_token_index": 2, "image_token_id": 3, "initializer_range": 0.02, "model_type": "gemma4",
            "text_config": record("gemma4_text", text), "vision_config": { "hidden_size": 8 }, "video_token_id": 4
        });
        whole.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        whole
    };
    let options = ConfigOptions::default().with_text_only(true);
    let read = |text, keys| HuggingFaceConfig::read(whole(text, keys), &options);
    let (tied, untied) = (json!({ "tie_word_embeddings": true }), json!({ "tie_word_embeddings": false }));
    for keys in [json!({}), tied] {
        let config = read(json!({ "num_kv_shared_layers": 0, "layer_types": ALTERNATING }), keys).unwrap();
        assert_eq!((config.family.name(), config.tie_word_embeddings), ("gemma4_text", true));
        assert_eq!(config.attention_config(0).dtype, Some(DataType::Bf16));
        assert_eq!(config.head_path().as_deref(), Some("lm_head"));
    }
    assert!(!read(untied.clone(), untied.clone()).unwrap().tie_word_embeddings);
    for (text, keys, expected) in [
        (json!({}), untied.clone(), "`tie_word_embeddings` is false"),
        (json!({}), json!({ "hidden_size": 8 }), "`hidden_size` is 8, and Gemma4Config does not read it"),
        (untied, json!({}), "`tie_word_embeddings` is"),
    ] {
        let error = read(text, keys).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// Head size, key/value heads, source of the keys, and width of the MLP of each layer.
fn gemma4(keys: Value) -> Vec<(usize, usize, KvSource, usize)> {
    let config = read("gemma4_text", keys).unwrap();
    let of = |layer| {
        let attention = config.attention_config(layer);
        (attention.head_size(), attention.num_kv.unwrap(), attention.kv_source, config.mlp_size_of(layer))
    };
    (0..config.layers).map(of).collect()
}

#[test]
fn layers_of_a_gemma_4_differ_in_heads_and_read_the_keys_of_earlier_ones() {
    use KvSource::{KeysAreValues, Layer, Own};
    let own = (256, 2, Own, 9216);
    assert_eq!(gemma4(json!({})), [own, own, own, (512, 2, Own, 9216)]);
    let keys = json!({
        "attention_k_eq_v": true, "global_head_dim": 6, "head_dim": 10, "intermediate_size": 7, "num_global_key_value_heads": 1,
        "layer_types": ALTERNATING, "num_kv_shared_layers": 2, "use_double_wide_mlp": true
    });
    let expected = [(10, 2, Own, 7), (6, 1, KeysAreValues, 7), (10, 2, Layer(0), 14), (6, 1, Layer(1), 14)];
    assert_eq!(gemma4(keys), expected);
    // Without it the number of heads of full layers is not read.
    assert_eq!(gemma4(json!({ "num_global_key_value_heads": 1 }))[3], (512, 2, Own, 9216));
    let written =
        json!({ "layer_types": ALTERNATING, "per_layer_config": { "1": { "head_dim": 6 }, "3": { "head_dim": 6 } } });
    assert_eq!(gemma4(written), [own, (6, 2, Own, 9216), own, (6, 2, Own, 9216)]);
    // The class makes the last layer a full one.
    let sliding =
        json!({ "layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention"] });
    assert_eq!(gemma4(sliding).iter().map(|layer| layer.0).collect::<Vec<_>>(), [512, 256, 512, 512]);

    // The pattern of the class, with more layers than a list may have.
    let sources = |layers: usize, shared: usize| {
        let config =
            read("gemma4_text", json!({ "num_hidden_layers": layers, "num_kv_shared_layers": shared })).unwrap();
        (0..20).map(|back| config.attention_config(layers - 20 + back)).collect::<Vec<_>>()
    };
    let huge = usize::MAX / 6 * 6;
    let listed: Vec<_> = sources(huge, 3).iter().map(|config| (window(config), config.kv_source)).collect();
    let expected = |layer: usize| match layer {
        17 | 18 => (Some(512), Layer(huge - 4)),
        19 => (None, Layer(huge - 7)),
        1 | 7 | 13 => (None, Own),
        _ => (Some(512), Own),
    };
    assert_eq!(listed, (0..20).map(expected).collect::<Vec<_>>());
}

#[test]
fn what_a_gemma_4_says_of_positions_and_norms_is_read() {
    let config = |keys| layers("gemma4_text", keys, Clone::clone);
    let [sliding, .., full]: [_; 4] = config(json!({})).try_into().unwrap();
    assert_eq!((sliding.rope_theta, sliding.rope_scaling, sliding.rotary_dim), (1e4, RopeScaling::Default, Some(256)));
    let proportional = |share| RopeScaling::Proportional { factor: 1.0, partial_rotary_factor: share };
    assert_eq!((full.rope_theta, full.rope_scaling, full.rotary_dim), (1e6, proportional(0.25), Some(512)));
    assert_eq!((full.score_factor, full.softcap, full.local_attention), (Some(1.0), None, false));
    let norm = full.qk_norm.unwrap();
    assert!(norm.values && !norm.plus_one);
    let own = json!({ "rope_type": "default", "rope_theta": 5.0 });
    let records = |full: Value| json!({ "rope_parameters": { "full_attention": full, "sliding_attention": own } });
    let given = records(json!({ "rope_type": "proportional", "rope_theta": 7.0, "partial_rotary_factor": 0.5 }));
    let all = config(given);
    assert_eq!((all[0].rope_theta, all[3].rope_theta, all[3].rope_scaling.clone()), (5.0, 7.0, proportional(0.5)));
    for (keys, expected) in [
        (records(Value::Null), "`full_attention` is missing"),
        (records(json!({ "partial_rotary_factor": 0.5 })), "`partial_rotary_factor` is 0.5"),
        (json!({ "rope_theta": 1e4 }), "`rope_theta`"),
        (
            json!({ "layer_types": ALTERNATING, "per_layer_config": { "1": { "head_dim": 6 } } }),
            "`per_layer_config` is",
        ),
        (json!({ "global_head_dim": 8, "per_layer_config": { "3": { "head_dim": 6 } } }), "`per_layer_config` is"),
        (json!({ "per_layer_config": { "3": { "sliding_window": 6 } } }), "`per_layer_config.3.sliding_window`"),
    ] {
        let error = message("gemma4_text", keys);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn linear_attention_is_refused_by_the_name_of_its_key() {
    for family in ["qwen3_next", "qwen3_5_text"] {
        let error = message(family, json!({}));
        assert!(
            error.contains("`layer_types` is \"linear_attention\" in most layers") && error.contains(family),
            "{error}"
        );
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
