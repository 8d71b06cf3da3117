//! OLMo 1: LLaMA with LayerNorms that have no weights.

use super::{llama, olmo2};
use crate::checkpoint::class::{Class, Setting};
use crate::checkpoint::family::Family;
use crate::checkpoint::layer_paths::LayerPaths;
use crate::checkpoint::rope::RopeKeys;
use crate::config::NormType;

pub(super) static FAMILY: Family = Family {
    title: "OLMo 1",
    about: "LayerNorm without weights, in some a limit of queries, keys and values",
    model_types: &["olmo"],
    // The class fixes the epsilon.
    class: Class { name: "OlmoConfig", epsilon: Setting::new(&[], 1e-5), ..olmo2::CLASS },
    reads: &["attention_bias", "clip_qkv", "head_dim", "num_key_value_heads"],
    rope: Some(RopeKeys::SHARED),
    attention: |base, fields| {
        let bias = fields.flag(&["attention_bias"])?.unwrap_or(false);
        let mut config = base.with_qkv_bias(bias).with_output_bias(bias).with_norm_bias(false);
        config.num_kv = fields.positive(&["num_key_value_heads"])?;
        config.qkv_clip = fields.above_zero(&["clip_qkv"])?;
        let config = llama::attention(config, fields, FAMILY.read_rope(fields)?)?;
        Ok(config.with_norm_type(NormType::LayerNorm).into())
    },
    layer: LayerPaths { norm_unweighted: true, ..llama::LAYER },
    decoder: Some(llama::DECODER),
    ..Family::SHARED
};
