//! Embeddings of the tokens for each layer, and what a layer adds of them to its output (Gemma 3n and 4).

use burn::module::Module;
use burn::nn::RmsNormConfig;
use burn::tensor::{Int, Tensor, backend::Backend};
use burn_deepspeed::load::families::LayerInputPaths;
use burn_deepspeed::load::{HuggingFaceConfig, ParameterReader, WeightNames, WeightPart};
use burn_deepspeed::weight::{Int8Blocks, Orientation, Weight};
use burn_deepspeed::{ConfigError, InferenceBackend, Operations, WeightError};

use super::activation::Activation;
use super::parts::{Norm, embed, embedding, linear, norm, rounded};

/// The inputs of all layers, from the tokens and their embedding.
#[derive(Module, Debug)]
pub(super) struct LayerInputs<B: Backend> {
    /// The embedding, whose outputs are the tokens.
    tokens: Weight<B>,
    projection: Weight<B>,
    norm: Norm<B>,
    /// Width of the residual stream, and features of a token for one layer.
    #[module(skip)]
    sizes: [usize; 2],
}

/// What a layer adds to its output.
#[derive(Module, Debug)]
pub(super) struct LayerInput<B: Backend> {
    gate: Weight<B>,
    output: Weight<B>,
    norm: Norm<B>,
    /// The first feature of this layer, and how many it has.
    #[module(skip)]
    features: [usize; 2],
}

impl<B: Backend> LayerInputs<B> {
    pub fn init(config: &HuggingFaceConfig, paths: &LayerInputPaths, device: &B::Device) -> Result<Self, ConfigError> {
        let (attention, all) = (config.attention_config(0), config.layers.saturating_mul(paths.size));
        if paths.rows < config.vocab_size {
            let supported = format!("at least {}, the tokens of the vocabulary", config.vocab_size);
            return Err(config.fields()?.unsupported("vocab_size_per_layer_input", &supported));
        }
        Ok(Self {
            tokens: embedding(config, [paths.rows, all], device)?,
            projection: linear(config, [attention.hidden_size, all], false, device)?,
            norm: Norm::Rms(RmsNormConfig::new(paths.size).with_epsilon(attention.layer_norm_eps).init(device)),
            sizes: [attention.hidden_size, paths.size],
        })
    }

    /// Reads the parameters; `at` gives a path in the file.
    pub fn load(
        self,
        config: &HuggingFaceConfig,
        paths: &LayerInputPaths,
        reader: &ParameterReader<'_, B>,
        at: impl Fn(&str) -> String,
    ) -> Result<Self, WeightError> {
        let [tokens, names] = [paths.tokens, paths.projection].map(|path| WeightNames::of(&at(path)));
        Ok(Self {
            tokens: reader.projection(&self.tokens, &tokens, Orientation::OutputInput, &WeightPart::Whole)?,
            projection: reader.projection(&self.projection, &names, config.layer().orientation, &WeightPart::Whole)?,
            norm: self.norm.read(reader, &config.layer().norm_names(&at(paths.norm)))?,
            ..self
        })
    }

    pub fn quantize(self, blocks: Int8Blocks) -> Result<Self, WeightError> {
        Ok(Self { projection: self.projection.quantize(blocks)?, ..self })
    }
}

impl<B: InferenceBackend> LayerInputs<B> {
    /// # Shapes
    /// - ids: `[B, T]`; embedded: `[B, T, E]`
    /// - output: `[B, T, layers · features]`
    pub fn forward(&self, ids: Tensor<B, 2, Int>, embedded: Tensor<B, 3>) -> Tensor<B, 3> {
        let [hidden, size] = self.sizes;
        let tokens = embed(&self.tokens, ids);
        let factor = rounded((size as f64).sqrt(), tokens.dtype());
        let projected = B::Ops::linear(embedded, &self.projection).div_scalar((hidden as f64).sqrt());
        let [batch, count, all] = projected.dims();
        let of_layers = projected.reshape([batch, count * (all / size), size]);
        let projected = self.norm.forward(of_layers).reshape([batch, count, all]);
        (projected + tokens.mul_scalar(factor)).mul_scalar(0.5f64.sqrt())
    }
}

impl<B: Backend> LayerInput<B> {
    pub fn init(
        config: &HuggingFaceConfig,
        paths: &LayerInputPaths,
        layer: usize,
        device: &B::Device,
    ) -> Result<Self, ConfigError> {
        let (hidden, size) = (config.attention_config(0).hidden_size, paths.size);
        Ok(Self {
            gate: linear(config, [hidden, size], false, device)?,
            output: linear(config, [size, hidden], false, device)?,
            norm: norm(config, device),
            features: [layer.saturating_mul(size), size],
        })
    }

    /// Reads the parameters; `at` gives a path in the file.
    pub fn load(
        self,
        config: &HuggingFaceConfig,
        paths: &LayerInputPaths,
        reader: &ParameterReader<'_, B>,
        at: impl Fn(&str) -> String,
    ) -> Result<Self, WeightError> {
        let projection = |module: &Weight<B>, path: &str| {
            let names = WeightNames::of(&at(path));
            reader.projection(module, &names, config.layer().orientation, &WeightPart::Whole)
        };
        Ok(Self {
            gate: projection(&self.gate, paths.gate)?,
            output: projection(&self.output, paths.output)?,
            norm: self.norm.read(reader, &config.layer().norm_names(&at(paths.output_norm)))?,
            ..self
        })
    }

    pub fn quantize(self, blocks: Int8Blocks) -> Result<Self, WeightError> {
        Ok(Self { gate: self.gate.quantize(blocks)?, output: self.output.quantize(blocks)?, ..self })
    }
}

impl<B: InferenceBackend> LayerInput<B> {
    /// # Shapes
    /// - x, output: `[B, T, E]`; inputs: `[B, T, layers · features]`
    pub fn forward(&self, x: Tensor<B, 3>, inputs: &Tensor<B, 3>, activation: Activation) -> Tensor<B, 3> {
        let [first, size] = self.features;
        let gate = B::Ops::linear(x.clone(), &self.gate);
        let inner = activation.gated(gate, inputs.clone().narrow(2, first, size));
        x + self.norm.forward(B::Ops::linear(inner, &self.output))
    }
}
