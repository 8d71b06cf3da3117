//! GPT-2.

use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::DecoderPaths;
use crate::checkpoint::family::{Family, PositionTable};
use crate::checkpoint::layer_paths::{LayerPaths, QkvPaths};
use crate::checkpoint::layout::QkvLayout;
use crate::layout::Orientation;

pub(super) static FAMILY: Family = Family {
    title: "GPT-2",
    about: "learned positions",
    model_types: &["gpt2"],
    class: Class {
        name: "GPT2Config",
        vocab_size: Setting::new(&["vocab_size"], 50257),
        max_positions: Setting::new(&["n_positions", "max_position_embeddings"], Some(1024)),
        ..GPT
    },
    reads: &["scale_attn_by_inverse_layer_idx", "scale_attn_weights"],
    rope: None,
    only: &[],
    harmless: &[
        "n_ctx",
        "n_special",
        "predict_special_tokens",
        // It moves a factor within the same product.
        "reorder_and_upcast_attn",
    ],
    attention: |base, fields| {
        let inverse_layer = fields.flag(&["scale_attn_by_inverse_layer_idx"])?.unwrap_or(false);
        let scaled = base.with_scale_attention(fields.flag(&["scale_attn_weights"])?.unwrap_or(true));
        Ok(scaled.with_scale_attn_by_inverse_layer_idx(inverse_layer).into())
    },
    layer: LayerPaths { orientation: Orientation::InputOutput, ..LAYER }, // its `Conv1D`
    buffers: &[".attn.bias", ".crossattention.bias"],
    positions: Some(POSITIONS),
    decoder: Some(DECODER),
    ..Family::SHARED
};

/// The class of GPT-2, and what GPT-J shares with it.
pub(super) const GPT: Class = Class {
    hidden_size: &["n_embd", "hidden_size"],
    heads: &["n_head", "num_attention_heads"],
    layers: &["n_layer", "num_hidden_layers"],
    mlp_size: Setting::new(&["n_inner"], MlpSize::TimesHidden(4)),
    epsilon: Setting::new(&["layer_norm_epsilon"], 1e-5),
    activation: Setting::new(&["activation_function"], "gelu_new"),
    ..Class::SHARED
};

/// The paths of a layer, which GPT-Neo and GPT-BigCode share but for the orientation of the matrices.
pub(super) const LAYER: LayerPaths = LayerPaths {
    layers: "h",
    prefixes: &["transformer."],
    norm: Some("ln_1"),
    qkv: QkvPaths::Fused("attn.c_attn", QkvLayout::Concat),
    output: "attn.c_proj",
    ..LayerPaths::SHARED
};

pub(super) const POSITIONS: PositionTable = PositionTable { path: "wpe", offset: 0 };

pub(super) const DECODER: DecoderPaths = DecoderPaths {
    tokens: "wte",
    final_norm: "ln_f",
    mlp_norm: Some("ln_2"),
    up: "mlp.c_fc",
    down: "mlp.c_proj",
    ..DecoderPaths::SHARED
};
