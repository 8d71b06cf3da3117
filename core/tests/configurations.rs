//! Configurations are read strictly: no key is ignored, no value of the wrong type is taken for absent, and absence means what it
//! means to the classes of `transformers`.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use burn_deepspeed_core::checkpoint::families::{self, Class, MlpSize};
use burn_deepspeed_core::checkpoint::{ConfigOptions, HuggingFaceConfig};
use burn_deepspeed_core::config::DataType;
use burn_deepspeed_core::error::ConfigError;
use burn_deepspeed_core::position::rotary::RopeScaling;
use serde_json::{Value, json};

/// The `config.json` of every golden checkpoint, and of the families that have none.
fn configurations() -> Vec<(String, Value)> {
    let golden = |folder: &str| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(folder);
    let mut all: Vec<(String, Value)> = ["models", "families", "encoders"]
        .into_iter()
        .flat_map(|folder| std::fs::read_dir(golden(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let text = std::fs::read_to_string(path.join("config.json")).unwrap();
            (path.display().to_string(), serde_json::from_str(&text).unwrap())
        })
        .collect();
    // As `transformers` 5.24 writes them.
    let neo = json!({
        "activation_function": "gelu_new", "attention_dropout": 0.0,
        "attention_layers": ["global", "local", "global"], "attention_types": [[["global", "local", "global"], 1]],
        "classifier_dropout": 0.1, "dtype": "float32", "embed_dropout": 0.0, "eos_token_id": 1, "hidden_size": 64,
        "initializer_range": 0.02, "intermediate_size": null, "layer_norm_epsilon": 1e-5, "max_position_embeddings": 256,
        "model_type": "gpt_neo", "num_heads": 4, "num_layers": 3, "resid_dropout": 0.0, "tie_word_embeddings": true,
        "transformers_version": "5.24.0", "use_cache": true, "vocab_size": 160, "window_size": 9
    });
    all.push(("gpt_neo".into(), neo));
    // Those of two encoders are read one by one: `core/tests/encoders.rs`.
    all.retain(|(_, record)| record.get("text_config").is_none());
    let types: Vec<&str> = all.iter().map(|(_, record)| record["model_type"].as_str().unwrap()).collect();
    assert!(families::ALL.iter().all(|family| types.contains(&family.name())), "{types:?}");
    all
}

fn read(record: &Value) -> Result<HuggingFaceConfig, ConfigError> {
    HuggingFaceConfig::from_json(record.clone())
}

fn message(record: &Value) -> String {
    read(record).unwrap_err().to_string()
}

fn with(record: &Value, key: &str, value: impl Into<Value>) -> Value {
    let mut record = record.clone();
    record[key] = value.into();
    record
}

#[test]
fn every_key_of_a_configuration_is_known() {
    for (name, record) in configurations() {
        let config = read(&record).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(config.unread_keys().is_empty(), "{name}");
    }
}

#[test]
fn every_key_that_is_read_has_one_type() {
    for (name, record) in configurations() {
        let family = read(&record).unwrap().family;
        let read_keys = family.read_keys();
        let mut changed = 0;
        for (key, value) in record.as_object().unwrap() {
            if !read_keys.contains(&key.as_str()) {
                continue;
            }
            let wrong = if value.is_object() { json!("wrong") } else { json!({ "wrong": true }) };
            let message = message(&with(&record, key, wrong));
            assert!(message.contains(&format!("`{key}` is ")), "{name}, {key}: {message}");
            assert!(message.contains("expected") || message.contains("supported"), "{name}, {key}: {message}");
            changed += 1;
        }
        assert!(changed >= 10, "{name}: {changed}");
    }
}

#[test]
fn no_spelling_of_a_setting_takes_another_type() {
    for (name, record) in configurations() {
        let family = read(&record).unwrap().family;
        for key in family.read_keys() {
            // Numbers and truth values as text, as some tools write them.
            let wrong = json!(["text"]);
            if ["rope_parameters", "attention_types"].contains(&key) {
                continue;
            }
            let message = message(&with(&record, key, wrong));
            assert!(message.contains(&format!("`{key}")), "{name}, {key}: {message}");
        }
    }
}

#[test]
fn a_key_that_no_one_reads_is_an_error_with_a_way_out() {
    for (name, record) in configurations() {
        let class = read(&record).unwrap().family.class.name;
        let strange = with(&record, "atention_sinks", 4);
        let error = message(&strange);
        assert!(error.starts_with(&format!("`atention_sinks` is 4, and {class} does not read it")), "{name}: {error}");
        assert!(error.contains("`--allow-key atention_sinks`"), "{error}");
        let options = ConfigOptions::default().with_allowed_keys(["atention_sinks"]);
        let config = HuggingFaceConfig::read(strange, &options).unwrap();
        assert_eq!(config.unread_keys(), ["atention_sinks"]);
        // `null` is absent.
        read(&with(&record, "atention_sinks", Value::Null)).unwrap();
    }
}

#[test]
fn the_nearest_key_and_all_others_are_named() {
    let record =
        json!({ "model_type": "llama", "hidden_sise": 64, "num_attention_heads": 4, "num_hidden_layers": 1, "zzz": 1 });
    let error = message(&record);
    assert!(error.contains("`hidden_sise` is 64") && error.contains("(nearest: `hidden_size`) (nor `zzz`)"), "{error}");
}

#[test]
fn every_key_but_the_sizes_may_be_absent() {
    for (name, record) in configurations() {
        let family = read(&record).unwrap().family;
        let sizes = [family.class.hidden_size, family.class.heads, family.class.layers].concat();
        let required = if family.class.sizes.is_some() { Vec::new() } else { sizes };
        for key in record.as_object().unwrap().keys().filter(|key| *key != "model_type") {
            let mut absent = record.clone();
            absent.as_object_mut().unwrap().remove(key);
            match read(&absent) {
                Ok(_) => assert!(!required.contains(&key.as_str()), "{name}: {key}"),
                // Layers of a type that needs a window.
                Err(ConfigError::Missing { key: "sliding_window", .. }) if key == "sliding_window" => {}
                // What the class has no default for, and needs.
                Err(ConfigError::Missing { key: missing, .. })
                    if missing == key && ["n_group", "num_experts_per_tok", "topk_group"].contains(&missing) => {}
                Err(ConfigError::Missing { key: missing, .. }) => assert!(required.contains(&missing), "{name}: {key}"),
                // The defaults of the class do not fit these small models: more key/value heads, 64 features that rotate
                // or a quarter of 4.
                Err(
                    ConfigError::KvHeadsDoNotDivide { .. }
                    | ConfigError::RotaryDimTooLong { rotary_dim: 64, .. }
                    | ConfigError::RotaryDimOdd(1),
                ) => {}
                // Sizes that a class has, too, and that do not fit these.
                Err(ConfigError::HeadsDoNotDivide { .. } | ConfigError::LayerCount { .. })
                    if family.class.sizes.is_some() => {}
                // Patches larger than the image.
                Err(ConfigError::Unsupported { key: other, .. }) if key == "patch_size" && other == "patch_size" => {}
                // A class that reads it in one place only.
                Err(ConfigError::RopeScaling { key: "original_max_position_embeddings", .. })
                    if key == "original_max_position_embeddings" => {}
                // They contradict another key.
                Err(ConfigError::Unsupported { key: other, .. })
                    if [
                        "head_dim",
                        "n_group",
                        "num_experts_per_tok",
                        "num_key_value_heads",
                        "num_ln_in_parallel_attn",
                        "per_layer_config",
                        "qk_head_dim",
                        "topk_group",
                        "use_sliding_window",
                    ]
                    .contains(&&*other) => {}
                Err(other) => panic!("{name}, {key}: {other}"),
            }
        }
    }
}

/// A configuration with the sizes that are required.
fn smallest(family: &str) -> Value {
    // Some classes have more key/value heads.
    let heads = match family {
        "qwen2" | "qwen3" | "stablelm" => 32,
        "helium" => 20,
        _ => 16,
    };
    let mut record =
        json!({ "model_type": family, "hidden_size": 1024, "num_attention_heads": heads, "num_hidden_layers": 24 });
    if family == "deepseek_v2" {
        record["num_experts_per_tok"] = 6.into();
    }
    record
}

/// The defaults of the classes in `transformers` 5.24: vocabulary, length, width of the MLP (`None`: four times the hidden size),
/// epsilon, activation, and whether the embeddings are tied.
type Row = (&'static str, &'static str, usize, Option<usize>, Option<usize>, f64, &'static str, bool);

const DEFAULTS: [Row; 54] = [
    ("arcee", "ArceeConfig", 32000, Some(4096), Some(18432), 1e-5, "relu2", false),
    ("bert", "BertConfig", 30522, Some(512), Some(3072), 1e-12, "gelu", true),
    ("clip_text_model", "CLIPTextConfig", 49408, Some(77), Some(2048), 1e-5, "quick_gelu", true),
    ("clip_vision_model", "CLIPVisionConfig", 0, None, Some(3072), 1e-5, "quick_gelu", true),
    // Its epsilon: `modeling_distilbert.py`.
    ("distilbert", "DistilBertConfig", 30522, Some(512), Some(3072), 1e-12, "gelu", true),
    ("modernbert", "ModernBertConfig", 50368, Some(8192), Some(1152), 1e-5, "gelu", true),
    ("roberta", "RobertaConfig", 50265, Some(512), Some(3072), 1e-12, "gelu", true),
    ("siglip_text_model", "SiglipTextConfig", 32000, Some(64), Some(3072), 1e-6, "gelu_pytorch_tanh", true),
    ("siglip_vision_model", "SiglipVisionConfig", 0, None, Some(3072), 1e-6, "gelu_pytorch_tanh", true),
    ("vit", "ViTConfig", 0, None, Some(3072), 1e-12, "gelu", true),
    ("xlm-roberta", "XLMRobertaConfig", 30522, Some(512), Some(3072), 1e-12, "gelu", true),
    // Its MLP, epsilon and activation: `modeling_bloom.py`. It has no length.
    ("bloom", "BloomConfig", 250880, None, None, 1e-5, "gelu_new", true),
    ("cohere", "CohereConfig", 256000, Some(8192), Some(22528), 1e-5, "silu", true),
    ("cohere2", "Cohere2Config", 256000, Some(8192), Some(22528), 1e-5, "silu", true),
    ("deepseek_v2", "DeepseekV2Config", 102400, Some(2048), Some(11008), 1e-6, "silu", false),
    ("deepseek_v3", "DeepseekV3Config", 129280, Some(4096), Some(18432), 1e-6, "silu", false),
    ("falcon", "FalconConfig", 65024, Some(2048), None, 1e-5, "gelu", true),
    ("gemma", "GemmaConfig", 256000, Some(8192), Some(24576), 1e-6, "gelu_pytorch_tanh", true),
    ("gemma2", "Gemma2Config", 256000, Some(8192), Some(9216), 1e-6, "gelu_pytorch_tanh", true),
    ("gemma3_text", "Gemma3TextConfig", 262208, Some(131072), Some(9216), 1e-6, "gelu_pytorch_tanh", true),
    ("gemma4_text", "Gemma4TextConfig", 262144, Some(131072), Some(9216), 1e-6, "gelu_pytorch_tanh", true),
    ("ernie4_5", "Ernie4_5Config", 103424, Some(131072), Some(3072), 1e-5, "silu", true),
    ("glm", "GlmConfig", 151552, Some(131072), Some(13696), 1.5625e-7, "silu", false),
    ("helium", "HeliumConfig", 48000, Some(4096), Some(7040), 1e-8, "silu", false),
    ("seed_oss", "SeedOssConfig", 155136, Some(524288), Some(27648), 1e-6, "silu", false),
    ("glm4", "Glm4Config", 151552, Some(131072), Some(13696), 1.5625e-7, "silu", false),
    ("granite", "GraniteConfig", 32000, Some(2048), Some(11008), 1e-6, "silu", false),
    ("gpt2", "GPT2Config", 50257, Some(1024), None, 1e-5, "gelu_new", true),
    ("gpt_neo", "GPTNeoConfig", 50257, Some(2048), None, 1e-5, "gelu_new", true),
    ("gpt_neox", "GPTNeoXConfig", 50432, Some(2048), Some(24576), 1e-5, "gelu", false),
    ("gpt_bigcode", "GPTBigCodeConfig", 50257, Some(1024), None, 1e-5, "gelu_pytorch_tanh", true),
    // `configuration_internlm2.py` of its checkpoints.
    ("internlm2", "InternLM2Config", 103168, Some(2048), Some(11008), 1e-6, "silu", false),
    ("gptj", "GPTJConfig", 50400, Some(2048), None, 1e-5, "gelu_new", false),
    ("gpt_oss", "GptOssConfig", 201088, Some(131072), Some(2880), 1e-5, "silu", false),
    ("llama", "LlamaConfig", 32000, Some(2048), Some(11008), 1e-6, "silu", false),
    ("llama4_text", "Llama4TextConfig", 202048, Some(131072), Some(16384), 1e-5, "silu", false),
    ("mistral", "MistralConfig", 32000, Some(131072), Some(14336), 1e-6, "silu", false),
    ("mixtral", "MixtralConfig", 32000, Some(131072), Some(14336), 1e-5, "silu", false),
    ("ministral", "MinistralConfig", 32000, Some(131072), Some(14336), 1e-6, "silu", false),
    ("ministral3", "Ministral3Config", 131072, Some(262144), Some(14336), 1e-5, "silu", false),
    // Its MLP and activation: `modeling_mpt.py`.
    ("mpt", "MptConfig", 50368, Some(2048), None, 1e-5, "gelu", true),
    // Its epsilon: `modeling_olmo.py`.
    ("olmo", "OlmoConfig", 50304, Some(2048), Some(11008), 1e-5, "silu", false),
    ("olmo2", "Olmo2Config", 50304, Some(2048), Some(11008), 1e-5, "silu", false),
    ("olmo3", "Olmo3Config", 50304, Some(2048), Some(11008), 1e-5, "silu", false),
    // Its epsilon: `modeling_opt.py`.
    ("opt", "OPTConfig", 50272, Some(2048), Some(3072), 1e-5, "relu", true),
    ("phi", "PhiConfig", 51200, Some(2048), Some(8192), 1e-5, "gelu_new", false),
    ("phi3", "Phi3Config", 32064, Some(4096), Some(8192), 1e-5, "silu", false),
    ("qwen2", "Qwen2Config", 151936, Some(32768), Some(22016), 1e-6, "silu", false),
    ("qwen3", "Qwen3Config", 151936, Some(32768), Some(22016), 1e-6, "silu", false),
    ("qwen2_moe", "Qwen2MoeConfig", 151936, Some(32768), Some(5632), 1e-6, "silu", false),
    ("qwen3_moe", "Qwen3MoeConfig", 151936, Some(32768), Some(6144), 1e-6, "silu", false),
    ("smollm3", "SmolLM3Config", 128256, Some(32768), Some(11008), 1e-6, "silu", true),
    ("stablelm", "StableLmConfig", 50304, Some(4096), Some(6912), 1e-5, "silu", false),
    ("starcoder2", "Starcoder2Config", 49152, Some(4096), Some(12288), 1e-5, "gelu_pytorch_tanh", true),
];

#[test]
fn absence_means_the_default_of_the_class() {
    assert_eq!(DEFAULTS.len(), families::ALL.len());
    for (family, class, vocabulary, length, mlp, epsilon, activation, tied) in DEFAULTS {
        let config = read(&smallest(family)).unwrap_or_else(|error| panic!("{family}: {error}"));
        assert_eq!(config.family.class.name, class);
        assert_eq!((config.vocab_size, config.max_positions), (vocabulary, length), "{family}");
        assert_eq!((config.mlp_size, config.activation.as_str()), (mlp.unwrap_or(4096), activation), "{family}");
        let attention = config.attention_config(0);
        assert_eq!((attention.layer_norm_eps, config.tie_word_embeddings), (epsilon, tied), "{family}");
        assert_eq!((attention.dtype, &config.eos_token_ids[..]), (Some(DataType::Fp32), &[][..]), "{family}");
        let Class { mlp_size, .. } = config.family.class;
        assert_eq!(mlp_size.default == MlpSize::TimesHidden(4), mlp.is_none(), "{family}");
    }
}

#[test]
fn absence_means_the_default_of_what_only_some_classes_have() {
    let attention = |family: &str| read(&smallest(family)).unwrap().attention_config(1);
    // LlamaConfig
    let llama = attention("llama");
    assert_eq!((llama.num_kv, llama.head_dim, llama.qkv_bias, llama.output_bias), (None, None, false, false));
    assert_eq!((llama.rotary_dim, llama.rope_theta, &llama.rope_scaling), (Some(64), 10000.0, &RopeScaling::Default));
    assert!(!llama.local_attention);
    // MistralConfig
    let mistral = attention("mistral");
    assert_eq!((mistral.num_kv, mistral.local_attention, mistral.window_size), (Some(8), true, 4096));
    // GPTNeoXConfig
    let neox = attention("gpt_neox");
    assert_eq!((neox.rotary_dim, neox.rope_theta, neox.qkv_bias), (Some(16), 10000.0, true));
    // GPTJConfig
    assert_eq!((attention("gptj").rotary_dim, attention("gptj").qkv_bias), (Some(64), false));
    // GPTNeoConfig: 24 layers that alternate
    let neo = read(&smallest("gpt_neo")).unwrap();
    let local: Vec<_> = (0..24).map(|layer| neo.attention_config(layer).local_attention).collect();
    assert_eq!(local, [false, true].repeat(12));
    assert_eq!((neo.attention_config(1).window_size, neo.attention_config(1).scale_attention), (256, false));
    // GPT2Config
    let gpt2 = attention("gpt2");
    assert_eq!((gpt2.scale_attention, gpt2.scale_attn_by_inverse_layer_idx), (true, false));
    // OPTConfig
    assert_eq!((attention("opt").qkv_bias, attention("opt").pre_layer_norm), (true, true));
    // BertConfig
    assert_eq!((attention("bert").triangular_masking, attention("bert").pre_layer_norm), (false, false));
}

#[test]
fn flags_of_a_decoder_have_the_defaults_of_their_class() {
    for (family, parallel, mlp_bias) in [
        ("gpt_neox", true, true),
        ("gptj", true, true),
        ("llama", false, false),
        ("mistral", false, false),
        ("opt", false, true),
        ("cohere", true, false),
        ("falcon", true, false),
        ("mpt", false, false),
        ("phi", true, true),
        ("smollm3", false, false),
        ("stablelm", false, false),
        ("starcoder2", false, true),
    ] {
        let config = read(&smallest(family)).unwrap();
        let (fields, paths) = (config.fields().unwrap(), config.family.decoder.unwrap());
        assert_eq!((paths.parallel.of(&fields), paths.mlp_bias.of(&fields)), (Ok(parallel), Ok(mlp_bias)), "{family}");
    }
}

#[test]
fn null_is_absent_unless_the_class_gives_it_a_meaning() {
    for (family, record) in configurations() {
        let config = read(&record).unwrap();
        for key in [
            "vocab_size",
            "layer_norm_eps",
            "layer_norm_epsilon",
            "rms_norm_eps",
            "hidden_act",
            "max_position_embeddings",
        ] {
            let (null, mut absent) = (with(&record, key, Value::Null), record.clone());
            absent.as_object_mut().unwrap().remove(key);
            let (null, absent) = (read(&null).unwrap(), read(&absent).unwrap());
            assert_eq!(null.attention_config(0), absent.attention_config(0), "{family}, {key}");
            assert_eq!((null.vocab_size, &null.activation), (absent.vocab_size, &absent.activation), "{family}, {key}");
        }
        assert_eq!(config.family, read(&record).unwrap().family);
    }
    let mistral = smallest("mistral");
    let attention = |key: &str| read(&with(&mistral, key, Value::Null)).unwrap().attention_config(0);
    assert!(!attention("sliding_window").local_attention);
    assert_eq!(attention("num_key_value_heads").num_kv, None);
}

#[test]
fn sizes_of_a_model_are_required() {
    for family in families::ALL.iter().filter(|family| family.class.sizes.is_none()) {
        let class = &family.class;
        for (key, names) in [
            ("hidden_size", class.hidden_size),
            ("num_attention_heads", class.heads),
            ("num_hidden_layers", class.layers),
        ] {
            let error = message(&with(&smallest(family.name()), key, Value::Null));
            assert!(
                error.contains(&format!("`{}` is missing from the Hugging Face configuration", names[0])),
                "{error}"
            );
        }
    }
}

#[test]
fn two_spellings_agree_or_both_are_named() {
    for (family, one, two, value) in [
        ("gpt2", "n_embd", "hidden_size", 1024),
        ("gpt2", "n_head", "num_attention_heads", 16),
        ("gpt2", "n_positions", "max_position_embeddings", 1024),
        ("gptj", "n_layer", "num_hidden_layers", 24),
        ("bloom", "n_embed", "hidden_size", 1024),
        ("bloom", "n_head", "num_attention_heads", 16),
        ("gpt_neo", "num_heads", "num_attention_heads", 16),
    ] {
        let record = with(&with(&smallest(family), two, value), one, value);
        read(&record).unwrap_or_else(|error| panic!("{family}, {one}: {error}"));
        let error = message(&with(&record, one, 2 * value));
        assert!(error.contains(&format!("`{one}` is {}", 2 * value)), "{error}");
        assert!(error.contains(&format!("`{two}` is {value}")) && error.contains("the same setting"), "{error}");
    }
    let both = json!({ "dtype": "float16", "torch_dtype": "bfloat16" });
    let mut record = smallest("llama");
    record.as_object_mut().unwrap().extend(both.as_object().unwrap().clone());
    assert!(message(&record).contains("`dtype` is \"float16\" and `torch_dtype` is \"bfloat16\""));
}

#[test]
fn an_element_type_that_is_replaced_is_not_read() {
    for dtype in [json!("float64"), json!("auto"), json!(16)] {
        let record = with(&smallest("llama"), "dtype", dtype);
        assert!(message(&record).contains("`dtype` is "), "{}", message(&record));
        let options = ConfigOptions::default().with_dtype(DataType::Bf16);
        let config = HuggingFaceConfig::read(record, &options).unwrap();
        assert_eq!(config.attention_config(0).dtype, Some(DataType::Bf16));
    }
    let message = message(&with(&smallest("llama"), "torch_dtype", "float64"));
    assert!(
        message.contains("`torch_dtype` is \"float64\"") && message.contains("`ConfigOptions::with_dtype`"),
        "{message}"
    );
}

#[test]
fn what_would_change_attention_and_is_not_supported_names_key_and_value() {
    for (family, key, value) in [
        ("llama", "quantization_config", json!({ "quant_method": "gptq" })),
        ("llama", "partial_rotary_factor", json!(0.5)),
        ("llama", "rope_interleaved", json!(true)),
        ("llama", "sliding_window", json!(4096)),
        ("llama", "layer_types", json!(["full_attention"])),
        ("llama", "attention_multiplier", json!(0.1)),
        ("llama", "rotary_emb_base", json!(20000)),
        ("mistral", "attention_bias", json!(true)),
        ("mistral", "window_size", json!(9)),
        ("gpt2", "add_cross_attention", json!(true)),
        ("gpt2", "is_encoder_decoder", json!(true)),
        ("gpt2", "pruned_heads", json!({ "0": [1] })),
        ("gpt2", "intermediate_size", json!(9)),
        ("gptj", "scale_attn_weights", json!(false)),
        ("gptj", "rotary", json!(false)),
        ("gpt_neo", "sliding_window", json!(9)),
        ("gpt_neox", "rope_theta", json!(20000)),
        ("gpt_neox", "partial_rotary_factor", json!(0.5)),
        ("bloom", "n_inner", json!(100)),
        ("bert", "position_embedding_type", json!("relative_key")),
        ("bert", "is_decoder", json!(true)),
        ("roberta", "pad_token_id", json!("1")),
        ("distilbert", "position_embedding_type", json!("relative_key")),
        ("clip_text_model", "eos_token_id", json!([1, 2])),
        ("clip_vision_model", "image_size", json!([224, 224])),
        ("siglip_vision_model", "vision_use_head", json!(false)),
        ("vit", "head_dim", json!(32)),
        ("modernbert", "rope_scaling", json!({ "rope_type": "linear", "factor": 2.0 })),
        ("modernbert", "rope_theta", json!(20000)),
        ("modernbert", "sliding_window", json!(64)),
        ("opt", "layer_norm_elementwise_affine", json!(false)),
        ("cohere2", "position_embedding_type", json!("alibi")),
        ("cohere2", "_sliding_window_pattern", json!(3)),
        ("gpt_oss", "quantization_config", json!({ "quant_method": "mxfp4" })),
        ("gpt_oss", "swiglu_limit", json!(0)),
        ("gpt_oss", "num_experts_per_tok", json!(129)),
        ("mixtral", "attention_bias", json!(true)),
        ("qwen3_moe", "layer_types", json!(["full_attention"])),
        ("qwen3_moe", "mlp_only_layers", json!([-1])),
        ("llama4_text", "moe_layers", json!([1.5])),
        ("deepseek_v2", "topk_method", json!("noaux_tc")),
        ("deepseek_v2", "scoring_func", json!("sigmoid")),
        ("deepseek_v2", "norm_topk_prob", json!(true)),
        ("deepseek_v2", "mlp_bias", json!(true)),
        ("deepseek_v2", "rope_interleave", json!(false)),
        ("deepseek_v2", "moe_layer_freq", json!(2)),
        ("deepseek_v2", "num_nextn_predict_layers", json!(1)),
        ("deepseek_v2", "head_dim", json!(128)),
        ("deepseek_v3", "topk_method", json!("greedy")),
        ("deepseek_v3", "scoring_func", json!("softmax")),
        ("deepseek_v3", "mlp_bias", json!(false)),
        ("deepseek_v3", "n_group", json!(7)),
        ("deepseek_v3", "n_group", json!(256)),
        ("deepseek_v3", "topk_group", json!(9)),
        ("deepseek_v3", "num_key_value_heads", json!(8)),
        ("deepseek_v3", "routed_scaling_factor", json!(0)),
        ("deepseek_v3", "index_topk", json!(2048)),
        ("olmo", "clip_qkv", json!(0)),
        ("falcon", "num_ln_in_parallel_attn", json!(2)),
        ("gemma", "use_bidirectional_attention", json!(true)),
        ("gemma2", "hidden_act", json!("relu")),
        ("gemma2", "query_pre_attn_scalar", json!(0)),
        ("gemma2", "final_logit_softcapping", json!(-1)),
        ("gemma3_text", "partial_rotary_factor", json!(0.5)),
        ("gemma4_text", "enable_moe_block", json!(true)),
        ("gemma4_text", "use_bidirectional_attention", json!("all")),
        ("gemma4_text", "num_kv_shared_layers", json!(25)),
        ("gemma4_text", "num_kv_shared_layers", json!(20)),
        ("gemma4_text", "per_layer_config", json!({ "0": { "head_dim": 8 } })),
        ("gpt_bigcode", "num_key_value_heads", json!(16)),
        ("granite", "logits_scaling", json!(0)),
        ("internlm2", "attention_bias", json!(true)),
        ("ministral3", "layer_types", json!(["full_attention"])),
        ("mpt", "no_bias", json!(false)),
        ("mpt", "logit_scale", json!("inv_sqrt_d_model")),
        ("olmo2", "clip_qkv", json!(8.0)),
        ("phi", "qk_layernorm", json!(true)),
        ("phi3", "lm_head_bias", json!(true)),
        ("qwen2", "use_mrope", json!(true)),
        ("smollm3", "rope_interleaved", json!(true)),
        ("stablelm", "rotary_pct", json!(0.5)),
        ("starcoder2", "mlp_type", json!("llama")),
    ] {
        let record = with(&smallest(family), key, value.clone());
        let error = message(&record);
        assert!(error.contains(&format!("`{key}` is ")), "{family}, {key}: {error}");
    }
    // The caller may know better.
    let record = with(&smallest("llama"), "quantization_config", json!({ "quant_method": "none" }));
    let options = ConfigOptions::default().with_allowed_keys(["quantization_config"]);
    HuggingFaceConfig::read(record, &options).unwrap();
    read(&with(&smallest("gpt2"), "pruned_heads", json!({}))).unwrap();
}

#[test]
fn kinds_of_layers_are_read_or_refused() {
    let mistral = |types: Value| with(&with(&smallest("mistral"), "num_hidden_layers", 3), "layer_types", types);
    let types = json!(["sliding_attention", "full_attention", "sliding_attention"]);
    let config = read(&mistral(types.clone())).unwrap();
    let local: Vec<_> = (0..3).map(|layer| config.attention_config(layer).local_attention).collect();
    assert_eq!(local, [true, false, true]);
    let error = message(&mistral(json!(["full_attention"])));
    assert!(error.contains("`layer_types` describes 1 layers and the model has 3"), "{error}");
    let error = message(&mistral(json!(["full_attention", "chunked_attention", "full_attention"])));
    assert!(error.contains("`layer_types[1]` is \"chunked_attention\", which is not supported"), "{error}");
    let error = message(&mistral(json!(["full_attention", 7, "full_attention"])));
    assert!(error.contains("`layer_types[1]` is 7, and a text is expected"), "{error}");
    let error = message(&with(&mistral(types), "sliding_window", Value::Null));
    assert!(error.contains("`sliding_window` is missing"), "{error}");

    let neo = |key: &str, value: Value| with(&with(&smallest("gpt_neo"), "num_hidden_layers", 2), key, value);
    let error = message(&neo("attention_types", json!([[["global", "local"], 2]])));
    assert!(error.contains("`attention_types` describes 4 layers and the model has 2"), "{error}");
    let error = message(&neo("attention_layers", json!(["global", "sliding"])));
    assert!(error.contains("`attention_layers` is \"sliding\", which is not supported"), "{error}");
    let error = message(&neo("attention_types", json!([["global", 2]])));
    assert!(error.contains("`attention_types` is [\"global\",2], and a list of pairs"), "{error}");
    let both = with(&neo("attention_layers", json!(["global", "local"])), "attention_types", json!([[["global"], 2]]));
    assert!(message(&both).contains("both are the same setting"), "{}", message(&both));
}

#[test]
fn rotary_settings_are_those_that_transformers_prefers() {
    let scaling = |record: &Value| read(record).unwrap().attention_config(0).rope_scaling;
    let llama = with(&smallest("llama"), "max_position_embeddings", 64);
    let yarn = json!({ "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16 });
    let length = |scaling: RopeScaling| match scaling {
        RopeScaling::Yarn { original_max_position_embeddings: original, .. }
        | RopeScaling::Llama3 { original_max_position_embeddings: original, .. } => original,
        other => panic!("{other:?}"),
    };
    let inside = with(&llama, "rope_scaling", yarn);
    assert_eq!(length(scaling(&inside)), 16);
    assert_eq!(length(scaling(&with(&inside, "original_max_position_embeddings", 8))), 8);
    let llama3 = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0 });
    assert_eq!(length(scaling(&with(&llama, "rope_scaling", llama3))), 64);
    // An empty record is none.
    let parameters =
        with(&llama, "rope_parameters", json!({ "rope_type": "linear", "factor": 2.0, "rope_theta": 500.0 }));
    assert_eq!(scaling(&with(&parameters, "rope_scaling", json!({}))), RopeScaling::Linear { factor: 2.0 });
    assert_eq!(read(&parameters).unwrap().attention_config(0).rope_theta, 500.0);
    let error = message(&with(&parameters, "rope_theta", 10000));
    assert!(error.contains("`rope_parameters.rope_theta` is 500.0 and `rope_theta` is 10000"), "{error}");

    let neox =
        |record: Value| read(&with(&smallest("gpt_neox"), "rope_parameters", record)).unwrap().attention_config(0);
    assert_eq!(neox(json!({ "partial_rotary_factor": 0.5 })).rotary_dim, Some(32));
    assert_eq!(neox(json!({ "rope_theta": 500 })).rope_theta, 500.0);

    for (record, expected) in [
        (json!({ "rope_type": "linear", "factor": "4" }), "`rope_scaling.factor` is \"4\", and a number is expected"),
        (
            json!({ "rope_type": "linear", "factor": 4, "fator": 4 }),
            "`rope_scaling.fator` is 4, and the rope scaling `linear`",
        ),
        (json!({ "rope_type": 4 }), "`rope_scaling.rope_type` is 4, and a text is expected"),
        (json!({ "rope_type": "linear", "type": "yarn", "factor": 2 }), "`rope_scaling.type` is \"yarn\""),
        (json!({ "factor": 4.0 }), "`rope_scaling.factor` is 4.0, and the rope scaling `default` does not read it"),
        (json!({ "rope_type": "yarn" }), "rope scaling `yarn`: `factor` is missing"),
        (json!({ "rope_type": "yarn", "factor": 2, "truncate": "no" }), "`rope_scaling.truncate` is \"no\""),
        (
            json!({ "rope_type": "yarn", "factor": 2, "attention_factor": -1 }),
            "`attention_factor` must be a positive number",
        ),
        (
            json!({ "rope_type": "dynamic", "factor": 2, "original_max_position_embeddings": 16 }),
            "`original_max_position_embeddings` is not `max_position_embeddings`, from which dynamic scaling starts",
        ),
        (json!("linear"), "`rope_scaling` is \"linear\", and a record of settings is expected"),
    ] {
        let error = message(&with(&llama, "rope_scaling", record));
        assert!(error.contains(expected), "{error}");
    }
    // `null` there is the growth of the length.
    let grown = json!({ "rope_type": "yarn", "factor": null, "original_max_position_embeddings": 16 });
    let RopeScaling::Yarn { factor, .. } = scaling(&with(&llama, "rope_scaling", grown)) else { panic!() };
    assert_eq!(factor, 4.0);
    let options = ConfigOptions::default().with_allowed_keys(["rope_scaling.fator"]);
    let record = with(&llama, "rope_scaling", json!({ "rope_type": "linear", "factor": 4, "fator": 4 }));
    assert!(HuggingFaceConfig::read(record, &options).is_ok());
}

#[test]
fn a_size_is_a_whole_number() {
    for wrong in [json!(-4), json!(4.5), json!("4"), json!(true), json!([4]), json!(1e30)] {
        let error = message(&with(&smallest("llama"), "num_key_value_heads", wrong));
        assert!(error.contains("`num_key_value_heads` is ") && error.contains("a whole number is expected"), "{error}");
    }
    let ids = |value: Value| read(&with(&smallest("llama"), "eos_token_id", value)).map(|config| config.eos_token_ids);
    assert_eq!((ids(json!(2)), ids(json!([2, 3])), ids(Value::Null)), (Ok(vec![2]), Ok(vec![2, 3]), Ok(vec![])));
    assert!(ids(json!([2, "3"])).unwrap_err().to_string().contains("`eos_token_id` is [2,\"3\"]"));
}
