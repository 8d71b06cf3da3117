//! InternLM 2: LLaMA under other names, whose query, key and value are one matrix. Its class is not in `transformers`, but in the
//! `configuration_internlm2.py` of its checkpoints.

use super::llama;
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::{DecoderPaths, Gate};
use crate::checkpoint::family::Family;
use crate::checkpoint::layer_paths::{LayerPaths, QkvPaths};
use crate::checkpoint::layout::QkvLayout;
use crate::checkpoint::rope::RopeKeys;

pub(super) static FAMILY: Family = Family {
    title: "InternLM 2",
    about: "LLaMA under other names, QKV by groups of heads",
    model_types: &["internlm2"],
    class: Class {
        name: "InternLM2Config",
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(11008)),
        vocab_size: Setting::new(&["vocab_size"], 103168),
        max_positions: Setting::new(&["max_position_embeddings"], Some(2048)),
        ..llama::CLASS
    },
    reads: &["bias", "num_key_value_heads"],
    rope: Some(RopeKeys::SHARED),
    attention: |base, fields| {
        let bias = fields.flag(&["bias"])?.unwrap_or(true);
        let mut config = base.with_qkv_bias(bias).with_output_bias(bias);
        config.num_kv = fields.positive(&["num_key_value_heads"])?;
        llama::positions(config, FAMILY.read_rope(fields)?).map(Into::into)
    },
    layer: LayerPaths {
        norm: Some("attention_norm"),
        qkv: QkvPaths::Fused("attention.wqkv", QkvLayout::PerGroup),
        output: "attention.wo",
        ..llama::LAYER
    },
    decoder: Some(DecoderPaths {
        tokens: "tok_embeddings",
        head: "output",
        mlp_norm: Some("ffn_norm"),
        gate: Gate::At("feed_forward.w1"),
        up: "feed_forward.w3",
        down: "feed_forward.w2",
        ..llama::DECODER
    }),
    ..Family::SHARED
};
