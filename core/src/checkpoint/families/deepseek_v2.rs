//! DeepSeek V2: latent attention, and experts of which some see every token.

use super::llama;
use crate::checkpoint::class::{Class, MlpSize, Setting};
use crate::checkpoint::decoder::DecoderPaths;
use crate::checkpoint::experts::{ExpertActivation, ExpertLayers, ExpertWeights, Experts, SharedExpert, SharedSize};
use crate::checkpoint::family::Family;
use crate::checkpoint::only::Only;
use crate::checkpoint::rope::{Rope, RopeKeys};
use crate::checkpoint::routing::{GroupScores, GroupedRouting, Routing};
use crate::config::{DeepSpeedInferenceConfig, NormType};
use crate::error::ConfigError;
use crate::fields::Fields;
use crate::latent::LatentSizes;
use crate::layout::RotaryLayout;
use crate::position::rotary::RopeScaling;

pub(super) static FAMILY: Family = Family {
    title: "DeepSeek V2",
    about: "latent attention, interleaved rotary; after the first layers experts, in some models in groups, and shared ones",
    model_types: &["deepseek_v2"],
    class: Class {
        name: "DeepseekV2Config",
        mlp_size: Setting::new(&["intermediate_size"], MlpSize::Fixed(11008)),
        vocab_size: Setting::new(&["vocab_size"], 102400),
        max_positions: Setting::new(&["max_position_embeddings"], Some(2048)),
        ..llama::CLASS
    },
    reads: READS,
    rope: Some(RopeKeys::SHARED),
    only: &[
        // The class does not read these: its rotary pairs are neighbours, and it does not normalise.
        Only::flag("rope_interleave", true),
        Only::flag("norm_topk_prob", false),
        Only::flag("mlp_bias", false),
        Only::text("scoring_func", "softmax"),
        EVERY_LAYER,
        DENSE_FLOATS,
    ],
    harmless: HARMLESS,
    latent: Some(sizes),
    attention: |base, fields| Ok(attention(base, fields, FAMILY.read_rope(fields)?, RotaryLayout::Interleaved)?.into()),
    layer: llama::LAYER,
    decoder: Some(DecoderPaths { experts: Some(EXPERTS), ..llama::DECODER }),
    ..Family::SHARED
};

/// Keys that [`attention`] and [`sizes`] read, and the layout, of which V2 has one.
pub(super) const READS: &[&str] = &[
    "attention_bias",
    "head_dim",
    "kv_lora_rank",
    "num_key_value_heads",
    "q_lora_rank",
    "qk_head_dim",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "rope_interleave",
    "v_head_dim",
];

/// Keys of training, and of experts on several devices.
pub(super) const HARMLESS: &[&str] = &["aux_loss_alpha", "ep_size", "output_router_logits", "seq_aux"];

/// The classes put experts into every layer after the first ones.
pub(super) const EVERY_LAYER: Only = Only::number("moe_layer_freq", 1.0);

/// What to do with the files that DeepSeek published in fp8.
pub(super) const DENSE_FLOATS: Only = Only::nothing(
    "quantization_config",
    "fp8 and other quantised weights are not read: convert the checkpoint to bf16, as DeepSeek's `fp8_cast_bf16.py` does, and remove the key",
);

/// What V3 shares.
pub(super) const EXPERTS: Experts = Experts {
    layers: ExpertLayers::From(Setting::new(&["first_k_dense_replace"], 0)),
    count: Setting::new(&["n_routed_experts", "num_experts"], 64),
    chosen: Setting::new(&["num_experts_per_tok"], None),
    size: Setting::new(&["moe_intermediate_size"], 1407),
    router: "mlp.gate",
    router_bias: false,
    routing: Routing::Grouped(ROUTING),
    weights: ExpertWeights::Separate("mlp.experts", ["gate_proj", "up_proj", "down_proj"]),
    activation: ExpertActivation::Gated,
    shared: Some(SHARED),
};

/// The MLP for every token.
pub(super) const SHARED: SharedExpert = SharedExpert {
    size: SharedSize::Experts(Setting::new(&["n_shared_experts"], 2)),
    gate: "mlp.shared_experts.gate_proj",
    up: "mlp.shared_experts.up_proj",
    down: "mlp.shared_experts.down_proj",
    scale: None,
};

const ROUTING: GroupedRouting = GroupedRouting {
    scores: GroupScores::Softmax,
    method: Some("topk_method"),
    groups: Setting::new(&["n_group"], None),
    chosen: Setting::new(&["topk_group"], None),
    scale: Setting::new(&["routed_scaling_factor"], 1.0),
};

/// The sizes of the latents.
pub(super) fn sizes(fields: &Fields<'_>) -> Result<LatentSizes, ConfigError> {
    let size = |name, default| Ok::<_, ConfigError>(fields.positive(&[name])?.unwrap_or(default));
    let key = [size("qk_nope_head_dim", 128)?, size("qk_rope_head_dim", 64)?];
    let sizes = LatentSizes::new(size("kv_lora_rank", 512)?, key, size("v_head_dim", 128)?);
    Ok(sizes.with_q_lora_rank(fields.positive_or_null("q_lora_rank", Some(1536))?))
}

/// Norm, biases, rotary positions and the factor of the scores.
pub(super) fn attention(
    base: DeepSpeedInferenceConfig,
    fields: &Fields<'_>,
    rope: Rope,
    layout: RotaryLayout,
) -> Result<DeepSpeedInferenceConfig, ConfigError> {
    let LatentSizes { qk_nope_head_dim: nope, qk_rope_head_dim: rotated, .. } = sizes(fields)?;
    let key = nope.saturating_add(rotated);
    // Sizes that the class computes itself, whatever the file says.
    for (name, expected) in [("head_dim", rotated), ("qk_head_dim", key), ("num_key_value_heads", base.heads)] {
        if fields.size(&[name])?.is_some_and(|given| given != expected && !fields.allows(name)) {
            return Err(fields.unsupported(name, &format!("{expected}, which follows from the other sizes")));
        }
    }
    let Rope { theta, scaling, .. } = rope.whole()?;
    let bias = fields.flag(&["attention_bias"])?.unwrap_or(false);
    let factor = yarn_factor(fields, &scaling)? / (key as f64).sqrt();
    Ok(base
        .with_norm_type(NormType::RMSNorm)
        .with_qkv_bias(bias)
        .with_output_bias(bias)
        .with_rotary(layout, rotated)
        .with_rope_theta(theta)
        .with_rope_scaling(scaling)
        .with_score_factor(Some(factor)))
}

/// The square of YaRN's factor of queries and keys, `0.1 · mscale_all_dim · ln(factor) + 1`. That on cosine and sine is another.
fn yarn_factor(fields: &Fields<'_>, scaling: &RopeScaling) -> Result<f64, ConfigError> {
    let RopeScaling::Yarn { factor, .. } = scaling else { return Ok(1.0) };
    let scaling = fields.record("rope_scaling")?.filter(|record| !record.is_empty());
    let Some(record) = scaling.or(fields.record("rope_parameters")?) else { return Ok(1.0) };
    let weight = record.number(&["mscale_all_dim"])?.unwrap_or(0.0);
    Ok(if *factor > 1.0 { (0.1 * weight * factor.ln() + 1.0).powi(2) } else { 1.0 })
}
