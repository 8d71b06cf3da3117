//! LLaMA and its relatives with RMS norms.

use super::shared::{ATTENTION_BIAS, FOUR_NORMS, LAYER, MLP_BIAS, QK_NORMS, base, biases, decoder_with};
use crate::checkpoint::gguf::architecture::Architecture;

pub(super) static LLAMA: Architecture = Architecture {
    name: "llama",
    model_type: "llama",
    pairs: true,
    settings: |settings| decoder_with(settings, &[ATTENTION_BIAS, MLP_BIAS]),
    ..base()
};

pub(super) static QWEN2: Architecture = Architecture { name: "qwen2", model_type: "qwen2", ..base() };

pub(super) static QWEN3: Architecture = Architecture {
    name: "qwen3",
    model_type: "qwen3",
    layer: &[LAYER, QK_NORMS],
    settings: |settings| decoder_with(settings, &[ATTENTION_BIAS]),
    ..base()
};

pub(super) static PHI3: Architecture = Architecture {
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

pub(super) static GRANITE: Architecture = Architecture {
    name: "granite",
    model_type: "granite",
    pairs: true,
    settings: |settings| {
        decoder_with(settings, &[ATTENTION_BIAS, MLP_BIAS])?;
        let own = (settings.head()? as f64).powf(-0.5);
        let scale = settings.number("attention.scale")?.filter(|&scale| scale != 0.0);
        settings.set("attention_multiplier", scale.unwrap_or(own));
        settings.copy_number("embedding_scale", "embedding_multiplier")?;
        settings.copy_number("residual_scale", "residual_multiplier")?;
        settings.copy_number("logit_scale", "logits_scaling")
    },
    ..base()
};

pub(super) static SMOLLM3: Architecture = Architecture {
    name: "smollm3",
    model_type: "smollm3",
    pairs: true,
    settings: |settings| decoder_with(settings, &[ATTENTION_BIAS, MLP_BIAS]),
    ..base()
};

pub(super) static OLMO2: Architecture = Architecture {
    name: "olmo2",
    model_type: "olmo2",
    layer: &[FOUR_NORMS, QK_NORMS, LAYER],
    settings: |settings| decoder_with(settings, &[ATTENTION_BIAS]),
    ..base()
};

pub(super) static GLM4: Architecture = Architecture {
    name: "glm4",
    model_type: "glm4",
    layer: &[
        &[
            ["post_attention_norm", "post_self_attn_layernorm"],
            ["post_ffw_norm", "post_mlp_layernorm"],
            ["ffn_up", "mlp.gate_up_proj"],
        ],
        LAYER,
    ],
    settings: |settings| {
        settings.kv_heads()?;
        settings.rms_epsilon()?;
        settings.head_dim()?;
        settings.partial_rope()?;
        biases(settings, &[ATTENTION_BIAS]);
        Ok(())
    },
    ..base()
};
