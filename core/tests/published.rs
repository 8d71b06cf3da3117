//! Configurations with the keys and spellings that published models have, from several years and tools.
#![allow(clippy::unwrap_used)]

use burn_deepspeed_core::checkpoint::HuggingFaceConfig;
use burn_deepspeed_core::config::DataType;
use burn_deepspeed_core::position::rotary::RopeScaling;
use burn_deepspeed_core::spec::{AttentionSpec, Window};
use serde_json::{Value, json};

fn read(record: Value) -> (HuggingFaceConfig, AttentionSpec) {
    let config = HuggingFaceConfig::from_json(record.clone()).unwrap_or_else(|error| panic!("{record}: {error}"));
    let spec = config.attention_config(0).resolve(0).unwrap();
    (config, spec)
}

#[test]
fn gpt2_and_its_relatives() {
    let summary = |mut record: Value| {
        for (key, value) in [("activation", json!(null)), ("first_dropout", json!(0.1)), ("type", json!("cls_index"))] {
            record[format!("summary_{key}")] = value;
        }
        record
    };
    let (config, spec) = read(summary(json!({
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
        "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2",
        "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "n_special": 0,
        "predict_special_tokens": true, "resid_pdrop": 0.1, "summary_proj_to_labels": true, "summary_use_proj": true,
        "task_specific_params": { "text-generation": { "do_sample": true, "max_length": 50 } }, "vocab_size": 50257
    })));
    assert_eq!(
        (config.mlp_size, config.max_positions, config.eos_token_ids.as_slice()),
        (3072, Some(1024), &[50256][..])
    );
    assert_eq!((spec.head_dim, config.tie_word_embeddings), (64, true));

    let (config, _) = read(json!({
        "_num_labels": 1, "activation_function": "gelu_new", "id2label": { "0": "LABEL_0" }, "label2id": { "LABEL_0": 0 },
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 6, "n_positions": 1024,
        "n_inner": null, "reorder_and_upcast_attn": true, "scale_attn_by_inverse_layer_idx": true, "scale_attn_weights": true,
        "use_cache": false, "gradient_checkpointing": false, "torch_dtype": "float32", "vocab_size": 50257
    }));
    assert!(config.attention_config(3).scale_attn_by_inverse_layer_idx);

    let (config, spec) = read(summary(json!({
        "activation_function": "gelu_new", "architectures": ["GPTJForCausalLM"], "attn_pdrop": 0.0, "bos_token_id": 50256,
        "embd_pdrop": 0.0, "eos_token_id": 50256, "gradient_checkpointing": false, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gptj", "n_embd": 4096, "n_head": 16, "n_inner": null, "n_layer": 28,
        "n_positions": 2048, "resid_pdrop": 0.0, "rotary": true, "rotary_dim": 64, "scale_attn_weights": true,
        "task_specific_params": { "text-generation": { "do_sample": true, "max_length": 50, "temperature": 1.0 } },
        "tie_word_embeddings": false, "tokenizer_class": "GPT2Tokenizer", "transformers_version": "4.18.0.dev0",
        "use_cache": true, "vocab_size": 50400
    })));
    assert_eq!((spec.head_dim, config.mlp_size), (256, 16384));

    let alternating = ["global", "local"].repeat(6);
    let (config, _) = read(summary(json!({
        "activation_function": "gelu_new", "architectures": ["GPTNeoForCausalLM"], "attention_dropout": 0,
        "attention_layers": alternating, "attention_types": [[["global", "local"], 6]], "bos_token_id": 50256,
        "embed_dropout": 0, "eos_token_id": 50256, "gradient_checkpointing": false, "hidden_size": 768,
        "initializer_range": 0.02, "intermediate_size": null, "layer_norm_epsilon": 1e-05, "max_position_embeddings": 2048,
        "model_type": "gpt_neo", "num_heads": 12, "num_layers": 12, "resid_dropout": 0, "use_cache": true,
        "vocab_size": 50257, "window_size": 256
    })));
    assert_eq!(
        (config.attention_config(10).local_attention, config.attention_config(11).local_attention),
        (false, true)
    );
}

#[test]
fn neox_bloom_and_opt() {
    let (config, spec) = read(json!({
        "architectures": ["GPTNeoXForCausalLM"], "attention_bias": true, "attention_dropout": 0.0, "bos_token_id": 0,
        "classifier_dropout": 0.1, "eos_token_id": 0, "hidden_act": "gelu", "hidden_dropout": 0.0, "hidden_size": 512,
        "initializer_range": 0.02, "intermediate_size": 2048, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
        "model_type": "gpt_neox", "num_attention_heads": 8, "num_hidden_layers": 6, "partial_rotary_factor": 0.25,
        "rope_scaling": null, "rope_theta": 10000, "rotary_emb_base": 10000, "rotary_pct": 0.25,
        "tie_word_embeddings": false, "torch_dtype": "float16", "transformers_version": "4.52.0", "use_cache": true,
        "use_parallel_residual": true, "vocab_size": 50304
    }));
    assert_eq!((config.attention_config(0).rotary_dim, spec.dtype), (Some(16), Some(DataType::Fp16)));
    read(json!({
        "architectures": ["GPTNeoXForCausalLM"], "attention_probs_dropout_prob": 0, "hidden_act": "gelu_fast",
        "hidden_dropout_prob": 0, "hidden_size": 6144, "intermediate_size": 24576, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 64, "num_hidden_layers": 44,
        "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": false, "torch_dtype": "float16", "vocab_size": 50432
    }));

    let (config, _) = read(json!({
        "apply_residual_connection_post_layernorm": false, "attention_dropout": 0.0, "architectures": ["BloomForCausalLM"],
        "attention_softmax_in_fp32": true, "bias_dropout_fusion": true, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 3, "unk_token_id": 0, "hidden_dropout": 0.0, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
        "masked_softmax_fusion": true, "model_type": "bloom", "n_embed": 1024, "n_inner": null, "n_layer": 24,
        "num_attention_heads": 16, "offset_alibi": 100, "pretraining_tp": 1, "seq_length": 2048, "skip_bias_add": true,
        "skip_bias_add_qkv": false, "slow_but_exact": false, "transformers_version": "4.20.0", "use_cache": true,
        "vocab_size": 250880
    }));
    assert_eq!((config.mlp_size, config.max_positions, config.activation.as_str()), (4096, Some(2048), "gelu_new"));

    let opt = json!({
        "_name_or_path": "opt-125m", "activation_dropout": 0.0, "activation_function": "relu",
        "architectures": ["OPTForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 2, "do_layer_norm_before": true,
        "dropout": 0.1, "eos_token_id": 2, "ffn_dim": 3072, "hidden_size": 768, "init_std": 0.02, "layerdrop": 0.0,
        "max_position_embeddings": 2048, "model_type": "opt", "num_attention_heads": 12, "num_hidden_layers": 12,
        "pad_token_id": 1, "prefix": "</s>", "torch_dtype": "float16", "use_cache": true, "vocab_size": 50272,
        "word_embed_proj_dim": 768
    });
    read(opt.clone());
    let mut galactica = opt;
    for (key, value) in [
        ("learned_embeddings", true),
        ("scale_embeddings", false),
        ("enable_bias", false),
        ("_remove_final_layer_norm", false),
    ] {
        galactica[key] = value.into();
    }
    assert!(!read(galactica).0.attention_config(0).qkv_bias);
}

#[test]
fn llama_mistral_and_what_tools_add() {
    let (config, spec) = read(json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": { "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3" },
        "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.45.0.dev0",
        "unsloth_fixed": true, "use_cache": true, "vocab_size": 128256
    }));
    assert_eq!((spec.kv_heads(), config.eos_token_ids.len(), config.attention_config(0).rope_theta), (8, 3, 500000.0));

    let llama = json!({
        "_name_or_path": "some/where", "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008,
        "max_position_embeddings": 2048, "max_sequence_length": 2048, "model_type": "llama", "num_attention_heads": 32,
        "num_hidden_layers": 32, "pad_token_id": 0, "rms_norm_eps": 1e-06, "rope_scaling": null, "tie_word_embeddings": false,
        "torch_dtype": "float16", "transformers_version": "4.28.0", "use_cache": true, "vocab_size": 32000
    });
    assert_eq!(read(llama.clone()).1.kv_heads(), 32);
    for (scaling, expected) in [
        (json!({ "factor": 4.0, "type": "linear" }), RopeScaling::Linear { factor: 4.0 }),
        (
            json!({ "factor": 2.0, "type": "dynamic" }),
            RopeScaling::Dynamic { factor: 2.0, max_position_embeddings: 2048 },
        ),
    ] {
        let mut record = llama.clone();
        record["rope_scaling"] = scaling;
        assert_eq!(read(record).0.attention_config(0).rope_scaling, expected);
    }
    let mut yarn = llama.clone();
    yarn["rope_scaling"] =
        json!({ "factor": 16.0, "finetuned": true, "original_max_position_embeddings": 4096, "type": "yarn" });
    yarn["auto_map"] = json!({ "AutoModelForCausalLM": "modeling_llama_yarn.LlamaForCausalLM" });
    assert!(matches!(read(yarn).0.attention_config(0).rope_scaling, RopeScaling::Yarn { factor: 16.0, .. }));
    let mut small = llama;
    small["is_llama_config"] = true.into();
    small["rope_interleaved"] = false.into();
    small["transformers.js_config"] = json!({ "kv_cache_dtype": { "q4f16": "float16" } });
    small["_attn_implementation_autoset"] = true.into();
    read(small);

    let mistral = |window: Value| {
        read(json!({
            "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
            "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
            "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32,
            "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": window,
            "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.42.0", "use_cache": true,
            "vocab_size": 32768
        }))
        .1
    };
    assert_eq!((mistral(json!(4096)).window, mistral(json!(null)).window), (Some(Window::Back(4096)), None));
}

#[test]
fn sentence_encoders() {
    for extra in [
        json!({ "_name_or_path": "nreimers/MiniLM-L6-H384-uncased", "gradient_checkpointing": false }),
        json!({ "classifier_dropout": null, "id2label": { "0": "LABEL_0" }, "label2id": { "LABEL_0": 0 }, "torch_dtype": "float32" }),
        json!({ "directionality": "bidi", "pooler_fc_size": 768, "pooler_num_attention_heads": 12, "pooler_num_fc_layers": 3,
            "pooler_size_per_head": 128, "pooler_type": "first_token_transform" }),
    ] {
        let mut record = json!({
            "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1, "hidden_size": 384, "initializer_range": 0.02, "intermediate_size": 1536,
            "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 12,
            "num_hidden_layers": 6, "pad_token_id": 0, "position_embedding_type": "absolute", "transformers_version": "4.8.2",
            "type_vocab_size": 2, "use_cache": true, "vocab_size": 30522
        });
        record.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let (config, spec) = read(record);
        assert_eq!((config.learned_positions(), spec.causal), (Some(512), false));
    }
}
