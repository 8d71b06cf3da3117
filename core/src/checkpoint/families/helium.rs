//! Helium: LLaMA with interleaved rotary positions.

use super::{llama, rotary};
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::DecoderPaths;
use crate::checkpoint::family::Family;
use crate::checkpoint::flag::Flag;
use crate::checkpoint::rope::RopeKeys;

/// Key/value heads, if `num_key_value_heads` is not given.
const KV_HEADS: usize = 20;
/// Features of a head, if `head_dim` is not given.
const HEAD_DIM: usize = 128;

pub(super) static FAMILY: Family = Family {
    title: "Helium",
    about: "interleaved rotary",
    model_types: &["helium"],
    class: Class {
        name: "HeliumConfig",
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(7040)),
        vocab_size: Setting::new(&["vocab_size"], 48000),
        max_positions: Setting::new(&["max_position_embeddings"], Some(4096)),
        epsilon: Setting::new(&["rms_norm_eps"], 1e-8),
        ..llama::CLASS
    },
    reads: &["attention_bias", "head_dim", "num_key_value_heads"],
    rope: Some(RopeKeys { theta: rotary::theta(1e5), ..RopeKeys::SHARED }),
    attention: |base, fields| {
        let bias = fields.flag(&["attention_bias"])?.unwrap_or(false);
        let mut config = base.with_qkv_bias(bias).with_output_bias(false);
        config.num_kv = Some(fields.positive(&["num_key_value_heads"])?.unwrap_or(KV_HEADS));
        let config = llama::with_head_dim(config, fields, HEAD_DIM)?;
        Ok(rotary::interleaved(llama::positions(config, FAMILY.read_rope(fields)?)?).into())
    },
    layer: llama::LAYER,
    decoder: Some(DecoderPaths { mlp_bias: Flag::Key("mlp_bias", false), ..llama::DECODER }),
    ..Family::SHARED
};
