//! Qwen 3 with experts.

use super::{llama, qwen2, qwen3};
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::DecoderPaths;
use crate::checkpoint::experts::{ExpertActivation, ExpertLayers, ExpertWeights, Experts};
use crate::checkpoint::family::Family;
use crate::checkpoint::flag::Flag;
use crate::checkpoint::layer_kinds::LayerKinds;
use crate::checkpoint::rope::RopeKeys;
use crate::checkpoint::routing::Routing;
use crate::checkpoint::window;
use crate::qk_norm::{QkNorm, QkNormKind, QkNormWeights};

/// Key/value heads, if `num_key_value_heads` is not given.
const KV_HEADS: usize = 4;
/// Keys that a query sees under `use_sliding_window`, if `sliding_window` is not given.
const WINDOW: usize = 4096;

pub(super) static FAMILY: Family = Family {
    title: "Qwen 3 with experts",
    about: "Qwen 3 with experts in some layers",
    model_types: &["qwen3_moe"],
    class: Class {
        name: "Qwen3MoeConfig",
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(6144)),
        ..qwen2::CLASS
    },
    reads: &["attention_bias", "head_dim", "num_key_value_heads", "sliding_window", "use_sliding_window"],
    rope: Some(RopeKeys::SHARED),
    harmless: &["max_window_layers", "output_router_logits", "router_aux_loss_coef"],
    attention: |base, fields| {
        let bias = fields.flag(&["attention_bias"])?.unwrap_or(false);
        let norm = QkNorm::new(QkNormKind::Rms, QkNormWeights::Shared, base.layer_norm_eps);
        let mut config = base.with_qkv_bias(bias).with_output_bias(bias).with_qk_norm(Some(norm));
        config.num_kv = Some(fields.positive(&["num_key_value_heads"])?.unwrap_or(KV_HEADS));
        let used = fields.flag(&["use_sliding_window"])?.unwrap_or(false);
        let window = window::size(fields, Some(WINDOW))?.filter(|_| used);
        let config = llama::attention(config, fields, FAMILY.read_rope(fields)?)?;
        let layers = LayerKinds::all(usize::from(window.is_some()));
        window::attention([config.clone(), config], window, layers)
    },
    layer: qwen3::LAYER,
    decoder: Some(DecoderPaths { experts: Some(EXPERTS), ..llama::DECODER }),
    ..Family::SHARED
};

/// What Qwen 2 with experts shares.
pub(super) const EXPERTS: Experts = Experts {
    layers: ExpertLayers::StepWithout { step: "decoder_sparse_step", without: "mlp_only_layers" },
    count: Setting::new(&["num_experts", "num_local_experts"], 128),
    chosen: Setting::new(&["num_experts_per_tok"], Some(8)),
    size: Setting::new(&["moe_intermediate_size"], 768),
    router: "mlp.gate",
    router_bias: false,
    routing: Routing::SoftmaxOfAll { normalised: Flag::Key("norm_topk_prob", false) },
    weights: ExpertWeights::Separate("mlp.experts", ["gate_proj", "up_proj", "down_proj"]),
    activation: ExpertActivation::Gated,
    shared: None,
};
