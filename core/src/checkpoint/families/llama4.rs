//! The language model of Llama 4: chunks with rotary positions, full layers without, and experts.
//!
//! `transformers` counts the positions of layers without rotary over the cache, padding included. Here a row counts its tokens, so a
//! row with padding has the factors that it has alone.

use super::{llama, rotary, smollm3};
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::{DecoderPaths, Gate};
use crate::checkpoint::experts::{
    ExpertActivation, ExpertLayers, ExpertWeights, Experts, GateOrder, SharedExpert, SharedSize,
};
use crate::checkpoint::family::{Family, FamilyAttention};
use crate::checkpoint::layer_kinds::LayerKinds;
use crate::checkpoint::layer_types::LayerType;
use crate::checkpoint::rope::RopeKeys;
use crate::checkpoint::routing::Routing;
use crate::config::{DeepSpeedInferenceConfig, WindowKind};
use crate::error::ConfigError;
use crate::fields::Fields;
use crate::position::QueryFactor;
use crate::qk_norm::{QkNorm, QkNormKind, QkNormWeights};

/// Inner features of an expert, if `intermediate_size` is not given.
const EXPERT: Setting<usize> = Setting::new(&["intermediate_size"], 8192);
/// Key/value heads, if `num_key_value_heads` is not given; `null` is one for each query head.
const KV_HEADS: usize = 8;
/// Features of a head, if `head_dim` is not given; `null` is the hidden size over the heads.
const HEAD_DIM: usize = 128;
/// Tokens of a chunk, if `attention_chunk_size` is not given.
const CHUNK: usize = 8192;

pub(super) static FAMILY: Family = Family {
    title: "Llama 4 (text)",
    about: "interleaved rotary and chunks in 3 of 4 layers, with a norm of queries and keys after the rotation; in the others queries grow \
            with their positions; experts, one of them shared",
    model_types: &["llama4_text"],
    class: Class {
        name: "Llama4TextConfig",
        mlp_size: Setting::new(&["intermediate_size_mlp"], MlpSize::Fixed(16384)),
        vocab_size: Setting::new(&["vocab_size"], 202048),
        max_positions: Setting::new(&["max_position_embeddings"], Some(131072)),
        epsilon: Setting::new(&["rms_norm_eps"], 1e-5),
        ..llama::CLASS
    },
    reads: &[
        "attention_bias",
        "attention_chunk_size",
        "attn_scale",
        "attn_temperature_tuning",
        "floor_scale",
        "head_dim",
        "layer_types",
        "no_rope_layer_interval",
        "no_rope_layers",
        "num_key_value_heads",
        "use_qk_norm",
    ],
    rope: Some(RopeKeys { theta: rotary::theta(5e5), ..RopeKeys::SHARED }),
    harmless: &["for_llm_compressor", "output_router_logits", "router_aux_loss_coef", "router_jitter_noise"],
    attention: |base, fields| {
        let bias = fields.flag(&["attention_bias"])?.unwrap_or(false);
        let mut config = base.with_qkv_bias(bias).with_output_bias(bias);
        config.num_kv = fields.positive_or_null("num_key_value_heads", Some(KV_HEADS))?;
        config.head_dim = fields.positive_or_null("head_dim", Some(HEAD_DIM))?;
        let norm = QkNorm::new(QkNormKind::Rms, QkNormWeights::None, config.layer_norm_eps).with_after_rotation(true);
        let normalised = fields.flag(&["use_qk_norm"])?.unwrap_or(true);
        let rotary = rotary::interleaved(llama::positions(config, FAMILY.read_rope(fields)?)?);
        let bare = rotary.clone().with_rotary_dim(None).with_query_factor(factor(fields)?);
        let rotary = rotary.with_qk_norm(normalised.then_some(norm));
        chunked(fields, [rotary, bare])
    },
    layer: llama::LAYER,
    decoder: Some(DecoderPaths {
        gate: Gate::At("feed_forward.gate_proj"),
        up: "feed_forward.up_proj",
        down: "feed_forward.down_proj",
        experts: Some(EXPERTS),
        ..llama::DECODER
    }),
    ..Family::SHARED
};

const EXPERTS: Experts = Experts {
    layers: ExpertLayers::ListedOrStep { list: "moe_layers", step: "interleave_moe_layer_step" },
    count: Setting::new(&["num_local_experts"], 16),
    chosen: Setting::new(&["num_experts_per_tok"], Some(1)),
    size: EXPERT,
    router: "feed_forward.router",
    router_bias: false,
    routing: Routing::SigmoidOfInput,
    weights: ExpertWeights::Packed {
        gate_up: "feed_forward.experts.gate_up_proj",
        down: "feed_forward.experts.down_proj",
        order: GateOrder::Halves,
        bias: false,
    },
    activation: ExpertActivation::Gated,
    shared: Some(SharedExpert {
        size: SharedSize::Features(EXPERT),
        gate: "feed_forward.shared_expert.gate_proj",
        up: "feed_forward.shared_expert.up_proj",
        down: "feed_forward.shared_expert.down_proj",
        scale: None,
    }),
};

/// The factor of queries in layers without rotary positions.
fn factor(fields: &Fields<'_>) -> Result<Option<QueryFactor>, ConfigError> {
    const TUNING: &str = "attn_temperature_tuning";
    // Early files say 4, which the class takes for true.
    let tuned = match fields.value(TUNING).and_then(serde_json::Value::as_u64) {
        Some(number) => number != 0,
        None => fields.flag(&[TUNING])?.unwrap_or(true),
    };
    let scale = fields.number(&["attn_scale"])?.unwrap_or(0.1);
    let floor = fields.positive(&["floor_scale"])?.unwrap_or(8192);
    Ok(tuned.then(|| QueryFactor::llama4(scale, floor)))
}

/// Layers with rotary positions see their chunk and the others all tokens, unless `layer_types` says otherwise.
fn chunked(fields: &Fields<'_>, [rotary, bare]: [DeepSpeedInferenceConfig; 2]) -> Result<FamilyAttention, ConfigError> {
    const CHUNKS: &str = "attention_chunk_size";
    if fields.is_null(CHUNKS) {
        return Err(fields.unsupported(CHUNKS, "a number of tokens; the class does not run without one"));
    }
    let size = fields.positive(&[CHUNKS])?.unwrap_or(CHUNK);
    let layers = rotary.num_hidden_layers.unwrap_or(0);
    let in_chunks = |config: &DeepSpeedInferenceConfig| {
        config.clone().with_local_attention(true).with_window_size(size).with_window_kind(WindowKind::Chunked)
    };
    // The kind of a layer is 2 if it has no rotary positions, and 1 more if it sees its chunk.
    let kinds = vec![rotary.clone(), in_chunks(&rotary), bare.clone(), in_chunks(&bare)];
    let positions = match fields.list("no_rope_layers")? {
        // The class takes an empty list for none.
        Some([]) => LayerKinds::every(smollm3::interval(fields)?, 2, 1),
        _ => smollm3::without_positions(fields, layers, [1, 2])?,
    };
    let Some(types) = LayerType::list_with(LayerType::Chunked, fields, layers)? else {
        return Ok(FamilyAttention { kinds, layers: positions });
    };
    let kind = |(layer, kind): (usize, LayerType)| {
        let without = positions.of(layer) == 2;
        2 * usize::from(without) + usize::from(kind == LayerType::Chunked)
    };
    Ok(FamilyAttention { kinds, layers: LayerKinds::listed(types.into_iter().enumerate().map(kind)) })
}
