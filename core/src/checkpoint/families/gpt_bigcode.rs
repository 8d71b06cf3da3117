//! GPT-BigCode (SantaCoder, StarCoder): GPT-2 with one key/value head.

use super::gpt2;
use crate::checkpoint::class::{Class, Setting};
use crate::checkpoint::family::Family;
use crate::checkpoint::layer_paths::QkvPaths;
use crate::checkpoint::layout::QkvLayout;
use crate::error::ConfigError;
use crate::fields::Fields;

pub(super) static FAMILY: Family = Family {
    title: "GPT-BigCode (StarCoder)",
    about: "learned positions, one key/value head; `PerHead` if `multi_query` is false",
    model_types: &["gpt_bigcode"],
    class: Class {
        name: "GPTBigCodeConfig",
        vocab_size: Setting::new(&["vocab_size"], 50257),
        max_positions: Setting::new(&["n_positions", "max_position_embeddings"], Some(1024)),
        activation: Setting::new(&["activation_function"], "gelu_pytorch_tanh"),
        ..gpt2::GPT
    },
    reads: &["multi_query", "num_key_value_heads", "scale_attn_weights"],
    harmless: &[
        "attention_softmax_in_fp32",
        "inference_runner",
        "max_batch_size",
        "max_sequence_length",
        "n_ctx",
        "pad_key_length",
        "pre_allocate_kv_cache",
        "scale_attention_softmax_in_fp32",
        "validate_runner_input",
    ],
    attention: |base, fields| {
        let heads = if multi_query(fields)? { 1 } else { base.heads };
        // The class writes the number and does not read it.
        if fields.positive(&["num_key_value_heads"])?.is_some_and(|stated| stated != heads) {
            let supported = format!("{heads}, as `multi_query` says or means by default");
            return Err(fields.unsupported("num_key_value_heads", &supported));
        }
        let scaled = base.with_scale_attention(fields.flag(&["scale_attn_weights"])?.unwrap_or(true));
        Ok(scaled.with_num_kv(Some(heads)).into())
    },
    layer: gpt2::LAYER,
    buffers: &[".attn.bias"],
    positions: Some(gpt2::POSITIONS),
    decoder: Some(gpt2::DECODER),
    variant: Some(|fields, layer, _| {
        if !multi_query(fields)? {
            layer.qkv = QkvPaths::Fused("attn.c_attn", QkvLayout::PerHead);
        }
        Ok(())
    }),
    ..Family::SHARED
};

fn multi_query(fields: &Fields<'_>) -> Result<bool, ConfigError> {
    Ok(fields.flag(&["multi_query"])?.unwrap_or(true))
}
