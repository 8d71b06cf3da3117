//! What most architectures share: the names of LLaMA.

use crate::checkpoint::gguf::architecture::{Architecture, Names};
use crate::checkpoint::gguf::settings::Settings;
use crate::error::ConfigError;

pub(super) const OUTSIDE: Names =
    &[["token_embd", "model.embed_tokens"], ["output_norm", "model.norm"], ["output", "lm_head"]];

pub(super) const LAYER: Names = &[
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

pub(super) const QK_NORMS: Names = &[["attn_q_norm", "self_attn.q_norm"], ["attn_k_norm", "self_attn.k_norm"]];

/// Norms before and after each branch.
pub(super) const FOUR_NORMS: Names = &[
    ["post_attention_norm", "post_attention_layernorm"],
    ["ffn_norm", "pre_feedforward_layernorm"],
    ["post_ffw_norm", "post_feedforward_layernorm"],
];

/// The names of LLaMA, with rows in the order of the family.
pub(super) const fn base() -> Architecture {
    Architecture {
        name: "",
        model_type: "",
        outside: OUTSIDE,
        layers: "model.layers",
        layer: &[LAYER],
        pairs: false,
        causal: true,
        differences: &[],
        settings: decoder,
    }
}

/// Key/value heads, RMS norms, the size of a head, and rotary positions.
pub(super) fn decoder(settings: &mut Settings<'_>) -> Result<(), ConfigError> {
    settings.kv_heads()?;
    settings.rms_epsilon()?;
    settings.head_dim()?;
    settings.rope()
}

/// A tensor of the first layer, and the key that says whether layers have it.
pub(super) const ATTENTION_BIAS: (&str, &str) = ("attn_q.bias", "attention_bias");
pub(super) const MLP_BIAS: (&str, &str) = ("ffn_up.bias", "mlp_bias");

/// [`decoder`] of a family whose projections may have biases.
pub(super) fn decoder_with(settings: &mut Settings<'_>, keys: &[(&str, &str)]) -> Result<(), ConfigError> {
    biases(settings, keys);
    decoder(settings)
}

/// Sets a key to whether the first layer has a tensor.
pub(super) fn biases(settings: &mut Settings<'_>, keys: &[(&str, &str)]) {
    for (tensor, key) in keys {
        let has = settings.has(tensor);
        settings.set(key, has);
    }
}
