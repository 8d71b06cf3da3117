//! DeepSeek V3 and R1: latent attention as in V2, and experts that sigmoids choose.

use super::{deepseek_v2, llama};
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::DecoderPaths;
use crate::checkpoint::experts::{ExpertLayers, Experts, SharedExpert, SharedSize};
use crate::checkpoint::family::Family;
use crate::checkpoint::flag::Flag;
use crate::checkpoint::only::Only;
use crate::checkpoint::rope::RopeKeys;
use crate::checkpoint::routing::{GroupScores, GroupedRouting, Routing};
use crate::layout::RotaryLayout;

pub(super) static FAMILY: Family = Family {
    title: "DeepSeek V3, R1",
    about: "latent attention, interleaved rotary; after the first layers experts in groups, chosen by sigmoids and a learned term, and shared \
            ones; layers that predict later tokens are not loaded",
    model_types: &["deepseek_v3"],
    class: Class {
        name: "DeepseekV3Config",
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(18432)),
        vocab_size: Setting::new(&["vocab_size"], 129280),
        max_positions: Setting::new(&["max_position_embeddings"], Some(4096)),
        ..llama::CLASS
    },
    reads: deepseek_v2::READS,
    rope: Some(RopeKeys::SHARED),
    only: &[
        Only::text("scoring_func", "sigmoid"),
        Only::text("topk_method", "noaux_tc"),
        deepseek_v2::EVERY_LAYER,
        deepseek_v2::DENSE_FLOATS,
    ],
    harmless: deepseek_v2::HARMLESS,
    latent: Some(deepseek_v2::sizes),
    prediction_layers: Some(Setting::new(&["num_nextn_predict_layers", "num_mtp_layers"], 1)),
    attention: |base, fields| {
        let layout = match fields.flag(&["rope_interleave"])? {
            Some(false) => RotaryLayout::Half,
            _ => RotaryLayout::Interleaved,
        };
        Ok(deepseek_v2::attention(base, fields, FAMILY.read_rope(fields)?, layout)?.into())
    },
    layer: llama::LAYER,
    decoder: Some(DecoderPaths { experts: Some(EXPERTS), ..llama::DECODER }),
    ..Family::SHARED
};

const EXPERTS: Experts = Experts {
    layers: ExpertLayers::From(Setting::new(&["first_k_dense_replace"], 3)),
    count: Setting::new(&["n_routed_experts", "num_local_experts"], 256),
    chosen: Setting::new(&["num_experts_per_tok"], Some(8)),
    size: Setting::new(&["moe_intermediate_size"], 2048),
    routing: Routing::Grouped(GroupedRouting {
        scores: GroupScores::Sigmoid {
            correction: "mlp.gate.e_score_correction_bias",
            normalised: Flag::Key("norm_topk_prob", true),
        },
        method: None,
        groups: Setting::new(&["n_group"], Some(8)),
        chosen: Setting::new(&["topk_group"], Some(4)),
        scale: Setting::new(&["routed_scaling_factor"], 2.5),
    }),
    shared: Some(SharedExpert {
        size: SharedSize::Experts(Setting::new(&["n_shared_experts"], 1)),
        ..deepseek_v2::SHARED
    }),
    ..deepseek_v2::EXPERTS
};
