//! The configuration: DeepSpeed's defaults and spellings, presets, and each error once.

use burn_deepspeed::error::Origin;
use burn_deepspeed::load::HuggingFaceConfig;
use burn_deepspeed::position::rotary::{RopeScaling, Rotary, RotaryLayout, RotaryTable};
use burn_deepspeed::{
    AttentionInit, ConfigError, DataType, DeepSpeedInferenceConfig, KvCacheType, MlpActivation, NormType,
    PositionEncoding, QkNorm, QkNormKind, QkNormWeights, QueryFactor, Window, WindowKind,
};
use serde_json::json;

use crate::common::golden_models;

fn base() -> DeepSpeedInferenceConfig {
    DeepSpeedInferenceConfig::new(64, 4)
}

#[test]
fn defaults_are_deepspeeds() {
    let config = base();
    assert_eq!((config.layer_norm_eps, config.mp_size, config.dtype), (1e-12, 1, None));
    assert_eq!((config.pre_layer_norm, config.norm_type), (true, NormType::LayerNorm));
    assert_eq!((config.scale_attention, config.triangular_masking), (true, true));
    assert_eq!((config.local_attention, config.window_size), (false, 256));
    assert_eq!((config.rotary_dim, config.rotate_half, config.rotate_every_two), (None, false, true));
    assert_eq!((config.return_tuple, config.mlp_after_attn, config.training_mp_size), (true, true, 1));
    assert_eq!((config.max_out_tokens, config.min_out_tokens), (1024, 1));
    assert_eq!((config.num_kv, config.rope_theta, config.invert_mask), (None, 10000.0, true));
    assert_eq!((config.mlp_size(), config.head_size()), (256, 16));
}

#[test]
fn json_of_deepspeed_is_read() {
    let config = DeepSpeedInferenceConfig::from_json_str(
        r#"{ "hidden_size": 64, "intermediate_size": -1, "heads": 4, "num_hidden_layers": 2, "local_rank": -1,
             "dtype": "torch.half", "norm_type": 3, "mlp_act_func_type": "GATED_SILU", "rotary_dim": -1, "num_kv": -1,
             "rope_theta": 500000, "epsilon": 1e-6, "layer_id": 3 }"#,
    )
    .unwrap();
    assert_eq!((config.dtype, config.norm_type), (Some(DataType::Fp16), NormType::RMSNorm));
    assert_eq!(config.mlp_act_func_type, MlpActivation::GatedSILU);
    assert_eq!((config.local_rank, config.rotary_dim, config.num_kv, config.rope_theta), (None, None, None, 500000.0));
    assert_eq!((config.num_hidden_layers, config.layer_norm_eps), (Some(2), 1e-6));
    // a model on one rank ignores the launcher's rank
    assert!(config.with_local_rank(Some(3)).resolve(0).is_ok());
}

#[test]
fn the_types_of_a_cache_are_read_for_both_sides_or_for_each() {
    let read = |text: &str| {
        let text = format!(r#"{{ "hidden_size": 64, "heads": 4, "kv_cache_dtype": {text} }}"#);
        DeepSpeedInferenceConfig::from_json_str(&text).map(|config| config.kv_cache_dtype)
    };
    let (int8, half) = (Some(DataType::Int8), Some(DataType::Fp16));
    assert_eq!(read(r#""int8""#), Ok(KvCacheType::INT8));
    assert_eq!(read("null"), Ok(KvCacheType::default()));
    assert_eq!(read(r#"{ "key": "torch.int8" }"#), Ok(KvCacheType { key: int8, value: None }));
    assert_eq!(read(r#"{ "key": "half", "value": "int8" }"#), Ok(KvCacheType { key: half, value: int8 }));
    let message = |text: &str| read(text).unwrap_err().to_string();
    assert!(message(r#"{ "values": "int8" }"#).contains("`kv_cache_dtype.values` (nearest: `value`)"));
    assert!(message(r#""int4""#).contains("`int4`"));
    assert!(message("8").contains("must be a string"));
}

#[test]
fn the_factor_of_the_scores_is_derived_or_given() {
    let scale = |config: DeepSpeedInferenceConfig| config.resolve(2).unwrap().scale;
    assert_eq!(scale(base()), 0.25);
    assert_eq!(scale(base().with_score_factor(Some(0.5))), 0.5);
    assert_eq!(scale(base().with_scale_attn_by_inverse_layer_idx(true)), 0.25 / 3.0);
    let text = r#"{ "hidden_size": 64, "heads": 4, "score_factor": -1 }"#;
    assert_eq!(DeepSpeedInferenceConfig::from_json_str(text).unwrap().score_factor, None);
}

#[test]
fn a_saved_configuration_is_read_back_equal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let scaling = json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64 });
    let config = base()
        .with_dtype(DataType::Bf16)
        .with_norm_type(NormType::RMSNorm)
        .with_rotary_dim(Some(8))
        .with_num_kv(Some(2))
        .with_quantize_groups(Some(8))
        .with_softcap(Some(30.0))
        .with_score_factor(Some(0.0625))
        .with_sinks(true)
        .with_context_gate(true)
        .with_qk_norm(Some(QkNorm::new(QkNormKind::RmsOfAllHeads, QkNormWeights::PerHead, 1e-6).with_plus_one(true)))
        .with_query_factor(Some(QueryFactor::ministral3(0.1, 16384)))
        .with_kv_cache_dtype(KvCacheType { key: Some(DataType::Int8), value: None })
        .with_rope_scaling(RopeScaling::from_json(&scaling, None).unwrap());
    config.save(&path).unwrap();
    assert_eq!(DeepSpeedInferenceConfig::load(&path).unwrap(), config);
    assert_eq!(serde_json::from_str::<DeepSpeedInferenceConfig>(&config.to_string()).unwrap(), config);
    base().save(&path).unwrap();
    assert_eq!(DeepSpeedInferenceConfig::load(&path).unwrap(), base());
}

#[test]
fn each_mistake_has_its_own_error() {
    let message = |config: DeepSpeedInferenceConfig| config.resolve(0).unwrap_err().to_string();
    let norm = |epsilon| QkNorm::new(QkNormKind::Rms, QkNormWeights::Shared, epsilon);
    let many_heads = || base().with_hidden_size(1 << 40).with_heads(1 << 40);
    let all = [
        (base().with_heads(5), "`hidden_size` 64 is not a multiple of `heads` 5"),
        (base().with_num_kv(Some(3)), "`heads` 4 is not a multiple of `num_kv` 3"),
        (base().with_num_kv(Some(0)), "`num_kv` is 0"),
        (base().with_rotary_dim(Some(7)), "`rotary_dim` 7 is odd; features are rotated in pairs; use 6 or 8"),
        (base().with_rotary_dim(Some(18)), "longer than a head (16); use at most 16"),
        (base().with_rotary_dim(Some(8)).with_rotate_half(true), "set `rotate_every_two` to false"),
        (base().with_rotary_dim(Some(8)).with_rotate_every_two(false), "set the layout of the checkpoint"),
        (base().with_rotary_dim(Some(8)).with_bigscience_bloom(true), "`bigscience_bloom` (ALiBi) and `rotary_dim` 8"),
        (base().with_window_size(0), "`window_size` is 0; it must be at least 1"),
        (
            base().with_window_kind(WindowKind::Symmetric),
            "`window_kind` contradicts `triangular_masking` true; a symmetric window shows later tokens",
        ),
        (
            base().with_window_kind(WindowKind::Chunked).with_triangular_masking(false),
            "`window_kind` contradicts `triangular_masking` false; chunks are causal",
        ),
        (base().with_max_out_tokens(0), "`max_out_tokens` is 0"),
        (base().with_min_out_tokens(2048), "`min_out_tokens` is 2048"),
        (base().with_norm_type(NormType::GroupNorm), "GroupNorm cannot precede a QKV projection"),
        (base().with_layer_norm_eps(f64::NAN), "`layer_norm_eps` is NaN"),
        (base().with_softcap(Some(0.0)), "`softcap` is 0"),
        (base().with_rotary_dim(Some(8)).with_rope_theta(-1.0), "`rope_theta` is -1"),
        (base().with_mp_size(2), "`local_rank` is missing"),
        (base().with_mp_size(2).with_local_rank(Some(2)), "rank 2 is not in a group of 2"),
        (
            base().with_mp_size(3).with_local_rank(Some(0)),
            "4 query heads over 3 ranks; valid: 1, 2, 4; set `mp_size` to one of them, or `uneven_heads` to true",
        ),
        (
            base().with_num_kv(Some(2)).with_mp_size(3).with_local_rank(Some(0)),
            "4 query heads and 2 key/value heads over 3 ranks; valid: 1, 2, 4",
        ),
        (
            base().with_uneven_heads(true).with_mp_size(5).with_local_rank(Some(0)),
            "4 query heads over 5 ranks; valid: 1, 2, 3, 4; set `mp_size` to one of them",
        ),
        // Numbers that a file may hold and no list should.
        (
            many_heads().with_mp_size(3).with_local_rank(Some(0)),
            "over 3 ranks; valid: 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, and 29 more",
        ),
        (
            many_heads().with_uneven_heads(true).with_mp_size(2 << 40).with_local_rank(Some(0)),
            "valid: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, and 1099511627764 more",
        ),
        (base().with_mp_size(0), "`mp_size` is 0"),
        (base().with_qk_norm(Some(norm(-1e-6))), "`qk_norm.epsilon` is -0.000001; it must be a number of at least 0"),
        (base().with_qk_norm(Some(norm(f64::NAN))), "`qk_norm.epsilon` is NaN"),
        (
            base().with_qk_norm(Some(QkNorm { weights: QkNormWeights::None, ..norm(0.0).with_plus_one(true) })),
            "`qk_norm.plus_one` contradicts `qk_norm.weights` none; 1 is added to weights",
        ),
        (
            base().with_qk_norm(Some(
                QkNorm::new(QkNormKind::RmsOfAllHeads, QkNormWeights::None, 0.0).with_after_rotation(true),
            )),
            "`qk_norm.after_rotation` contradicts `qk_norm.kind` rms_of_all_heads",
        ),
        (base().with_query_factor(Some(QueryFactor::llama4(-0.1, 4))), "`query_factor.weight` is -0.1"),
        (base().with_query_factor(Some(QueryFactor::llama4(0.1, 0))), "`query_factor.interval` is 0"),
        (base().with_score_factor(Some(0.0)), "`score_factor` is 0; it must be a number above 0"),
        (base().with_score_factor(Some(f64::INFINITY)), "`score_factor` is inf"),
        (
            base().with_score_factor(Some(0.25)).with_scale_attention(false),
            "`score_factor` contradicts `scale_attention` false; it is the whole factor of the scores",
        ),
        (base().with_score_factor(Some(0.25)).with_use_mup(true), "`score_factor` contradicts `use_mup` true"),
        (
            base().with_score_factor(Some(0.25)).with_scale_attn_by_inverse_layer_idx(true),
            "`score_factor` contradicts `scale_attn_by_inverse_layer_idx` true",
        ),
    ];
    for (config, expected) in all {
        let message = message(config);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn each_mistake_in_a_file_has_its_own_error() {
    let message = |text: &str| DeepSpeedInferenceConfig::from_json_str(text).unwrap_err().to_string();
    let all = [
        (
            r#"{ "hidden_size": 64, "heads": 4, "rotary_dims": 8 }"#,
            "unknown configuration key `rotary_dims` (nearest: `rotary_dim`)",
        ),
        (r#"{ "hidden_size": 64, "heads": 4, "dtype": "fp8" }"#, "`dtype` is `fp8`"),
        (r#"{ "hidden_size": 64, "heads": 4, "norm_type": "BatchNorm" }"#, "use LayerNorm, GroupNorm, RMSNorm"),
        (r#"{ "hidden_size": 64, "heads": 4, "norm_type": 0 }"#, "use LayerNorm, GroupNorm, RMSNorm"),
        (r#"{ "hidden_size": 64, "heads": "four" }"#, "heads: invalid type"),
        (r#"{ "hidden_size": 64, "heads": -2 }"#, "heads: invalid value"),
        (r#"{ "hidden_size": -1, "heads": 4 }"#, "`hidden_size` is missing"),
        (r#"{ "hidden_size": 64 }"#, "`heads` is missing"),
        (r#"{ "hidden_size": 64, "heads": 4, "qk_norm": { "kind": "rms", "weights": "shared" } }"#, "`epsilon`"),
        (r#"{ "hidden_size": 64, "heads": 4, "qk_norm": { "kind": "l2", "weights": "none" } }"#, "variant `l2`"),
        (
            r#"{ "hidden_size": 64, "heads": 4, "qk_norm": { "kind": "rms", "weights": "none", "epsilon": 0, "eps": 0 } }"#,
            "qk_norm.eps: unknown field `eps`",
        ),
        (r#"{ "hidden_size": 64, "heads": 4, "qk_norm": true }"#, "qk_norm: invalid type"),
        (r#"{ "hidden_size": 64, "heads": 4, "query_factor": { "weight": 0.1, "interval": 4 } }"#, "`offset`"),
        (r#"{ "hidden_size": 64, "heads": 4, "score_factor": "0.1" }"#, "score_factor: invalid type"),
        (r#"{ "hidden_size": 64, "heads": 4, "sinks": 1 }"#, "sinks: invalid type"),
        (r#"{ "hidden_size": 64, "heads": 4, "context_gate": "yes" }"#, "context_gate: invalid type"),
        ("[]", "expected an object"),
        ("{", "not valid"),
    ];
    for (text, expected) in all {
        let message = message(text);
        assert!(message.contains(expected), "{message}");
    }
    let error = DeepSpeedInferenceConfig::from_json_file("no/such/file.json").unwrap_err();
    assert!(matches!(error, ConfigError::File { .. }) && error.to_string().contains("no/such/file.json"));
}

#[test]
#[cfg(feature = "ndarray")]
fn what_a_backend_cannot_do_is_refused_at_init() {
    type B = burn_ndarray::NdArray;
    let device = Default::default();
    let error = |config: DeepSpeedInferenceConfig| config.init_self_attention::<B>(0, &device).unwrap_err().to_string();
    assert!(
        error(base().with_dtype(DataType::Fp16))
            .contains("the backend `ndarray` does not store fp16; set `dtype` to fp32")
    );
    let groups = base().with_dtype(DataType::Int8).with_quantize_groups(Some(5));
    assert!(error(groups.clone()).contains("`quantize_groups` 5 does not divide the 192 outputs"));
    assert!(error(groups.with_quantize_groups(Some(0))).contains("`quantize_groups` is 0; it must be at least 1"));
    let fp32 = base().with_dtype(DataType::Fp32);
    assert!(error(fp32.clone().with_use_triton(true)).contains("`use_triton` asks for fused GPU kernels"));
    assert!(fp32.clone().with_bigscience_bloom(true).init_self_attention::<B>(0, &device).is_ok());
    let message = fp32.init_bloom::<B>(0, &device).unwrap_err().to_string();
    assert!(message.contains("`bigscience_bloom` is false; set it to true"), "{message}");
    let message = fp32.clone().with_rotary_dim(Some(8)).init_diffusers::<B>(0, &device).unwrap_err().to_string();
    assert!(message.contains("no position encoding"), "{message}");
    let message = fp32.clone().with_local_attention(true).init_diffusers::<B>(0, &device).unwrap_err().to_string();
    assert!(message.contains("no window"), "{message}");
    assert!(matches!(fp32.init_diffusers_cross::<B>(0, 0, &device), Err(ConfigError::OutOfRange { .. })));
    assert_eq!(
        fp32.init_cache::<B>(1, &device).unwrap_err(),
        ConfigError::Missing { key: "num_hidden_layers", origin: Origin::Program }
    );
    let bf16 = base().with_num_hidden_layers(Some(1)).with_dtype(DataType::Bf16);
    if cfg!(feature = "ndarray") {
        let message = bf16.init_cache::<B>(1, &device).unwrap_err().to_string();
        assert!(message.contains("does not store bf16; set `dtype` to fp32"), "{message}");
    }
}

#[test]
fn rope_scalings_of_hugging_face_are_read_or_refused() {
    let read = |record: serde_json::Value| RopeScaling::from_json(&record, Some(2048));
    assert_eq!(read(json!(null)).unwrap(), RopeScaling::Default);
    assert_eq!(read(json!({ "type": "linear", "factor": 2.0 })).unwrap(), RopeScaling::Linear { factor: 2.0 });
    let dynamic = RopeScaling::Dynamic { factor: 2.0, max_position_embeddings: 2048 };
    assert_eq!(read(json!({ "rope_type": "dynamic", "factor": 2.0 })).unwrap(), dynamic);
    let yarn = read(json!({ "rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.0 })).unwrap();
    let RopeScaling::Yarn { attention_factor, beta_fast, original_max_position_embeddings, .. } = yarn else {
        panic!()
    };
    assert!((attention_factor - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
    assert_eq!((beta_fast, original_max_position_embeddings), (32.0, 2048));
    let message = |record| read(record).unwrap_err().to_string();
    assert!(message(json!({ "rope_type": "axial" })).contains("`axial` is unknown; supported: default, linear"));
    assert!(message(json!({ "rope_type": "linear" })).contains("`factor` is missing"));
    assert!(message(json!({ "rope_type": "linear", "factor": 0.5 })).contains("`factor` must be at least 1"));
    let llama3 = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0 });
    assert!(message(llama3).contains("must be greater than `low_freq_factor`"));
}

#[test]
fn rotary_angles_stay_exact_at_long_range() {
    let rotary =
        Rotary { dim: 4, layout: RotaryLayout::Half, theta: 10000.0, scaling: RopeScaling::Default, sections: None };
    let (frequencies, amplitude) = rotary.frequencies(1);
    assert_eq!((frequencies[0], amplitude), (1.0, 1.0));
    assert!((frequencies[1] - 0.01).abs() < 1e-15);
    for position in [1usize, 255, 257, 16_385, 131_071] {
        let positions = burn_deepspeed::Positions::sequential(&[position], 1);
        let table = RotaryTable::<crate::common::AnyBackend>::new(&rotary, &positions, &Default::default());
        let cosine = f64::from(table.cos.into_data().iter::<f32>().next().unwrap());
        assert!((cosine - (position as f64).cos()).abs() < 1e-7, "{position}");
    }
}

#[test]
fn checkpoints_of_hugging_face_have_presets() {
    for (name, folder) in golden_models() {
        let config = HuggingFaceConfig::from_json_file(folder.join("config.json")).unwrap();
        assert_eq!((config.family.name(), config.layers, config.vocab_size), (name.as_str(), 3, 160));
        assert_eq!(config.attention_config(0).dtype, Some(DataType::Fp32));
    }
}

#[test]
fn older_hugging_face_records_are_read_too() {
    let read = |record| HuggingFaceConfig::from_json(record).unwrap();
    let llama = read(
        json!({ "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 500000.0, "torch_dtype": "bfloat16",
        "max_position_embeddings": 131072, "eos_token_id": [5, 9], "rope_scaling": { "rope_type": "llama3", "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 } }),
    );
    assert_eq!(llama.eos_token_ids, [5, 9]);
    let spec = llama.attention_config(1).resolve(1).unwrap();
    assert_eq!((spec.kv_heads(), spec.dtype), (2, Some(DataType::Bf16)));
    let PositionEncoding::Rotary(Rotary { theta, scaling, layout, dim, .. }) = spec.position else { panic!() };
    assert_eq!((theta, layout, dim), (500000.0, RotaryLayout::Half, 16));
    assert!(matches!(scaling, RopeScaling::Llama3 { original_max_position_embeddings: 8192, .. }));

    let neo =
        read(json!({ "model_type": "gpt_neo", "hidden_size": 64, "num_heads": 4, "num_layers": 4, "window_size": 8,
        "attention_types": [[["global", "local"], 2]] }));
    let windows: Vec<_> = (0..4).map(|layer| neo.attention_config(layer).resolve(layer).unwrap().window).collect();
    let window = Some(Window::Back(8));
    assert_eq!(windows, [None, window, None, window]);
    assert_eq!(neo.attention_config(0).resolve(0).unwrap().scale, 1.0);

    let neox = read(json!({ "model_type": "gpt_neox", "hidden_size": 64, "num_attention_heads": 4,
        "num_hidden_layers": 1, "rotary_pct": 0.5, "rotary_emb_base": 20000 }));
    assert_eq!((neox.attention_config(0).rotary_dim, neox.attention_config(0).rope_theta), (Some(8), 20000.0));

    let bert =
        read(json!({ "model_type": "bert", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1 }));
    let spec = bert.attention_config(0).resolve(0).unwrap();
    assert_eq!((spec.norm, spec.causal), (None, false));

    let message = |record| HuggingFaceConfig::from_json(record).unwrap_err().to_string();
    assert!(message(json!({ "model_type": "mamba" })).contains("`mamba` is not supported"));
    assert!(message(json!({ "model_type": "gpt2", "n_head": 4 })).contains("`n_embd` is missing"));
}
