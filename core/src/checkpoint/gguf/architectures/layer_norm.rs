//! Architectures with LayerNorm.

use super::shared::{ATTENTION_BIAS, LAYER, QK_NORMS, base, biases};
use crate::checkpoint::gguf::architecture::{Architecture, Difference};
use crate::checkpoint::layout::QkvLayout;

pub(super) static STABLELM: Architecture = Architecture {
    name: "stablelm",
    model_type: "stablelm",
    layer: &[&[["attn_q_norm", "self_attn.q_layernorm"], ["attn_k_norm", "self_attn.k_layernorm"]], LAYER],
    differences: &[Difference::QkNorms(["self_attn.q_layernorm", "self_attn.k_layernorm"])],
    settings: |settings| {
        settings.kv_heads()?;
        settings.epsilon("attention.layer_norm_epsilon", "layer_norm_eps")?;
        settings.partial_rope()?;
        biases(settings, &[("attn_q.bias", "use_qkv_bias"), ("attn_q_norm.weight", "qk_layernorm")]);
        // Layers without a norm before the MLP are parallel, whatever the key says: early files always say true.
        settings.flag("use_parallel_residual")?;
        let parallel = !settings.has("ffn_norm.weight");
        settings.set("use_parallel_residual", parallel);
        Ok(())
    },
    ..base()
};

pub(super) static STARCODER2: Architecture = Architecture {
    name: "starcoder2",
    model_type: "starcoder2",
    layer: &[&[["ffn_up", "mlp.c_fc"], ["ffn_down", "mlp.c_proj"]], LAYER],
    settings: |settings| {
        settings.kv_heads()?;
        settings.epsilon("attention.layer_norm_epsilon", "norm_epsilon")?;
        settings.head_dim()?;
        settings.rope()?;
        biases(settings, &[("attn_q.bias", "use_bias")]);
        Ok(())
    },
    ..base()
};

pub(super) static PHI2: Architecture = Architecture {
    name: "phi2",
    model_type: "phi",
    outside: &[["output_norm", "model.final_layernorm"], ["token_embd", "model.embed_tokens"], ["output", "lm_head"]],
    layer: &[&[["attn_output", "self_attn.dense"], ["ffn_up", "mlp.fc1"], ["ffn_down", "mlp.fc2"]], LAYER],
    settings: |settings| {
        settings.kv_heads()?;
        settings.epsilon("attention.layer_norm_epsilon", "layer_norm_eps")?;
        settings.partial_rope()
    },
    ..base()
};

pub(super) static GPT2: Architecture = Architecture {
    name: "gpt2",
    model_type: "gpt2",
    outside: &[
        ["token_embd", "transformer.wte"],
        ["position_embd", "transformer.wpe"],
        ["output_norm", "transformer.ln_f"],
        ["output", "lm_head"],
    ],
    layers: "transformer.h",
    layer: &[&[
        ["attn_norm", "ln_1"],
        ["attn_qkv", "attn.c_attn"],
        ["attn_output", "attn.c_proj"],
        ["ffn_norm", "ln_2"],
        ["ffn_up", "mlp.c_fc"],
        ["ffn_down", "mlp.c_proj"],
    ]],
    differences: &[Difference::OutputInput],
    settings: |settings| {
        settings.rename("intermediate_size", "n_inner");
        settings.epsilon("attention.layer_norm_epsilon", "layer_norm_epsilon")
    },
    ..base()
};

pub(super) static GPT_NEOX: Architecture = Architecture {
    name: "gptneox",
    model_type: "gpt_neox",
    outside: &[
        ["token_embd", "gpt_neox.embed_in"],
        ["output_norm", "gpt_neox.final_layer_norm"],
        ["output", "embed_out"],
    ],
    layers: "gpt_neox.layers",
    layer: &[&[
        ["attn_norm", "input_layernorm"],
        ["attn_qkv", "attention.query_key_value"],
        ["attn_output", "attention.dense"],
        ["ffn_norm", "post_attention_layernorm"],
        ["ffn_up", "mlp.dense_h_to_4h"],
        ["ffn_down", "mlp.dense_4h_to_h"],
    ]],
    differences: &[Difference::Qkv(QkvLayout::Concat)],
    settings: |settings| {
        settings.epsilon("attention.layer_norm_epsilon", "layer_norm_eps")?;
        settings.partial_rope()?;
        let parallel = settings.flag("use_parallel_residual")?.unwrap_or(true);
        settings.set("use_parallel_residual", parallel);
        Ok(())
    },
    ..base()
};

pub(super) static BLOOM: Architecture = Architecture {
    name: "bloom",
    model_type: "bloom",
    outside: &[
        ["token_embd", "transformer.word_embeddings"],
        ["token_embd_norm", "transformer.word_embeddings_layernorm"],
        ["output_norm", "transformer.ln_f"],
        ["output", "lm_head"],
    ],
    layers: "transformer.h",
    layer: &[&[
        ["attn_norm", "input_layernorm"],
        ["attn_qkv", "self_attention.query_key_value"],
        ["attn_output", "self_attention.dense"],
        ["ffn_norm", "post_attention_layernorm"],
        ["ffn_up", "mlp.dense_h_to_4h"],
        ["ffn_down", "mlp.dense_4h_to_h"],
    ]],
    differences: &[Difference::Qkv(QkvLayout::Concat)],
    settings: |settings| {
        settings.rename("max_position_embeddings", "seq_length");
        settings.fixed_sizes()?;
        settings.epsilon("attention.layer_norm_epsilon", "layer_norm_epsilon")
    },
    ..base()
};

pub(super) static MPT: Architecture = Architecture {
    name: "mpt",
    model_type: "mpt",
    outside: &[["token_embd", "transformer.wte"], ["output_norm", "transformer.norm_f"], ["output", "lm_head"]],
    layers: "transformer.blocks",
    layer: &[&[
        ["attn_norm", "norm_1"],
        ["attn_qkv", "attn.Wqkv"],
        ["attn_output", "attn.out_proj"],
        ["ffn_norm", "norm_2"],
        ["ffn_up", "ffn.up_proj"],
        ["ffn_down", "ffn.down_proj"],
    ]],
    settings: |settings| {
        settings.rename("max_position_embeddings", "max_seq_len");
        settings.fixed_sizes()?;
        let alibi = settings.number("attention.max_alibi_bias")?.unwrap_or(0.0);
        if alibi != 8.0 {
            return Err(settings.unsupported("attention.max_alibi_bias", alibi, "8"));
        }
        if let Some(clip) = settings.number("attention.clamp_kqv")?.filter(|&clip| clip > 0.0) {
            settings.set("attn_config", serde_json::json!({ "clip_qkv": clip }));
        }
        settings.epsilon("attention.layer_norm_epsilon", "layer_norm_epsilon")
    },
    ..base()
};

pub(super) static COMMAND_R: Architecture = Architecture {
    name: "command-r",
    model_type: "cohere",
    layer: &[LAYER, QK_NORMS],
    settings: |settings| {
        settings.kv_heads()?;
        settings.epsilon("attention.layer_norm_epsilon", "layer_norm_eps")?;
        settings.rope()?;
        settings.copy_number("logit_scale", "logit_scale")?;
        biases(settings, &[ATTENTION_BIAS, ("attn_q_norm.weight", "use_qk_norm")]);
        Ok(())
    },
    ..base()
};

pub(super) static FALCON: Architecture = Architecture {
    name: "falcon",
    model_type: "falcon",
    outside: &[
        ["token_embd", "transformer.word_embeddings"],
        ["output_norm", "transformer.ln_f"],
        ["output", "lm_head"],
    ],
    layers: "transformer.h",
    layer: &[&[
        // In files with two norms the first is that of the MLP.
        ["attn_norm", "input_layernorm"],
        ["attn_norm_2", "ln_attn"],
        ["attn_qkv", "self_attention.query_key_value"],
        ["attn_output", "self_attention.dense"],
        ["ffn_up", "mlp.dense_h_to_4h"],
        ["ffn_down", "mlp.dense_4h_to_h"],
    ]],
    differences: &[Difference::Qkv(QkvLayout::Concat), Difference::MlpNorm(["ln_mlp", "input_layernorm"])],
    settings: |settings| {
        settings.kv_heads()?;
        settings.rename("intermediate_size", "ffn_hidden_size");
        settings.rename("num_key_value_heads", "num_kv_heads");
        settings.epsilon("attention.layer_norm_epsilon", "layer_norm_epsilon")?;
        settings.rope()?;
        let two_norms = settings.has("attn_norm_2.weight");
        let grouped = two_norms || settings.size("attention.head_count_kv")? != Some(1);
        settings.set("new_decoder_architecture", grouped);
        settings.set("multi_query", true);
        if grouped {
            settings.set("num_ln_in_parallel_attn", if two_norms { 2 } else { 1 });
        }
        Ok(())
    },
    ..base()
};
