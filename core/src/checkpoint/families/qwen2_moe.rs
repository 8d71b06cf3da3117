//! Qwen 2 with experts, one of which sees every token.

use super::{llama, qwen2, qwen3_moe};
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::DecoderPaths;
use crate::checkpoint::experts::{Experts, SharedExpert, SharedSize};
use crate::checkpoint::family::Family;
use crate::checkpoint::layer_kinds::LayerKinds;
use crate::checkpoint::rope::RopeKeys;
use crate::checkpoint::window;

/// Key/value heads, if `num_key_value_heads` is not given.
const KV_HEADS: usize = 16;
/// Keys that a query sees in a layer with a window, if `sliding_window` is not given.
const WINDOW: usize = 4096;
/// Layers in which every other one has a window, if `max_window_layers` is not given.
const WINDOWED: usize = 28;

pub(super) static FAMILY: Family = Family {
    title: "Qwen 1.5 and 2 with experts",
    about: "Qwen 2 with experts in some layers, and a shared expert with a gate",
    model_types: &["qwen2_moe"],
    class: Class {
        name: "Qwen2MoeConfig",
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(5632)),
        ..qwen2::CLASS
    },
    reads: &[
        "head_dim",
        "layer_types",
        "max_window_layers",
        "num_key_value_heads",
        "qkv_bias",
        "sliding_window",
        "use_sliding_window",
    ],
    rope: Some(RopeKeys::SHARED),
    harmless: &["output_router_logits", "router_aux_loss_coef"],
    attention: |base, fields| {
        let bias = fields.flag(&["qkv_bias"])?.unwrap_or(true);
        let mut config = base.with_qkv_bias(bias).with_output_bias(false);
        config.num_kv = Some(fields.positive(&["num_key_value_heads"])?.unwrap_or(KV_HEADS));
        let used = qwen2::used(fields, config.num_hidden_layers.unwrap_or(0))?;
        let window = window::size(fields, Some(WINDOW))?.filter(|_| used);
        let windowed = fields.size(&["max_window_layers"])?.unwrap_or(WINDOWED) as u64;
        // The first layer has a window, and each second after it.
        let pattern = LayerKinds::repeated([(vec![1, 0], windowed / 2), (vec![1], windowed % 2)]);
        let layers = if window.is_some() { pattern } else { LayerKinds::default() };
        window::listed(fields, llama::attention(config, fields, FAMILY.read_rope(fields)?)?, window, layers)
    },
    layer: llama::LAYER,
    decoder: Some(DecoderPaths { experts: Some(EXPERTS), ..llama::DECODER }),
    ..Family::SHARED
};

const EXPERTS: Experts = Experts {
    count: Setting::new(&["num_experts"], 60),
    chosen: Setting::new(&["num_experts_per_tok"], Some(4)),
    size: Setting::new(&["moe_intermediate_size"], 1408),
    shared: Some(SharedExpert {
        size: SharedSize::Features(Setting::new(&["shared_expert_intermediate_size"], 5632)),
        gate: "mlp.shared_expert.gate_proj",
        up: "mlp.shared_expert.up_proj",
        down: "mlp.shared_expert.down_proj",
        scale: Some("mlp.shared_expert_gate"),
    }),
    ..qwen3_moe::EXPERTS
};
