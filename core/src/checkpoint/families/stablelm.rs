//! StableLM: LLaMA's MLP with LayerNorm and partial rotary, in some with a parallel residual or a norm of queries and keys.

use super::{llama, rotary};
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::DecoderPaths;
use crate::checkpoint::family::Family;
use crate::checkpoint::flag::Flag;
use crate::checkpoint::layer_paths::{LayerPaths, QkNormPaths};
use crate::checkpoint::rope::RopeKeys;
use crate::qk_norm::{QkNorm, QkNormKind, QkNormWeights};

/// Key/value heads, if `num_key_value_heads` is not given.
const KV_HEADS: usize = 32;

pub(super) static FAMILY: Family = Family {
    title: "StableLM",
    about: "LayerNorm, partial rotary; in some a parallel residual with one norm, or a norm of queries and keys",
    model_types: &["stablelm"],
    class: Class {
        name: "StableLmConfig",
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(6912)),
        vocab_size: Setting::new(&["vocab_size"], 50304),
        max_positions: Setting::new(&["max_position_embeddings"], Some(4096)),
        activation: Setting::new(&["hidden_act"], "silu"),
        tie_word_embeddings: false,
        ..Class::SHARED
    },
    reads: &["num_key_value_heads", "qk_layernorm", "use_qkv_bias"],
    rope: Some(RopeKeys { share: rotary::share(0.25), ..RopeKeys::SHARED }),
    attention: |base, fields| {
        let bias = fields.flag(&["use_qkv_bias"])?.unwrap_or(false);
        let norm = QkNorm::new(QkNormKind::LayerNorm, QkNormWeights::PerHead, base.layer_norm_eps);
        let normalised = fields.flag(&["qk_layernorm"])?.unwrap_or(false);
        let base = base.with_qk_norm(normalised.then_some(norm));
        let mut config = base.with_qkv_bias(bias).with_output_bias(false);
        config.num_kv = Some(fields.positive(&["num_key_value_heads"])?.unwrap_or(KV_HEADS));
        Ok(FAMILY.read_rope(fields)?.halves(config).into())
    },
    layer: LayerPaths {
        qk_norm: Some(QkNormPaths::EachHead(["self_attn.q_layernorm.norms", "self_attn.k_layernorm.norms"])),
        ..llama::LAYER
    },
    decoder: Some(DecoderPaths { parallel: PARALLEL, ..llama::DECODER }),
    variant: Some(|fields, _, decoder| {
        if PARALLEL.of(fields)? {
            decoder.mlp_norm = None;
        }
        Ok(())
    }),
    ..Family::SHARED
};

const PARALLEL: Flag = Flag::Key("use_parallel_residual", false);
