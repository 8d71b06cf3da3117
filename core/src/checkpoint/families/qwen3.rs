//! Qwen 3: Qwen 2 with a norm of queries and keys.

use super::{llama, qwen2};
use crate::checkpoint::class::Class;
use crate::checkpoint::family::Family;
use crate::checkpoint::layer_paths::{LayerPaths, QkNormPaths};
use crate::checkpoint::rope::RopeKeys;
use crate::qk_norm::{QkNorm, QkNormKind, QkNormWeights};

/// Features of a head, if `head_dim` is not given.
const HEAD_DIM: usize = 128;

pub(super) static FAMILY: Family = Family {
    title: "Qwen 3",
    about: "norm of queries and keys",
    model_types: &["qwen3"],
    class: Class { name: "Qwen3Config", ..qwen2::CLASS },
    reads: &[
        "attention_bias",
        "head_dim",
        "layer_types",
        "max_window_layers",
        "num_key_value_heads",
        "sliding_window",
        "use_sliding_window",
    ],
    rope: Some(RopeKeys::SHARED),
    only: qwen2::ONLY,
    attention: |base, fields| {
        let bias = fields.flag(&["attention_bias"])?.unwrap_or(false);
        let norm = QkNorm::new(QkNormKind::Rms, QkNormWeights::Shared, base.layer_norm_eps);
        let mut config = base.with_qkv_bias(bias).with_output_bias(bias).with_qk_norm(Some(norm));
        config.num_kv = fields.positive_or_null("num_key_value_heads", Some(qwen2::KV_HEADS))?;
        let config = llama::with_head_dim(config, fields, HEAD_DIM)?;
        qwen2::windowed(llama::positions(config, FAMILY.read_rope(fields)?)?, fields)
    },
    layer: LAYER,
    decoder: Some(llama::DECODER),
    ..Family::SHARED
};

/// The paths of LLaMA, with norms of queries and keys.
pub(super) const LAYER: LayerPaths =
    LayerPaths { qk_norm: Some(QkNormPaths::Whole(["self_attn.q_norm", "self_attn.k_norm"])), ..llama::LAYER };
