//! GPT-J.

use super::gpt2;
use crate::checkpoint::class::{Class, Setting};
use crate::checkpoint::decoder::DecoderPaths;
use crate::checkpoint::family::Family;
use crate::checkpoint::flag::Flag;
use crate::checkpoint::layer_paths::{LayerPaths, QkvPaths};
use crate::checkpoint::only::Only;
use crate::layout::RotaryLayout;

/// Features of a head that rotate, if `rotary_dim` is not given.
const ROTARY_DIM: usize = 64;

pub(super) static FAMILY: Family = Family {
    title: "GPT-J",
    about: "interleaved partial rotary, parallel residual with one norm",
    model_types: &["gptj"],
    class: Class {
        name: "GPTJConfig",
        vocab_size: Setting::new(&["vocab_size"], 50400),
        max_positions: Setting::new(&["n_positions", "max_position_embeddings"], Some(2048)),
        tie_word_embeddings: false,
        ..gpt2::GPT
    },
    reads: &["rotary_dim"],
    rope: None,
    only: &[Only::flag("rotary", true), Only::flag("scale_attn_weights", true)],
    harmless: &["n_ctx"],
    attention: |base, fields| {
        let dim = fields.positive(&["rotary_dim"])?.unwrap_or(ROTARY_DIM);
        let rotary = base.with_rotary(RotaryLayout::Interleaved, dim);
        Ok(rotary.with_qkv_bias(false).with_output_bias(false).into())
    },
    layer: LayerPaths {
        layers: "h",
        prefixes: &["transformer."],
        norm: Some("ln_1"),
        qkv: QkvPaths::projections("attn"),
        output: "attn.out_proj",
        ..LayerPaths::SHARED
    },
    buffers: &[".attn.bias"],
    positions: None,
    decoder: Some(DecoderPaths {
        tokens: "wte",
        final_norm: "ln_f",
        head_bias: true,
        up: "mlp.fc_in",
        down: "mlp.fc_out",
        parallel: Flag::Fixed(true),
        ..DecoderPaths::SHARED
    }),
    ..Family::SHARED
};
