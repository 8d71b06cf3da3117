//! Every architecture that is read.

mod encoder;
mod gemma;
mod layer_norm;
mod llama;
mod shared;

use super::architecture::Architecture;

/// Every architecture.
pub(super) const ALL: &[&Architecture] = &[
    &llama::LLAMA,
    &llama::QWEN2,
    &llama::QWEN3,
    &gemma::GEMMA3,
    &gemma::GEMMA2,
    &gemma::GEMMA,
    &llama::PHI3,
    &llama::GRANITE,
    &llama::SMOLLM3,
    &llama::OLMO2,
    &llama::GLM4,
    &layer_norm::STABLELM,
    &layer_norm::STARCODER2,
    &layer_norm::PHI2,
    &layer_norm::GPT2,
    &layer_norm::GPT_NEOX,
    &layer_norm::BLOOM,
    &layer_norm::MPT,
    &layer_norm::COMMAND_R,
    &layer_norm::FALCON,
    &encoder::BERT,
];
