//! ERNIE 4.5 without experts: LLaMA with interleaved rotary positions.

use super::{llama, rotary};
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::DecoderPaths;
use crate::checkpoint::family::Family;
use crate::checkpoint::flag::Flag;
use crate::checkpoint::rope::RopeKeys;

/// Key/value heads, if `num_key_value_heads` is not given; `null` is one for each query head.
const KV_HEADS: usize = 2;
/// Features of a head, if `head_dim` is not given; `null` is the hidden size over the heads.
const HEAD_DIM: usize = 128;
const BIAS: Flag = Flag::Key("use_bias", false);

pub(super) static FAMILY: Family = Family {
    title: "ERNIE 4.5",
    about: "interleaved rotary",
    model_types: &["ernie4_5"],
    class: Class {
        name: "Ernie4_5Config",
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(3072)),
        vocab_size: Setting::new(&["vocab_size"], 103424),
        max_positions: Setting::new(&["max_position_embeddings"], Some(131072)),
        epsilon: Setting::new(&["rms_norm_eps"], 1e-5),
        tie_word_embeddings: true,
        ..llama::CLASS
    },
    reads: &["head_dim", "num_key_value_heads"],
    rope: Some(RopeKeys { theta: rotary::theta(5e5), ..RopeKeys::SHARED }),
    attention: |base, fields| {
        let bias = BIAS.of(fields)?;
        let mut config = base.with_qkv_bias(bias).with_output_bias(bias);
        config.num_kv = fields.positive_or_null("num_key_value_heads", Some(KV_HEADS))?;
        config.head_dim = fields.positive_or_null("head_dim", Some(HEAD_DIM))?;
        Ok(rotary::interleaved(llama::positions(config, FAMILY.read_rope(fields)?)?).into())
    },
    layer: llama::LAYER,
    decoder: Some(DecoderPaths { mlp_bias: BIAS, ..llama::DECODER }),
    ..Family::SHARED
};
