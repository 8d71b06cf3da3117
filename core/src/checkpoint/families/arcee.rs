//! Arcee: LLaMA whose MLP has the square of ReLU and no gate.

use super::llama;
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::{DecoderPaths, Gate};
use crate::checkpoint::family::Family;
use crate::checkpoint::flag::Flag;
use crate::checkpoint::rope::RopeKeys;

pub(super) static FAMILY: Family = Family {
    title: "Arcee",
    about: "MLP with the square of ReLU and without a gate",
    model_types: &["arcee"],
    class: Class {
        name: "ArceeConfig",
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(18432)),
        max_positions: Setting::new(&["max_position_embeddings"], Some(4096)),
        epsilon: Setting::new(&["rms_norm_eps"], 1e-5),
        activation: Setting::new(&["hidden_act"], "relu2"),
        ..llama::CLASS
    },
    reads: &["attention_bias", "head_dim", "num_key_value_heads"],
    rope: Some(RopeKeys::SHARED),
    attention: |base, fields| {
        let bias = fields.flag(&["attention_bias"])?.unwrap_or(false);
        let mut config = base.with_qkv_bias(bias).with_output_bias(bias);
        config.num_kv = fields.positive(&["num_key_value_heads"])?;
        Ok(llama::attention(config, fields, FAMILY.read_rope(fields)?)?.into())
    },
    layer: llama::LAYER,
    decoder: Some(DecoderPaths { gate: Gate::None, mlp_bias: Flag::Key("mlp_bias", false), ..llama::DECODER }),
    ..Family::SHARED
};
