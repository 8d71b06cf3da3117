//! Configurations of encoder-decoders are read as strictly as those of one stack, and absence means the default of the class.
#![allow(clippy::unwrap_used)]
#![recursion_limit = "256"]

use std::path::PathBuf;

use burn_deepspeed_core::checkpoint::families::{self, EncoderDecoder};
use burn_deepspeed_core::checkpoint::{
    Checkpoint, CheckpointWriter, ConfigOptions, EncoderDecoderConfig, FeatureShape, HuggingFaceConfig,
};
use burn_deepspeed_core::config::{DataType, NormType};
use burn_deepspeed_core::element::ElementType;
use burn_deepspeed_core::error::{ConfigError, WeightError};
use serde_json::{Value, json};

const GOLDEN: [&str; 5] = ["bart", "mt5", "t5", "t5_gated", "whisper"];

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/seq2seq").join(name)
}

fn golden(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder(name).join("config.json")).unwrap()).unwrap()
}

fn read(record: &Value) -> Result<EncoderDecoderConfig, ConfigError> {
    EncoderDecoderConfig::from_json(record.clone())
}

fn message(record: &Value) -> String {
    read(record).unwrap_err().to_string()
}

fn with(record: &Value, keys: Value) -> Value {
    let mut record = record.clone();
    record.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    record
}

/// A configuration with the sizes that are required: 3 layers in the encoder, 5 in the decoder.
fn smallest(family: &str) -> Value {
    match family {
        "t5" | "mt5" => {
            json!({ "model_type": family, "d_model": 48, "num_heads": 6, "num_layers": 3, "num_decoder_layers": 5 })
        }
        _ => json!({
            "model_type": family, "d_model": 48, "encoder_layers": 3, "decoder_layers": 5, "encoder_attention_heads": 6,
            "decoder_attention_heads": 4
        }),
    }
}

#[test]
fn every_family_has_a_checkpoint_whose_keys_are_known() {
    for family in families::ENCODER_DECODERS {
        assert!(GOLDEN.iter().any(|name| golden(name)["model_type"] == family.name()), "{}", family.name());
    }
    for name in GOLDEN {
        let record = golden(name);
        let config = read(&record).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((config.encoder.layers, config.decoder.layers, config.hidden_size()), (2, 3, 24), "{name}");
        let strange = with(&record, json!({ "atention_sinks": 4 }));
        let error = message(&strange);
        let class = config.family.class.name;
        assert!(error.starts_with(&format!("`atention_sinks` is 4, and {class} does not read it")), "{name}: {error}");
        let options = ConfigOptions::default().with_allowed_keys(["atention_sinks"]).with_dtype(DataType::Fp16);
        let allowed = EncoderDecoderConfig::read(strange, &options).unwrap();
        assert_eq!(allowed.decoder.attention.dtype, Some(DataType::Fp16));
    }
}

#[test]
fn every_key_that_is_read_has_one_type() {
    for name in GOLDEN {
        let record = golden(name);
        for key in read(&record).unwrap().family.read_keys() {
            let error = message(&with(&record, json!({ key: ["text"] })));
            assert!(error.contains(&format!("`{key}` is ")), "{name}, {key}: {error}");
        }
        let error = message(&with(&record, json!({ "decoder_start_token_id": "2" })));
        assert!(error.contains("`decoder_start_token_id` is \"2\""), "{error}");
    }
}

#[test]
fn every_key_but_the_sizes_may_be_absent() {
    for name in GOLDEN {
        let record = golden(name);
        for key in record.as_object().unwrap().keys().filter(|key| *key != "model_type") {
            let mut absent = record.clone();
            absent.as_object_mut().unwrap().remove(key);
            let required = match name {
                "bart" | "whisper" => &[
                    "d_model",
                    "encoder_layers",
                    "decoder_layers",
                    "encoder_attention_heads",
                    "decoder_attention_heads",
                ][..],
                _ => &["d_model", "num_layers", "num_heads"],
            };
            match read(&absent) {
                Ok(_) => assert!(!required.contains(&key.as_str()), "{name}: {key}"),
                Err(ConfigError::Missing { key: missing, .. }) => {
                    assert_eq!((missing, required.contains(&missing)), (&**key, true))
                }
                // The default of the class does not fit the distances of this small model.
                Err(ConfigError::OutOfRange { key: "relative_attention_max_distance", .. })
                    if key == "relative_attention_num_buckets" => {}
                // They repeat what this key says.
                Err(ConfigError::Unsupported { key: other, .. })
                    if key == "feed_forward_proj" && ["dense_act_fn", "is_gated_act"].contains(&&*other) => {}
                Err(other) => panic!("{name}, {key}: {other}"),
            }
        }
    }
}

#[test]
fn absence_means_the_default_of_the_class() {
    let of = |family: &str| read(&smallest(family)).unwrap();
    // T5Config
    let t5 = of("t5");
    assert_eq!((t5.vocab_size, t5.encoder.mlp_size, t5.decoder.mlp_size), (32128, 2048, 2048));
    assert_eq!((&*t5.activation, t5.gated, t5.tied, t5.features), ("relu", false, true, None));
    assert_eq!((t5.start_token, &t5.eos_token_ids[..]), (None, &[1][..]));
    assert_eq!((t5.embedding_factor, t5.output_factor, t5.norms_after()), (1.0, 1.0 / 48f64.sqrt(), false));
    let attention = &t5.decoder.attention;
    assert_eq!(
        (attention.head_dim, attention.layer_norm_eps, attention.norm_type),
        (Some(64), 1e-6, NormType::RMSNorm)
    );
    assert!(!attention.scale_attention && !attention.qkv_bias && !attention.output_bias);
    assert_eq!(t5.encoder.positions, None);
    let [encoder, decoder] = [t5.encoder.buckets.unwrap(), t5.decoder.buckets.unwrap()];
    // The last bucket begins at a distance of 128; keys after a query have buckets in the encoder alone.
    assert_eq!(
        (encoder.of(-200), encoder.of(-100), encoder.of(3), decoder.of(-200), decoder.of(3)),
        (15, 15, 19, 31, 0)
    );
    assert_eq!(encoder.count(), 32);
    // MT5Config
    let mt5 = of("mt5");
    assert_eq!((mt5.vocab_size, mt5.encoder.mlp_size, mt5.decoder.mlp_size), (250_112, 1024, 1024));
    assert_eq!((&*mt5.activation, mt5.gated, mt5.tied), ("gelu_new", true, true));
    assert_eq!((mt5.start_token, &mt5.eos_token_ids[..]), (Some(0), &[1][..]));
    assert_eq!((mt5.embedding_factor, mt5.output_factor), (1.0, 1.0));
    assert_eq!((mt5.encoder.buckets, mt5.decoder.buckets), (t5.encoder.buckets, t5.decoder.buckets));
    assert_eq!(mt5.decoder.attention.clone().with_intermediate_size(Some(2048)), t5.decoder.attention);
    // BartConfig
    let bart = of("bart");
    assert_eq!((bart.vocab_size, bart.encoder.mlp_size, bart.decoder.mlp_size), (50265, 4096, 4096));
    assert_eq!((bart.encoder.positions, bart.decoder.positions), (Some(1024), Some(1024)));
    assert_eq!((&*bart.activation, bart.gated, bart.tied, bart.features), ("gelu", false, true, None));
    assert_eq!((bart.start_token, &bart.eos_token_ids[..]), (Some(2), &[2][..]));
    assert_eq!((bart.embedding_factor, bart.output_factor, bart.norms_after()), (1.0, 1.0, true));
    assert!(bart.encoder.attention.key_bias && bart.encoder.attention.scale_attention);
    // WhisperConfig
    let whisper = of("whisper");
    assert_eq!((whisper.vocab_size, whisper.encoder.mlp_size, whisper.decoder.mlp_size), (51865, 1536, 1536));
    assert_eq!((whisper.encoder.positions, whisper.decoder.positions), (Some(1500), Some(448)));
    assert_eq!(whisper.features, Some(FeatureShape { bins: 80, frames: 3000 }));
    assert_eq!((whisper.start_token, &whisper.eos_token_ids[..]), (Some(50257), &[50256][..]));
    assert_eq!((&*whisper.activation, whisper.tied, whisper.norms_after()), ("gelu", true, false));
    assert!(!whisper.encoder.attention.key_bias && whisper.decoder.attention.qkv_bias);
    for config in [t5, mt5, bart, whisper] {
        assert_eq!((config.encoder.layers, config.decoder.layers), (3, 5));
        assert!(!config.encoder.attention.triangular_masking && config.decoder.attention.triangular_masking);
        assert_eq!(config.decoder.attention.num_hidden_layers, Some(5));
        assert_eq!(config.decoder.attention.dtype, Some(DataType::Fp32));
    }
}

#[test]
fn settings_of_the_two_stacks_are_their_own() {
    let keys = json!({
        "num_hidden_layers": 3, "num_attention_heads": 6, "encoder_ffn_dim": 7, "decoder_ffn_dim": 9, "scale_embedding": true,
        "activation_function": "relu", "tie_word_embeddings": false
    });
    let config = read(&with(&smallest("bart"), keys)).unwrap();
    assert_eq!((config.encoder.attention.heads, config.decoder.attention.heads), (6, 4));
    assert_eq!((config.encoder.mlp_size, config.decoder.mlp_size), (7, 9));
    assert_eq!((config.embedding_factor, config.tied, &*config.activation), (48f64.sqrt(), false, "relu"));
    // The general names are those of the encoder.
    let error = message(&with(&smallest("bart"), json!({ "num_hidden_layers": 5 })));
    assert!(error.contains("`encoder_layers` is 3 and `num_hidden_layers` is 5"), "{error}");
    let error = message(&with(&smallest("whisper"), json!({ "num_attention_heads": 4 })));
    assert!(error.contains("`encoder_attention_heads` is 6 and `num_attention_heads` is 4"), "{error}");
    let mut record = smallest("t5");
    record.as_object_mut().unwrap().remove("num_decoder_layers");
    assert_eq!(read(&record).unwrap().decoder.layers, 3);
}

#[test]
fn the_mlp_of_t5_is_what_its_three_keys_agree_on() {
    let blocks = |keys: Value| {
        let config = read(&with(&smallest("t5"), keys)).unwrap();
        (config.activation, config.gated)
    };
    assert_eq!(blocks(json!({ "feed_forward_proj": "gated-gelu" })), ("gelu_new".into(), true));
    assert_eq!(blocks(json!({ "feed_forward_proj": "gated-silu", "dense_act_fn": "silu" })), ("silu".into(), true));
    assert_eq!(blocks(json!({ "feed_forward_proj": "gelu", "is_gated_act": false })), ("gelu".into(), false));
    for (keys, expected) in [
        (json!({ "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu" }), "`dense_act_fn` is \"gelu\""),
        (json!({ "dense_act_fn": "gelu_new" }), "`dense_act_fn` is \"gelu_new\""),
        (json!({ "is_gated_act": true }), "`is_gated_act` is true"),
        (json!({ "feed_forward_proj": "gated-gelu-new" }), "`feed_forward_proj` is \"gated-gelu-new\""),
        (json!({ "feed_forward_proj": "half-relu" }), "`feed_forward_proj` is \"half-relu\""),
    ] {
        let error = message(&with(&smallest("t5"), keys));
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn outputs_of_t5_are_scaled_unless_a_key_says_otherwise() {
    let factor = |keys: Value| read(&with(&smallest("t5"), keys)).unwrap().output_factor;
    let scaled = 1.0 / 48f64.sqrt();
    for (keys, expected) in [
        (json!({ "tie_word_embeddings": false }), 1.0),
        (json!({ "tie_word_embeddings": true }), scaled),
        (json!({ "tie_word_embeddings": null }), scaled),
        (json!({ "tie_word_embeddings": true, "scale_decoder_outputs": false }), 1.0),
        (json!({ "tie_word_embeddings": false, "scale_decoder_outputs": true }), scaled),
    ] {
        assert_eq!(factor(keys.clone()), expected, "{keys}");
    }
}

#[test]
fn what_is_not_supported_is_named() {
    for (family, keys, expected) in [
        ("bart", json!({ "normalize_before": true }), "`normalize_before` is true"),
        ("bart", json!({ "normalize_embedding": false }), "`normalize_embedding` is false"),
        ("bart", json!({ "extra_pos_embeddings": 1 }), "`extra_pos_embeddings` is 1"),
        ("bart", json!({ "is_encoder_decoder": false }), "`is_encoder_decoder` is false"),
        ("whisper", json!({ "add_cross_attention": true }), "`add_cross_attention` is true"),
        ("t5", json!({ "pruned_heads": { "0": [1] } }), "`pruned_heads` is {\"0\":[1]}"),
        ("t5", json!({ "num_heads": 0 }), "`num_heads` is 0"),
        ("t5", json!({ "relative_attention_num_buckets": 2 }), "`relative_attention_num_buckets` is 2"),
        ("t5", json!({ "scale_embedding": true }), "`scale_embedding` is true, and T5Config does not read it"),
        ("whisper", json!({ "encoder_attention_heads": 7 }), "`hidden_size` 48 is not a multiple of `heads` 7"),
    ] {
        let error = message(&with(&smallest(family), keys));
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn tokens_that_start_and_end_a_text_come_from_both_files() {
    let tokens = |keys: Value| {
        let config = read(&with(&smallest("bart"), keys)).unwrap();
        (config.start_token, config.eos_token_ids)
    };
    assert_eq!(tokens(json!({ "decoder_start_token_id": 7, "eos_token_id": [3, 4] })), (Some(7), vec![3, 4]));
    assert_eq!(tokens(json!({ "decoder_start_token_id": null, "eos_token_id": null })), (None, vec![]));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(&path, smallest("bart").to_string()).unwrap();
    let generation = folder.path().join("generation_config.json");
    let tokens = |record: Value| {
        std::fs::write(&generation, record.to_string()).unwrap();
        EncoderDecoderConfig::from_json_file(&path).map(|config| (config.start_token, config.eos_token_ids))
    };
    assert_eq!(tokens(json!({ "decoder_start_token_id": 9, "eos_token_id": 5 })), Ok((Some(9), vec![5])));
    assert_eq!(tokens(json!({})), Ok((Some(2), vec![])));
    let error = tokens(json!({ "decoder_start_token_id": -1 })).unwrap_err().to_string();
    assert!(error.contains("generation_config.json") && error.contains("`decoder_start_token_id` is -1"), "{error}");
}

#[test]
fn other_models_and_their_programs_are_named() {
    let error = HuggingFaceConfig::from_json(golden("t5")).unwrap_err().to_string();
    assert!(error.contains("`model_type` is \"t5\", an encoder-decoder") && error.contains("`seq2seq`"), "{error}");
    let error = message(&json!({ "model_type": "bert" }));
    assert!(error.contains("`model_type` is \"bert\"") && error.contains("`embed` runs an encoder"), "{error}");
    let error = message(&json!({ "model_type": "llama" }));
    assert!(error.contains("the example `generate` runs a decoder"), "{error}");
    let error = read(&json!({ "model_type": "marian" })).unwrap_err();
    let supported = families::ENCODER_DECODERS.iter().copied().map(EncoderDecoder::name).collect();
    assert_eq!(error, ConfigError::UnknownModelType { model_type: "marian".into(), supported });
    assert!(matches!(read(&json!({})).unwrap_err(), ConfigError::Missing { key: "model_type", .. }));
}

/// A file may state any number of layers, and of everything else: nothing of that size is allocated.
#[test]
fn sizes_are_compared_with_the_checkpoint() {
    let many = u64::MAX >> 2;
    for (name, key, missing) in [
        ("t5", "num_layers", "encoder.block.2.layer.0.SelfAttention.o.weight"),
        ("t5", "num_decoder_layers", "decoder.block.3.layer.0.SelfAttention.o.weight"),
        ("bart", "encoder_layers", "model.encoder.layers.2.self_attn.out_proj.weight"),
        ("whisper", "decoder_layers", "model.decoder.layers.3.self_attn.out_proj.weight"),
    ] {
        let checkpoint = Checkpoint::open(folder(name).join("model.safetensors")).unwrap();
        let record = golden(name);
        read(&record).unwrap().check(&checkpoint).unwrap();
        let error = read(&with(&record, json!({ key: many }))).unwrap().check(&checkpoint).unwrap_err();
        assert!(matches!(&error, WeightError::Missing { name, .. } if name == missing), "{error}");
    }
    let whisper = read(&with(&golden("whisper"), json!({ "max_source_positions": u64::MAX }))).unwrap();
    assert_eq!(whisper.features.unwrap().frames, usize::MAX);
    // A bare model has the names without what the class around it puts before them.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bare.safetensors");
    let mut writer = CheckpointWriter::default();
    writer.insert("encoder.layers.0.fc1.bias", ElementType::F32, vec![1], vec![0; 4]);
    writer.save(&path).unwrap();
    assert_eq!(read(&golden("bart")).unwrap().prefix(&Checkpoint::open(&path).unwrap()), "");
}

/// The keys and spellings that published models have, from several years.
#[test]
fn published_keys_are_known() {
    let t5 = json!({
        "architectures": ["T5WithLMHeadModel"], "d_ff": 2048, "d_kv": 64, "d_model": 512, "decoder_start_token_id": 0,
        "dropout_rate": 0.1, "eos_token_id": 1, "initializer_factor": 1.0, "is_encoder_decoder": true,
        "layer_norm_epsilon": 1e-06, "model_type": "t5", "n_positions": 512, "num_heads": 8, "num_layers": 6, "output_past": true,
        "pad_token_id": 0, "relative_attention_num_buckets": 32, "use_cache": true, "vocab_size": 32128,
        "task_specific_params": { "translation_en_to_de": { "max_length": 300, "num_beams": 4 } }
    });
    let config = read(&t5).unwrap();
    assert_eq!(
        (config.decoder.layers, config.gated, config.start_token, config.output_factor < 1.0),
        (6, false, Some(0), true)
    );
    let flan = json!({
        "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new", "is_gated_act": true, "num_decoder_layers": 8,
        "relative_attention_max_distance": 128, "tie_word_embeddings": false, "torch_dtype": "float32", "d_ff": 1024,
        "num_layers": 8, "num_heads": 6, "classifier_dropout": 0.0
    });
    let config = read(&with(&t5, flan)).unwrap();
    // Six heads of 64 features do not span the hidden size.
    let attention = &config.encoder.attention;
    assert_eq!((attention.heads * attention.head_size(), config.hidden_size()), (384, 512));
    assert_eq!((config.gated, config.output_factor, config.tied), (true, 1.0, true));

    let bart = json!({
        "_num_labels": 3, "activation_dropout": 0.0, "activation_function": "gelu", "add_bias_logits": false,
        "add_final_layer_norm": false, "attention_dropout": 0.0, "bos_token_id": 0, "classif_dropout": 0.0,
        "classifier_dropout": 0.0, "d_model": 1024, "decoder_attention_heads": 16, "decoder_ffn_dim": 4096,
        "decoder_layerdrop": 0.0, "decoder_layers": 12, "decoder_start_token_id": 2, "dropout": 0.1, "early_stopping": true,
        "encoder_attention_heads": 16, "encoder_ffn_dim": 4096, "encoder_layerdrop": 0.0, "encoder_layers": 12,
        "eos_token_id": 2, "extra_pos_embeddings": 2, "force_bos_token_to_be_generated": true, "forced_bos_token_id": 0,
        "forced_eos_token_id": 2, "gradient_checkpointing": false, "init_std": 0.02, "is_encoder_decoder": true,
        "length_penalty": 2.0, "max_length": 142, "max_position_embeddings": 1024, "min_length": 56, "model_type": "bart",
        "no_repeat_ngram_size": 3, "normalize_before": false, "normalize_embedding": true, "num_beams": 4,
        "num_hidden_layers": 12, "output_past": true, "pad_token_id": 1, "prefix": " ", "scale_embedding": false,
        "static_position_embeddings": false, "task_specific_params": {}, "use_cache": true, "vocab_size": 50264
    });
    let config = read(&bart).unwrap();
    assert_eq!((config.vocab_size, config.encoder.positions, config.embedding_factor), (50264, Some(1024), 1.0));

    let whisper = json!({
        "activation_dropout": 0.0, "activation_function": "gelu", "apply_spec_augment": false, "attention_dropout": 0.0,
        "begin_suppress_tokens": [220, 50257], "bos_token_id": 50257, "classifier_proj_size": 256, "d_model": 1280,
        "decoder_attention_heads": 20, "decoder_ffn_dim": 5120, "decoder_layerdrop": 0.0, "decoder_layers": 32,
        "decoder_start_token_id": 50258, "dropout": 0.0, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
        "encoder_layerdrop": 0.0, "encoder_layers": 32, "eos_token_id": 50257, "forced_decoder_ids": [[1, 50259]],
        "init_std": 0.02, "is_encoder_decoder": true, "mask_feature_length": 10, "mask_feature_min_masks": 0,
        "mask_feature_prob": 0.0, "mask_time_length": 10, "mask_time_min_masks": 2, "mask_time_prob": 0.05,
        "max_length": 448, "max_source_positions": 1500, "max_target_positions": 448, "median_filter_width": 7,
        "model_type": "whisper", "num_hidden_layers": 32, "num_mel_bins": 128, "pad_token_id": 50256,
        "scale_embedding": false, "suppress_tokens": [1, 2, 7], "torch_dtype": "float16", "use_cache": true,
        "use_weighted_layer_sum": false, "vocab_size": 51866
    });
    let config = read(&whisper).unwrap();
    assert_eq!(config.features, Some(FeatureShape { bins: 128, frames: 3000 }));
    assert_eq!((config.start_token, config.decoder.attention.dtype), (Some(50258), Some(DataType::Fp16)));
}
