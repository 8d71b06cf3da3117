//! StarCoder 2: LayerNorm, biases, a plain MLP and a window.

use super::llama;
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::{DecoderPaths, Gate};
use crate::checkpoint::family::Family;
use crate::checkpoint::flag::Flag;
use crate::checkpoint::layer_kinds::LayerKinds;
use crate::checkpoint::only::Only;
use crate::checkpoint::rope::RopeKeys;
use crate::checkpoint::window;

/// Key/value heads, if `num_key_value_heads` is not given.
const KV_HEADS: usize = 2;
const BIAS: Flag = Flag::Key("use_bias", true);

pub(super) static FAMILY: Family = Family {
    title: "StarCoder 2",
    about: "LayerNorm, biases, MLP without a gate, window",
    model_types: &["starcoder2"],
    class: Class {
        name: "Starcoder2Config",
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(12288)),
        vocab_size: Setting::new(&["vocab_size"], 49152),
        max_positions: Setting::new(&["max_position_embeddings"], Some(4096)),
        epsilon: Setting::new(&["norm_epsilon"], 1e-5),
        activation: Setting::new(&["hidden_act"], "gelu_pytorch_tanh"),
        ..Class::SHARED
    },
    reads: &["head_dim", "num_key_value_heads", "sliding_window"],
    rope: Some(RopeKeys::SHARED),
    only: &[
        Only::flag("scale_attn_weights", true),
        Only::text("mlp_type", "default"),
        Only::text("norm_type", "layer_norm"),
    ],
    harmless: &[
        // Settings of the first StarCoder, which the published files repeat.
        "activation_function",
        "attention_softmax_in_fp32",
        "embedding_dropout",
        "layer_norm_epsilon",
        "residual_dropout",
        "scale_attention_softmax_in_fp32",
    ],
    attention: |base, fields| {
        let bias = BIAS.of(fields)?;
        let mut config = base.with_qkv_bias(bias).with_output_bias(bias);
        config.num_kv = Some(fields.positive(&["num_key_value_heads"])?.unwrap_or(KV_HEADS));
        config.head_dim = fields.positive(&["head_dim"])?;
        let config = FAMILY.read_rope(fields)?.whole()?.halves(config);
        let window = window::size(fields, None)?;
        let layers = LayerKinds::all(usize::from(window.is_some()));
        window::attention([config.clone(), config], window, layers)
    },
    layer: llama::LAYER,
    decoder: Some(DecoderPaths {
        gate: Gate::None,
        up: "mlp.c_fc",
        down: "mlp.c_proj",
        mlp_bias: BIAS,
        ..llama::DECODER
    }),
    ..Family::SHARED
};
