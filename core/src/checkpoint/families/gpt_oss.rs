//! gpt-oss: sinks, a window in every other layer, and experts with a limited SwiGLU.

use serde_json::json;

use super::{llama, rotary};
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::DecoderPaths;
use crate::checkpoint::experts::{ExpertActivation, ExpertLayers, ExpertWeights, Experts, GateOrder};
use crate::checkpoint::family::Family;
use crate::checkpoint::layer_kinds::LayerKinds;
use crate::checkpoint::layer_paths::LayerPaths;
use crate::checkpoint::layer_types::LayerType;
use crate::checkpoint::rope::{Rope, RopeKeys};
use crate::checkpoint::routing::Routing;
use crate::checkpoint::window;
use crate::error::ConfigError;
use crate::fields::Fields;

/// Inner features of an expert, if `intermediate_size` is not given.
const MLP: usize = 2880;
/// Key/value heads, if `num_key_value_heads` is not given; `null` is one for each query head.
const KV_HEADS: usize = 8;
/// Features of a head, if `head_dim` is not given; `null` is the hidden size over the heads.
const HEAD_DIM: usize = 64;
/// Keys that a query sees in a layer with a window, if `sliding_window` is not given.
const WINDOW: usize = 128;
const ROPE: RopeKeys = RopeKeys { theta: rotary::theta(150000.0), ..RopeKeys::SHARED };

pub(super) static FAMILY: Family = Family {
    title: "gpt-oss",
    about: "sinks, window in every other layer, YaRN, biases, experts with a limited SwiGLU",
    model_types: &["gpt_oss"],
    class: Class {
        name: "GptOssConfig",
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(MLP)),
        vocab_size: Setting::new(&["vocab_size"], 201088),
        max_positions: Setting::new(&["max_position_embeddings"], Some(131072)),
        epsilon: Setting::new(&["rms_norm_eps"], 1e-5),
        // The experts have their own.
        activation: Setting::new(&[], "silu"),
        ..llama::CLASS
    },
    reads: &["attention_bias", "head_dim", "layer_types", "num_key_value_heads", "sliding_window"],
    rope: Some(ROPE),
    harmless: &[
        "experts_per_token",
        "hidden_act",
        "initial_context_length",
        "output_router_logits",
        "router_aux_loss_coef",
    ],
    attention: |base, fields| {
        let bias = fields.flag(&["attention_bias"])?.unwrap_or(true);
        let mut config = base.with_qkv_bias(bias).with_output_bias(bias).with_sinks(true);
        config.num_kv = fields.positive_or_null("num_key_value_heads", Some(KV_HEADS))?;
        config.head_dim = fields.positive_or_null("head_dim", Some(HEAD_DIM))?;
        let config = llama::positions(config, rope(fields)?)?;
        let types = LayerType::list(fields, config.num_hidden_layers.unwrap_or(0))?;
        let layers = types.map_or(LayerKinds::every(2, 0, 1), |types| types.into_iter().collect());
        window::attention([config.clone(), config], window::size(fields, Some(WINDOW))?, layers)
    },
    layer: LayerPaths { sinks: Some("self_attn.sinks"), ..llama::LAYER },
    decoder: Some(DecoderPaths { experts: Some(EXPERTS), ..llama::DECODER }),
    ..Family::SHARED
};

const EXPERTS: Experts = Experts {
    layers: ExpertLayers::All,
    count: Setting::new(&["num_local_experts", "num_experts"], 128),
    chosen: Setting::new(&["num_experts_per_tok"], Some(4)),
    size: Setting::new(&["intermediate_size"], MLP),
    router: "mlp.router",
    router_bias: true,
    routing: Routing::SoftmaxOfChosen,
    weights: ExpertWeights::Packed {
        gate_up: "mlp.experts.gate_up_proj",
        down: "mlp.experts.down_proj",
        order: GateOrder::Interleaved,
        bias: true,
    },
    activation: ExpertActivation::ClampedSwiglu {
        alpha: Setting::new(&["swiglu_alpha"], 1.702),
        limit: Setting::new(&["swiglu_limit"], 7.0),
    },
    shared: None,
};

/// The rotary settings. Without a record the class has this one.
fn rope(fields: &Fields<'_>) -> Result<Rope, ConfigError> {
    let scaling = fields.record("rope_scaling")?.filter(|record| !record.is_empty());
    if scaling.is_some() || fields.record("rope_parameters")?.is_some() {
        return FAMILY.read_rope(fields);
    }
    let default = json!({
        "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
        "original_max_position_embeddings": 4096
    });
    let record = Fields::nested("rope_parameters", &default)?;
    Rope::of_record(fields, Some(&record), &ROPE, FAMILY.max_positions(fields)?)
}
