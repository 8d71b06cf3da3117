//! The model families whose configurations and checkpoints are known, one record each.
//!
//! To add a family, write its record in a new file and add it to [`ALL`].

mod arcee;
mod bart;
mod bert;
mod bloom;
mod clip;
mod cohere;
mod cohere2;
mod deepseek_v2;
mod deepseek_v3;
mod distilbert;
mod ernie4_5;
mod falcon;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma4;
mod glm;
mod glm4;
mod gpt2;
mod gpt_bigcode;
mod gpt_neo;
mod gpt_neox;
mod gpt_oss;
mod gptj;
mod granite;
mod helium;
mod internlm2;
mod llama;
mod llama4;
mod ministral;
mod ministral3;
mod mistral;
mod mixtral;
mod modernbert;
mod mpt;
mod olmo;
mod olmo2;
mod olmo3;
mod opt;
mod phi;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod roberta;
mod rotary;
mod seed_oss;
mod siglip;
mod smollm3;
mod stablelm;
mod starcoder2;
mod t5;
mod table;
mod vit;
mod whisper;

pub use super::class::{Class, MlpSize, Setting};
pub use super::decoder::{DecoderPaths, Factor, Gate, LayerInputPaths};
pub use super::encoder::{
    BlockNorms, ClassPooling, EncoderInput, EncoderPaths, ImageShape, PatchPaths, PositionIds, TokenPaths,
    VectorProjection,
};
pub use super::encoder_decoder::{
    BlockSettings, BranchPaths, EncoderDecoder, EncoderDecoderClass, MlpPaths, RelativePaths, SourceInput, StackPaths,
};
pub use super::experts::{
    ExpertActivation, ExpertLayers, ExpertSizes, ExpertWeights, Experts, GateOrder, SharedExpert, SharedSize,
};
pub use super::family::{Family, FamilyAttention, PositionTable, ReadLatent, Variant};
pub use super::flag::Flag;
pub use super::layer_kinds::LayerKinds;
pub use super::layer_paths::{LayerPaths, QkNormPaths, QkvPaths};
pub use super::layer_types::LayerType;
pub use super::only::Only;
pub use super::pair::Pair;
pub use super::rope::{Rope, RopeKeys};
pub use super::routing::{GroupScores, GroupSizes, GroupedRouting, Routing};
use crate::error::ConfigError;
pub use crate::fields::Fields;
pub use table::table;

/// Every family.
pub const ALL: &[&Family] = &[
    &bloom::FAMILY,
    &gpt2::FAMILY,
    &gpt_neo::FAMILY,
    &gpt_neox::FAMILY,
    &gptj::FAMILY,
    &gpt_bigcode::FAMILY,
    &opt::FAMILY,
    &mpt::FAMILY,
    &falcon::FAMILY,
    &gpt_oss::FAMILY,
    &llama::FAMILY,
    &llama4::FAMILY,
    &mistral::FAMILY,
    &mixtral::FAMILY,
    &ministral::FAMILY,
    &ministral3::FAMILY,
    &internlm2::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &qwen2_moe::FAMILY,
    &qwen3_moe::FAMILY,
    &deepseek_v2::FAMILY,
    &deepseek_v3::FAMILY,
    &gemma::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
    &gemma4::FAMILY,
    &phi::FAMILY,
    &phi3::FAMILY,
    &smollm3::FAMILY,
    &olmo::FAMILY,
    &olmo2::FAMILY,
    &olmo3::FAMILY,
    &granite::FAMILY,
    &cohere::FAMILY,
    &cohere2::FAMILY,
    &stablelm::FAMILY,
    &starcoder2::FAMILY,
    &glm4::FAMILY,
    &glm::FAMILY,
    &helium::FAMILY,
    &ernie4_5::FAMILY,
    &seed_oss::FAMILY,
    &arcee::FAMILY,
    &bert::FAMILY,
    &distilbert::FAMILY,
    &roberta::FAMILY,
    &roberta::XLM,
    &modernbert::FAMILY,
    &clip::TEXT,
    &clip::VISION,
    &siglip::TEXT,
    &siglip::VISION,
    &vit::FAMILY,
];

/// Every checkpoint that holds two encoders.
pub const PAIRS: &[&Pair] = &[&clip::PAIR, &siglip::PAIR];

/// Every family of encoder-decoders.
pub const ENCODER_DECODERS: &[&EncoderDecoder] = &[&t5::FAMILY, &t5::MULTILINGUAL, &bart::FAMILY, &whisper::FAMILY];

/// The pair of a `model_type`.
pub(super) fn pair_of_model_type(model_type: &str) -> Option<&'static Pair> {
    PAIRS.iter().copied().find(|pair| pair.model_type == model_type)
}

/// Classes with linear attention in most of their layers.
const LINEAR: &[&str] = &["qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"];

/// The family of a `model_type`.
///
/// # Errors
/// [`ConfigError::UnknownModelType`] with the names of [`ALL`] and [`PAIRS`]; [`ConfigError::Unsupported`] for a class with linear attention,
/// and for an encoder-decoder.
pub fn of_model_type(model_type: &str) -> Result<&'static Family, ConfigError> {
    if LINEAR.contains(&model_type) {
        return Err(ConfigError::Unsupported {
            key: "layer_types".into(),
            value: format!("\"linear_attention\" in most layers of a `{model_type}`"),
            supported: "models whose layers are all softmax attention, such as `qwen3` and `qwen3_moe`".into(),
        });
    }
    if encoder_decoder_of_model_type(model_type).is_some() {
        return Err(ConfigError::Unsupported {
            key: "model_type".into(),
            value: format!("\"{model_type}\", an encoder-decoder"),
            supported: "decoders and encoders; read it with `EncoderDecoderConfig`, run it with the example `seq2seq`"
                .into(),
        });
    }
    ALL.iter().copied().find(|family| family.model_types.contains(&model_type)).ok_or_else(|| {
        let pairs = PAIRS.iter().map(|pair| pair.model_type);
        let supported = ALL.iter().map(|family| family.name()).chain(pairs).collect();
        ConfigError::UnknownModelType { model_type: model_type.into(), supported }
    })
}

/// The encoder-decoder of a `model_type`.
pub(super) fn encoder_decoder_of_model_type(model_type: &str) -> Option<&'static EncoderDecoder> {
    ENCODER_DECODERS.iter().copied().find(|family| family.model_types.contains(&model_type))
}
