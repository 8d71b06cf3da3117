//! How an encoder-decoder is built: what its `config.json` says, checked before a weight is read.

use burn_deepspeed::load::families::{Gate, StackPaths};
use burn_deepspeed::load::{EncoderDecoderConfig, Stack};
use burn_deepspeed::{ConfigError, DeepSpeedInferenceConfig};

use crate::decoder::activation::Activation;
use crate::layers::MlpPlan;

/// How a stack of layers is built.
pub struct StackPlan<'a> {
    pub config: &'a EncoderDecoderConfig,
    pub stack: &'a Stack,
    pub paths: &'static StackPaths,
    pub mlp: MlpPlan,
}

impl<'a> StackPlan<'a> {
    /// The encoder and the decoder.
    ///
    /// # Errors
    /// A [`ConfigError`] about the activation.
    pub fn both(config: &'a EncoderDecoderConfig) -> Result<[Self; 2], ConfigError> {
        let activation = Activation::named(&config.activation, config.family.activation)?;
        let plan = |stack: &'a Stack, paths: &'static StackPaths| {
            let (gate, up) = match paths.mlp.gated {
                Some([gate, up]) if config.gated => (Gate::At(gate), up),
                _ => (Gate::None, paths.mlp.up),
            };
            let (down, bias, inner) = (paths.mlp.down, paths.mlp.bias, stack.mlp_size);
            Self { config, stack, paths, mlp: MlpPlan { gate, up, down, bias, inner, activation } }
        };
        Ok([plan(&config.encoder, &config.family.encoder), plan(&config.decoder, &config.family.decoder)])
    }

    /// The settings of attention.
    pub fn attention(&self) -> &DeepSpeedInferenceConfig {
        &self.stack.attention
    }
}
