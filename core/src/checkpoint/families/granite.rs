//! Granite 3: LLaMA with factors of embedding, scores, branches and logits.

use super::llama;
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::{DecoderPaths, Factor};
use crate::checkpoint::family::Family;
use crate::checkpoint::flag::Flag;
use crate::checkpoint::rope::RopeKeys;

pub(super) static FAMILY: Family = Family {
    title: "Granite 3",
    about: "factors of embedding, scores, branches and logits",
    model_types: &["granite"],
    class: Class {
        name: "GraniteConfig",
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(11008)),
        max_positions: Setting::new(&["max_position_embeddings"], Some(2048)),
        ..llama::CLASS
    },
    reads: &["attention_bias", "attention_multiplier", "head_dim", "num_key_value_heads"],
    rope: Some(RopeKeys::SHARED),
    attention: |base, fields| {
        let bias = fields.flag(&["attention_bias"])?.unwrap_or(false);
        let factor = fields.above_zero(&["attention_multiplier"])?.unwrap_or(1.0);
        let mut config = base.with_qkv_bias(bias).with_output_bias(bias).with_score_factor(Some(factor));
        config.num_kv = fields.positive(&["num_key_value_heads"])?;
        Ok(llama::attention(config, fields, FAMILY.read_rope(fields)?)?.into())
    },
    layer: llama::LAYER,
    decoder: Some(DecoderPaths {
        embedding_factor: Factor::Key("embedding_multiplier", 1.0),
        residual_factor: Factor::Key("residual_multiplier", 1.0),
        logit_factor: Factor::Inverse("logits_scaling", 1.0),
        mlp_bias: Flag::Key("mlp_bias", false),
        ..llama::DECODER
    }),
    ..Family::SHARED
};
