//! The adder: a tiny BLOOM, and what a training step does with it.

use burn::module::Module;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor};
use burn::train::{ClassificationOutput, InferenceStep, TrainOutput, TrainStep};
use burn_deepspeed::load::HuggingFaceConfig;
use burn_deepspeed::{ConfigError, InferenceBackend};
use serde_json::{Value, json};

use burn_deepspeed_examples::decoder::Decoder;

use super::data::SumBatch;
use super::tokenizer::{END, PAD, VOCAB_SIZE};

/// The `config.json` of the adder, a BLOOM's.
pub fn config_record() -> Value {
    json!({
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "dtype": "float32",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "n_layer": 3,
        "n_head": 4,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "apply_residual_connection_post_layernorm": false,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "tie_word_embeddings": false,
        "bos_token_id": null,
        "eos_token_id": END,
        "pad_token_id": PAD,
    })
}

/// A language model in training.
#[derive(Module, Debug)]
pub struct Adder<B: Backend> {
    /// The model itself.
    pub decoder: Decoder<B>,
}

impl<B: Backend> Adder<B> {
    /// An adder that has learned nothing yet.
    pub fn init(config: &HuggingFaceConfig, device: &B::Device) -> Result<Self, ConfigError> {
        Ok(Self { decoder: Decoder::init(config, device)? })
    }
}

impl<B: InferenceBackend> Adder<B> {
    /// The loss on the answers; the prompts only set them.
    fn classify(&self, batch: SumBatch<B>) -> ClassificationOutput<B> {
        let logits: Tensor<B, 3> = match self.decoder.forward_uncached(batch.ids) {
            Ok(logits) => logits,
            // A training step of burn-train cannot fail, and nothing here has a second rank that could be missing.
            Err(error) => panic!("the adder runs on one rank: {error}"),
        };
        let answers = logits.flatten::<2>(0, 1).select(0, batch.positions);
        let targets: Tensor<B, 1, Int> = batch.targets;
        let loss = CrossEntropyLossConfig::new().init(&answers.device()).forward(answers.clone(), targets.clone());
        ClassificationOutput::new(loss, answers, targets)
    }
}

impl<B: InferenceBackend + AutodiffBackend> TrainStep for Adder<B> {
    type Input = SumBatch<B>;
    type Output = ClassificationOutput<B>;

    fn step(&self, batch: SumBatch<B>) -> TrainOutput<ClassificationOutput<B>> {
        let output = self.classify(batch);
        TrainOutput::new(self, output.loss.backward(), output)
    }
}

impl<B: InferenceBackend> InferenceStep for Adder<B> {
    type Input = SumBatch<B>;
    type Output = ClassificationOutput<B>;

    fn step(&self, batch: SumBatch<B>) -> ClassificationOutput<B> {
        self.classify(batch)
    }
}
