//! Mixtral: Mistral with experts.

use super::{llama, mistral, rotary};
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::DecoderPaths;
use crate::checkpoint::experts::{ExpertActivation, ExpertLayers, ExpertWeights, Experts};
use crate::checkpoint::family::Family;
use crate::checkpoint::layer_kinds::LayerKinds;
use crate::checkpoint::rope::RopeKeys;
use crate::checkpoint::routing::Routing;
use crate::checkpoint::window;

/// Inner features of an expert, if `intermediate_size` is not given.
const MLP: usize = 14336;
/// Key/value heads, if `num_key_value_heads` is not given; `null` is one for each query head.
const KV_HEADS: usize = 8;

pub(super) static FAMILY: Family = Family {
    title: "Mixtral",
    about: "Mistral with experts",
    model_types: &["mixtral"],
    class: Class {
        name: "MixtralConfig",
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(MLP)),
        epsilon: Setting::new(&["rms_norm_eps"], 1e-5),
        ..mistral::CLASS
    },
    reads: &["head_dim", "num_key_value_heads", "sliding_window"],
    rope: Some(RopeKeys { theta: rotary::theta(1e6), ..RopeKeys::SHARED }),
    harmless: &["output_router_logits", "router_aux_loss_coef", "router_jitter_noise"],
    attention: |base, fields| {
        let mut config = base.with_qkv_bias(false).with_output_bias(false);
        config.num_kv = fields.positive_or_null("num_key_value_heads", Some(KV_HEADS))?;
        let window = window::size(fields, None)?;
        let config = llama::attention(config, fields, FAMILY.read_rope(fields)?)?;
        let layers = LayerKinds::all(usize::from(window.is_some()));
        window::attention([config.clone(), config], window, layers)
    },
    layer: llama::LAYER,
    decoder: Some(DecoderPaths { experts: Some(EXPERTS), ..llama::DECODER }),
    ..Family::SHARED
};

const EXPERTS: Experts = Experts {
    layers: ExpertLayers::All,
    count: Setting::new(&["num_local_experts", "num_experts"], 8),
    chosen: Setting::new(&["num_experts_per_tok"], Some(2)),
    size: Setting::new(&["intermediate_size"], MLP),
    router: "block_sparse_moe.gate",
    router_bias: false,
    // The class takes the softmax over all experts and divides by the sum of the chosen ones, which is the same.
    routing: Routing::SoftmaxOfChosen,
    weights: ExpertWeights::Separate("block_sparse_moe.experts", ["w1", "w3", "w2"]),
    activation: ExpertActivation::Gated,
    shared: None,
};
