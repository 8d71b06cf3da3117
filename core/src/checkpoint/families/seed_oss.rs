//! Seed-OSS: LLaMA with biases of queries, keys and values.

use super::llama;
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::DecoderPaths;
use crate::checkpoint::family::Family;
use crate::checkpoint::flag::Flag;
use crate::checkpoint::rope::RopeKeys;

/// Key/value heads, if `num_key_value_heads` is not given; `null` is one for each query head.
const KV_HEADS: usize = 8;
/// Features of a head, if `head_dim` is not given; `null` is the hidden size over the heads.
const HEAD_DIM: usize = 128;

pub(super) static FAMILY: Family = Family {
    title: "Seed-OSS",
    about: "biases of queries, keys and values",
    model_types: &["seed_oss"],
    class: Class {
        name: "SeedOssConfig",
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(27648)),
        vocab_size: Setting::new(&["vocab_size"], 155136),
        max_positions: Setting::new(&["max_position_embeddings"], Some(524288)),
        ..llama::CLASS
    },
    reads: &["attention_bias", "attention_out_bias", "head_dim", "num_key_value_heads"],
    rope: Some(RopeKeys::SHARED),
    harmless: &["residual_dropout"],
    attention: |base, fields| {
        let base = base.with_qkv_bias(fields.flag(&["attention_bias"])?.unwrap_or(true));
        let mut config = base.with_output_bias(fields.flag(&["attention_out_bias"])?.unwrap_or(false));
        config.num_kv = fields.positive_or_null("num_key_value_heads", Some(KV_HEADS))?;
        config.head_dim = fields.positive_or_null("head_dim", Some(HEAD_DIM))?;
        Ok(llama::positions(config, FAMILY.read_rope(fields)?)?.into())
    },
    layer: llama::LAYER,
    decoder: Some(DecoderPaths { mlp_bias: Flag::Key("mlp_bias", false), ..llama::DECODER }),
    ..Family::SHARED
};
