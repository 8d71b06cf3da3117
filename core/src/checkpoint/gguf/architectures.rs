//! Every architecture that is read.

use super::architecture::{Architecture, Difference, Names};
use super::settings::Settings;
use crate::checkpoint::layout::QkvLayout;
use crate::error::ConfigError;

/// Every architecture.
pub(super) const ALL: &[&Architecture] = &[
    &LLAMA,
    &QWEN2,
    &QWEN3,
    &GEMMA3,
    &GEMMA2,
    &GEMMA,
    &PHI3,
    &GRANITE,
    &SMOLLM3,
    &OLMO2,
    &STABLELM,
    &STARCODER2,
    &PHI2,
    &GPT2,
    &GPT_NEOX,
];

const OUTSIDE: Names = &[["token_embd", "model.embed_tokens"], ["output_norm", "model.norm"], ["output", "lm_head"]];

const LAYER: Names = &[
    ["attn_norm", "input_layernorm"],
    ["attn_q", "self_attn.q_proj"],
    ["attn_k", "self_attn.k_proj"],
    ["attn_v", "self_attn.v_proj"],
    ["attn_output", "self_attn.o_proj"],
    ["ffn_norm", "post_attention_layernorm"],
    ["ffn_gate", "mlp.gate_proj"],
    ["ffn_up", "mlp.up_proj"],
    ["ffn_down", "mlp.down_proj"],
];

const QK_NORMS: Names = &[["attn_q_norm", "self_attn.q_norm"], ["attn_k_norm", "self_attn.k_norm"]];

/// Norms before and after each branch.
const FOUR_NORMS: Names = &[
    ["post_attention_norm", "post_attention_layernorm"],
    ["ffn_norm", "pre_feedforward_layernorm"],
    ["post_ffw_norm", "post_feedforward_layernorm"],
];

/// LLaMA with everything that its converter writes.
static LLAMA: Architecture = Architecture {
    name: "llama",
    model_type: "llama",
    outside: OUTSIDE,
    layers: "model.layers",
    layer: &[LAYER],
    pairs: true,
    differences: &[],
    settings: |settings| {
        decoder(settings)?;
        biases(settings, &[("attn_q.bias", "attention_bias"), ("ffn_up.bias", "mlp_bias")]);
        Ok(())
    },
};

static QWEN2: Architecture =
    Architecture { name: "qwen2", model_type: "qwen2", pairs: false, settings: decoder, ..base() };

static QWEN3: Architecture = Architecture {
    name: "qwen3",
    model_type: "qwen3",
    layer: &[LAYER, QK_NORMS],
    settings: |settings| {
        biases(settings, &[("attn_q.bias", "attention_bias")]);
        decoder(settings)
    },
    ..base()
};

static GEMMA: Architecture = Architecture {
    name: "gemma",
    model_type: "gemma",
    differences: &[Difference::WholeNorms],
    settings: decoder,
    ..base()
};

static GEMMA2: Architecture = Architecture {
    name: "gemma2",
    model_type: "gemma2",
    layer: &[FOUR_NORMS, LAYER],
    differences: &[Difference::WholeNorms],
    settings: |settings| {
        decoder(settings)?;
        query_scalar(settings, 46)?;
        settings.copy_number("attn_logit_softcapping", "attn_logit_softcapping")?;
        settings.copy_number("final_logit_softcapping", "final_logit_softcapping")?;
        if let Some(window) = settings.size("attention.sliding_window")? {
            settings.set("sliding_window", window);
        }
        Ok(())
    },
    ..base()
};

static GEMMA3: Architecture = Architecture {
    name: "gemma3",
    model_type: "gemma3_text",
    layer: &[FOUR_NORMS, QK_NORMS, LAYER],
    differences: &[Difference::WholeNorms],
    settings: |settings| {
        settings.kv_heads()?;
        settings.rms_epsilon()?;
        settings.head_dim()?;
        query_scalar(settings, 62)?;
        settings.copy_number("final_logit_softcapping", "final_logit_softcapping")?;
        let window = settings.size("attention.sliding_window")?;
        let window = window.ok_or_else(|| settings.unsupported("attention.sliding_window", "absent", "a window"))?;
        settings.set("sliding_window", window);
        // Layers with a window have a base of their own, and no scaling.
        let local = settings.number("rope.freq_base_swa")?.unwrap_or(10000.0);
        settings.rope()?;
        let full = settings.rope_record()?;
        let sliding = serde_json::json!({ "rope_type": "default", "rope_theta": local });
        settings.set("rope_parameters", serde_json::json!({ "full_attention": full, "sliding_attention": sliding }));
        Ok(())
    },
    ..base()
};

static PHI3: Architecture = Architecture {
    name: "phi3",
    model_type: "phi3",
    layer: &[&[["attn_qkv", "self_attn.qkv_proj"], ["ffn_up", "mlp.gate_up_proj"]], LAYER],
    settings: |settings| {
        settings.kv_heads()?;
        settings.rms_epsilon()?;
        settings.partial_rope()?;
        let window = settings.size("attention.sliding_window")?.filter(|&window| window > 0);
        settings.set("sliding_window", window);
        Ok(())
    },
    ..base()
};

static GRANITE: Architecture = Architecture {
    name: "granite",
    model_type: "granite",
    pairs: true,
    settings: |settings| {
        decoder(settings)?;
        biases(settings, &[("attn_q.bias", "attention_bias"), ("ffn_up.bias", "mlp_bias")]);
        let own = (settings.head()? as f64).powf(-0.5);
        let scale = settings.number("attention.scale")?.filter(|&scale| scale != 0.0);
        settings.set("attention_multiplier", scale.unwrap_or(own));
        settings.copy_number("embedding_scale", "embedding_multiplier")?;
        settings.copy_number("residual_scale", "residual_multiplier")?;
        settings.copy_number("logit_scale", "logits_scaling")
    },
    ..base()
};

static SMOLLM3: Architecture = Architecture {
    name: "smollm3",
    model_type: "smollm3",
    pairs: true,
    settings: |settings| {
        biases(settings, &[("attn_q.bias", "attention_bias"), ("ffn_up.bias", "mlp_bias")]);
        decoder(settings)
    },
    ..base()
};

static OLMO2: Architecture = Architecture {
    name: "olmo2",
    model_type: "olmo2",
    layer: &[FOUR_NORMS, QK_NORMS, LAYER],
    settings: |settings| {
        biases(settings, &[("attn_q.bias", "attention_bias")]);
        decoder(settings)
    },
    ..base()
};

static STABLELM: Architecture = Architecture {
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

static STARCODER2: Architecture = Architecture {
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

static PHI2: Architecture = Architecture {
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

static GPT2: Architecture = Architecture {
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

static GPT_NEOX: Architecture = Architecture {
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

/// The names of LLaMA, with rows in the order of the family.
const fn base() -> Architecture {
    Architecture {
        name: "",
        model_type: "",
        outside: OUTSIDE,
        layers: "model.layers",
        layer: &[LAYER],
        pairs: false,
        differences: &[],
        settings: decoder,
    }
}

/// Key/value heads, RMS norms, the size of a head, and rotary positions.
fn decoder(settings: &mut Settings<'_>) -> Result<(), ConfigError> {
    settings.kv_heads()?;
    settings.rms_epsilon()?;
    settings.head_dim()?;
    settings.rope()
}

/// Sets a key to whether the first layer has a tensor.
fn biases(settings: &mut Settings<'_>, keys: &[(&str, &str)]) {
    for (tensor, key) in keys {
        let has = settings.has(tensor);
        settings.set(key, has);
    }
}

/// What scores are divided by the root of: the size of a head, but in the largest model, of `layers` layers, hidden size over heads.
fn query_scalar(settings: &mut Settings<'_>, layers: usize) -> Result<(), ConfigError> {
    let sizes = [settings.size("embedding_length")?, settings.size("attention.head_count")?];
    let scalar = match (settings.size("block_count")?, sizes) {
        (Some(count), [Some(hidden), Some(heads)]) if count == layers && heads > 0 => hidden / heads,
        _ => settings.head()?,
    };
    settings.set("query_pre_attn_scalar", scalar);
    Ok(())
}
