//! Phi 1, 1.5 and 2: LayerNorm, one norm for attention and MLP, biases everywhere.

use super::rotary;
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::DecoderPaths;
use crate::checkpoint::family::Family;
use crate::checkpoint::flag::Flag;
use crate::checkpoint::layer_paths::{LayerPaths, QkvPaths};
use crate::checkpoint::only::Only;
use crate::checkpoint::rope::RopeKeys;

pub(super) static FAMILY: Family = Family {
    title: "Phi 1, Phi 1.5, Phi 2",
    about: "partial rotary, parallel residual with one norm, bias of the output embedding",
    model_types: &["phi"],
    class: Class {
        name: "PhiConfig",
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(8192)),
        vocab_size: Setting::new(&["vocab_size"], 51200),
        max_positions: Setting::new(&["max_position_embeddings"], Some(2048)),
        activation: Setting::new(&["hidden_act"], "gelu_new"),
        tie_word_embeddings: false,
        ..Class::SHARED
    },
    reads: &["head_dim", "num_key_value_heads"],
    rope: Some(RopeKeys { share: rotary::share(0.5), ..RopeKeys::SHARED }),
    // Its norm of queries and keys has a bias, which those of this crate have not.
    only: &[Only::flag("qk_layernorm", false)],
    attention: |mut config, fields| {
        config.num_kv = fields.positive(&["num_key_value_heads"])?;
        config.head_dim = fields.positive(&["head_dim"])?;
        Ok(FAMILY.read_rope(fields)?.halves(config).into())
    },
    layer: LayerPaths {
        layers: "layers",
        prefixes: &["model."],
        norm: Some("input_layernorm"),
        qkv: QkvPaths::projections("self_attn"),
        output: "self_attn.dense",
        ..LayerPaths::SHARED
    },
    decoder: Some(DecoderPaths {
        tokens: "embed_tokens",
        final_norm: "final_layernorm",
        head_bias: true,
        up: "mlp.fc1",
        down: "mlp.fc2",
        parallel: Flag::Fixed(true),
        ..DecoderPaths::SHARED
    }),
    ..Family::SHARED
};
