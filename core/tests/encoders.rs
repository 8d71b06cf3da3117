//! Configurations of encoders: what only some classes have, and files that describe two encoders.
#![allow(clippy::unwrap_used)]

use burn_deepspeed_core::checkpoint::families::{EncoderInput, ImageShape};
use burn_deepspeed_core::checkpoint::{ConfigOptions, HuggingFaceConfig, Side};
use burn_deepspeed_core::config::{DataType, WindowKind};
use burn_deepspeed_core::error::ConfigError;
use burn_deepspeed_core::position::rotary::RopeScaling;
use serde_json::{Value, json};

/// A configuration of 8 layers with these keys.
fn record(family: &str, keys: Value) -> Value {
    let mut record =
        json!({ "model_type": family, "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 8 });
    record.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    record
}

fn read(family: &str, keys: Value) -> Result<HuggingFaceConfig, ConfigError> {
    HuggingFaceConfig::from_json(record(family, keys))
}

fn message(family: &str, keys: Value) -> String {
    read(family, keys).unwrap_err().to_string()
}

fn side(record: &Value, side: Side) -> Result<HuggingFaceConfig, ConfigError> {
    HuggingFaceConfig::read(record.clone(), &ConfigOptions::default().with_side(side))
}

/// Window, base, and whether there is a norm before attention, of each layer.
fn modernbert(keys: Value) -> Vec<(Option<usize>, f64, bool)> {
    let config = read("modernbert", keys).unwrap();
    let layer = |layer| {
        let attention = config.attention_config(layer);
        assert!(!attention.triangular_masking);
        assert!(!attention.local_attention || attention.window_kind == WindowKind::Symmetric);
        let window = attention.local_attention.then_some(attention.window_size);
        (window, attention.rope_theta, attention.pre_layer_norm)
    };
    (0..config.layers).map(layer).collect()
}

#[test]
fn layers_of_modernbert_alternate_and_the_first_has_no_norm() {
    let (full, local) = ((None, 160_000.0, true), (Some(128), 10_000.0, true));
    let first = (None, 160_000.0, false);
    assert_eq!(modernbert(json!({})), [first, local, local, full, local, local, full, local]);
    let keys = json!({ "global_attn_every_n_layers": 1, "global_rope_theta": 5e3 });
    assert_eq!(modernbert(keys)[..2], [(None, 5e3, false), (None, 5e3, true)]);
    let types = ["sliding_attention", "full_attention"].repeat(4);
    let keys = json!({ "layer_types": types, "local_attention": 9, "local_rope_theta": 300.0 });
    assert_eq!(modernbert(keys)[..3], [(Some(9), 300.0, false), full, (Some(9), 300.0, true)]);
    let keys = json!({ "rope_parameters": {
        "full_attention": { "rope_type": "linear", "factor": 4.0, "rope_theta": 7e5 }, "sliding_attention": null
    } });
    let config = read("modernbert", keys).unwrap();
    assert_eq!(config.attention_config(3).rope_scaling, RopeScaling::Linear { factor: 4.0 });
    assert_eq!(config.attention_config(3).rope_theta, 7e5);
    assert_eq!(
        (config.attention_config(1).rope_theta, config.attention_config(1).rope_scaling),
        (1e4, RopeScaling::Default)
    );
    let biases = read("modernbert", json!({ "attention_bias": true, "norm_bias": true })).unwrap().attention_config(1);
    assert!(biases.qkv_bias && biases.output_bias && biases.norm_bias);
    let none = read("modernbert", json!({})).unwrap().attention_config(1);
    assert!(!none.qkv_bias && !none.output_bias && !none.norm_bias);
    // A file may state any number of layers.
    let many = read("modernbert", json!({ "num_hidden_layers": u64::MAX >> 1 })).unwrap();
    assert_eq!(
        (many.attention_config(3_000_000).local_attention, many.attention_config(1).local_attention),
        (false, true)
    );
    for (keys, expected) in [
        (json!({ "layer_types": ["full_attention"] }), "`layer_types` describes 1 layers and the model has 8"),
        (json!({ "global_attn_every_n_layers": 0 }), "`global_attn_every_n_layers` is 0"),
        (json!({ "local_attention": 0 }), "`local_attention` is 0"),
        (json!({ "norm_bias": 1 }), "`norm_bias` is 1"),
        (json!({ "rope_parameters": { "rope_theta": 1e4 } }), "`rope_parameters.rope_theta` is 10000.0"),
        (
            json!({ "rope_parameters": { "full_attention": { "fator": 1 } } }),
            "`rope_parameters.full_attention.fator` is 1",
        ),
        (
            json!({ "rope_parameters": { "full_attention": { "partial_rotary_factor": 0.5 } } }),
            "`partial_rotary_factor` is 0.5",
        ),
        (
            json!({ "rope_parameters": { "sliding_attention": { "rope_theta": 1.0 } }, "local_rope_theta": 2.0 }),
            "`rope_parameters.sliding_attention.rope_theta` is 1.0 and `local_rope_theta` is 2.0",
        ),
    ] {
        let error = message("modernbert", keys);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn positions_of_roberta_count_from_the_token_of_padding() {
    for family in ["roberta", "xlm-roberta"] {
        let padding = |keys: Value| {
            let config = read(family, keys).unwrap();
            let padding = config.encoder().unwrap().padding_before_positions(&config.fields().unwrap()).unwrap();
            (padding, config.max_positions, config.learned_positions())
        };
        assert_eq!(padding(json!({ "max_position_embeddings": 514 })), (Some(1), Some(514), Some(512)));
        assert_eq!(padding(json!({ "pad_token_id": 3 })), (Some(3), Some(512), Some(508)));
        // No position is left, and no sum overflows.
        assert_eq!(padding(json!({ "pad_token_id": u64::MAX })).2, Some(0));
        let error = message(family, json!({ "pad_token_id": null }));
        assert!(error.contains("`pad_token_id` is null, which is not supported"), "{error}");
    }
    assert_eq!(read("bert", json!({ "pad_token_id": 3 })).unwrap().learned_positions(), Some(512));
}

#[test]
fn encoders_have_the_attention_of_their_class() {
    for (family, causal, norm) in [
        ("bert", false, false),
        ("distilbert", false, false),
        ("roberta", false, false),
        ("xlm-roberta", false, false),
        ("clip_text_model", true, true),
        ("clip_vision_model", false, true),
        ("siglip_text_model", false, true),
        ("siglip_vision_model", false, true),
        ("vit", false, true),
    ] {
        let config = read(family, json!({})).unwrap();
        assert!(config.decoder().is_none() && config.encoder().is_some(), "{family}");
        let attention = config.attention_config(1);
        assert_eq!((attention.triangular_masking, attention.pre_layer_norm), (causal, norm), "{family}");
        assert!(attention.qkv_bias && attention.output_bias && attention.norm_bias, "{family}");
        assert_eq!((attention.rotary_dim, attention.local_attention), (None, false), "{family}");
    }
    assert!(!read("vit", json!({ "qkv_bias": false })).unwrap().attention_config(0).qkv_bias);
}

#[test]
fn images_have_the_size_that_the_class_takes() {
    let image = |family: &str, keys: Value| {
        let config = read(family, keys).unwrap();
        let EncoderInput::Patches(paths) = config.encoder().unwrap().input else { panic!("{family}") };
        paths.image(&config.fields().unwrap()).unwrap()
    };
    let square = |size, patch| ImageShape { channels: 3, size: [size; 2], patch: [patch; 2] };
    assert_eq!(image("clip_vision_model", json!({})), square(224, 32));
    assert_eq!(image("siglip_vision_model", json!({})), square(224, 16));
    assert_eq!(image("vit", json!({ "image_size": [30], "patch_size": 7 })), square(30, 7));
    let vit = image("vit", json!({ "image_size": [30, 41], "patch_size": [7, 20], "num_channels": 1 }));
    assert_eq!(vit, ImageShape { channels: 1, size: [30, 41], patch: [7, 20] });
    assert_eq!(vit.grid(), [4, 2]);
    for (family, keys, expected) in [
        ("vit", json!({ "image_size": [] }), "`image_size` is []"),
        ("vit", json!({ "image_size": [30, 0] }), "`image_size` is [30,0]"),
        ("vit", json!({ "num_channels": 0 }), "`num_channels` is 0"),
        ("vit", json!({ "patch_size": 225 }), "`patch_size` is 225"),
        ("clip_vision_model", json!({ "patch_size": [32, 32] }), "`patch_size` is [32,32]"),
        ("clip_vision_model", json!({ "image_size": 31 }), "`patch_size` is "),
    ] {
        let error = message(family, keys);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn the_end_of_a_text_is_one_token() {
    let end = |keys: Value| {
        let config = read("clip_text_model", keys)?;
        config.encoder().unwrap().end_token(&config.fields().unwrap())
    };
    assert_eq!((end(json!({})), end(json!({ "eos_token_id": 2 }))), (Ok(Some(49407)), Ok(Some(2))));
    for value in [json!(null), json!([2]), json!([])] {
        let error = end(json!({ "eos_token_id": value })).unwrap_err().to_string();
        assert!(error.contains("`eos_token_id` is ") && error.contains("one token"), "{error}");
    }
}

#[test]
fn a_file_of_two_encoders_is_read_by_side() {
    let clip = json!({
        "architectures": ["CLIPModel"], "initializer_factor": 1.0, "logit_scale_init_value": 2.6592, "model_type": "clip",
        "projection_dim": 17, "torch_dtype": "float16", "transformers_version": "4.31.0",
        "text_config": { "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 99 },
        "vision_config": { "hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 3, "model_type": "clip_vision_model" }
    });
    let (text, vision) = (side(&clip, Side::Text).unwrap(), side(&clip, Side::Vision).unwrap());
    assert_eq!((text.family.name(), text.layers, text.vocab_size), ("clip_text_model", 2, 99));
    assert_eq!(
        (vision.family.name(), vision.layers, vision.attention_config(0).hidden_size),
        ("clip_vision_model", 3, 48)
    );
    assert_eq!(text.attention_config(0).dtype, Some(DataType::Fp16));
    assert!(text.unread_keys().is_empty() && vision.unread_keys().is_empty());
    let error = HuggingFaceConfig::from_json(clip.clone()).unwrap_err().to_string();
    assert!(error.contains("`model_type` is \"clip\"") && error.contains("`ConfigOptions::with_side`"), "{error}");

    let with = |pointer: &str, value: Value| {
        let mut record = clip.clone();
        match pointer.split_once('.') {
            Some((outer, inner)) => record[outer][inner] = value,
            None => record[pointer] = value,
        }
        record
    };
    for (record, expected) in [
        (
            with("text_config.hidden_sise", json!(3)),
            "`text_config.hidden_sise` is 3, and CLIPTextConfig does not read it",
        ),
        (with("text_config.hidden_size", json!("32")), "`text_config.hidden_size` is \"32\""),
        (with("text_config.model_type", json!("bert")), "`text_config.model_type` is \"bert\""),
        (
            with("text_config.dtype", json!("float32")),
            "`torch_dtype` is \"float16\" and `text_config.dtype` is \"float32\"",
        ),
        (with("text_config", json!(3)), "`text_config` is 3"),
        (with("projection_dim", json!("17")), "`projection_dim` is \"17\""),
        (with("quantization_config", json!({ "bits": 4 })), "`quantization_config` is "),
        (with("vision_confg", json!({})), "`vision_confg` is {}, and CLIPConfig does not read it"),
    ] {
        let error = side(&record, Side::Text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    // What the other encoder has is not read.
    side(&with("vision_config.hidden_size", json!("48")), Side::Text).unwrap();
    let options = ConfigOptions::default().with_side(Side::Text).with_allowed_keys(["text_config.my_note"]);
    let noted = HuggingFaceConfig::read(with("text_config.my_note", json!(1)), &options).unwrap();
    assert_eq!(noted.unread_keys(), ["my_note"]);
    // Older files have a second record, which `transformers` takes instead.
    let older = with("text_config_dict", json!({ "hidden_size": 64, "num_attention_heads": 8 }));
    let older = side(&older, Side::Text).unwrap();
    assert_eq!((older.attention_config(0).hidden_size, older.layers, older.vocab_size), (64, 12, 49408));
    side(&with("text_config_dict", Value::Null), Side::Text).unwrap();
}

#[test]
fn files_of_two_encoders_leave_out_what_is_the_default() {
    let siglip = json!({
        "architectures": ["SiglipModel"], "initializer_factor": 1.0, "model_type": "siglip", "torch_dtype": "float32",
        "transformers_version": "4.37.0.dev0",
        "text_config": { "model_type": "siglip_text_model" }, "vision_config": { "model_type": "siglip_vision_model" }
    });
    for of in [Side::Text, Side::Vision] {
        let config = side(&siglip, of).unwrap();
        let attention = config.attention_config(0);
        assert_eq!((attention.hidden_size, attention.heads, config.layers), (768, 12, 12));
    }
    let clip = side(&json!({ "model_type": "clip" }), Side::Text).unwrap();
    assert_eq!((clip.attention_config(0).hidden_size, clip.attention_config(0).heads, clip.layers), (512, 8, 12));
    let clip = side(&json!({ "model_type": "clip", "vision_config": null }), Side::Vision).unwrap();
    assert_eq!(clip.attention_config(0).hidden_size, 768);
    let error = side(&json!({ "model_type": "siglip", "text_config_dict": {} }), Side::Text).unwrap_err().to_string();
    assert!(error.contains("`text_config_dict`"), "{error}");
}

/// Configurations with the keys and spellings that published models have.
#[test]
fn published_files_of_encoders_are_read() {
    let text = include_str!("published/encoders.json");
    let files: serde_json::Map<String, Value> = serde_json::from_str(text).unwrap();
    for (name, record) in files {
        let sides = if record.get("text_config").is_some() { vec![Side::Text, Side::Vision] } else { vec![Side::Text] };
        for of in sides {
            let config = side(&record, of).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(config.encoder().is_some() && config.unread_keys().is_empty(), "{name}");
        }
    }
}
