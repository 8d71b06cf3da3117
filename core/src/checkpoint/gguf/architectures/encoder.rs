//! Encoders.

use super::shared::base;
use crate::checkpoint::gguf::architecture::Architecture;

pub(super) static BERT: Architecture = Architecture {
    name: "bert",
    model_type: "bert",
    outside: &[
        ["token_embd", "embeddings.word_embeddings"],
        ["token_types", "embeddings.token_type_embeddings"],
        ["position_embd", "embeddings.position_embeddings"],
        ["token_embd_norm", "embeddings.LayerNorm"],
    ],
    layers: "encoder.layer",
    layer: &[&[
        ["attn_q", "attention.self.query"],
        ["attn_k", "attention.self.key"],
        ["attn_v", "attention.self.value"],
        ["attn_output", "attention.output.dense"],
        ["attn_output_norm", "attention.output.LayerNorm"],
        ["ffn_up", "intermediate.dense"],
        ["ffn_down", "output.dense"],
        ["layer_output_norm", "output.LayerNorm"],
    ]],
    causal: false,
    settings: |settings| {
        let segments = settings.rows("token_types.weight")?;
        settings.set("type_vocab_size", segments);
        // What becomes of the states; `embed` reads it.
        settings.size("pooling_type")?;
        settings.epsilon("attention.layer_norm_epsilon", "layer_norm_eps")
    },
    ..base()
};
