//! GPT-NeoX and Pythia.

use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::DecoderPaths;
use crate::checkpoint::family::Family;
use crate::checkpoint::flag::Flag;
use crate::checkpoint::layer_paths::{LayerPaths, QkvPaths};
use crate::checkpoint::layout::QkvLayout;
use crate::checkpoint::rope::RopeKeys;

pub(super) static FAMILY: Family = Family {
    title: "GPT-NeoX, Pythia",
    about: "partial rotary, parallel residual",
    model_types: &["gpt_neox"],
    class: Class {
        name: "GPTNeoXConfig",
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(24576)),
        vocab_size: Setting::new(&["vocab_size"], 50432),
        max_positions: Setting::new(&["max_position_embeddings"], Some(2048)),
        tie_word_embeddings: false,
        ..Class::SHARED
    },
    reads: &["attention_bias"],
    // Outside of the record, the class has names of its own.
    rope: Some(RopeKeys {
        theta: Setting::new(&["rotary_emb_base"], 10000.0),
        share: Setting::new(&["rotary_pct"], 0.25),
    }),
    only: &[],
    harmless: &[],
    attention: |base, fields| {
        let bias = fields.flag(&["attention_bias"])?.unwrap_or(true);
        Ok(FAMILY.read_rope(fields)?.halves(base.with_qkv_bias(bias).with_output_bias(bias)).into())
    },
    layer: LayerPaths {
        layers: "layers",
        prefixes: &["gpt_neox."],
        norm: Some("input_layernorm"),
        qkv: QkvPaths::Fused("attention.query_key_value", QkvLayout::PerHead),
        output: "attention.dense",
        ..LayerPaths::SHARED
    },
    buffers: &[".attention.bias"],
    positions: None,
    decoder: Some(DecoderPaths {
        tokens: "embed_in",
        final_norm: "final_layer_norm",
        head: "embed_out",
        mlp_norm: Some("post_attention_layernorm"),
        up: "mlp.dense_h_to_4h",
        down: "mlp.dense_4h_to_h",
        parallel: Flag::Key("use_parallel_residual", true),
        ..DecoderPaths::SHARED
    }),
    ..Family::SHARED
};
