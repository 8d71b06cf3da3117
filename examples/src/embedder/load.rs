//! Reads a Hugging Face checkpoint into the encoder.

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn_deepspeed::WeightError;
use burn_deepspeed::element::OfBackend;
use burn_deepspeed::load::{
    Checkpoint, HuggingFaceConfig, LoadReport, NormNames, ParameterReader, WeightNames, WeightPart,
};
use burn_deepspeed::weight::{Orientation, Weight};

use super::encoder::{Block, Encoder};

impl<B: Backend> Encoder<B> {
    /// The encoder with the weights of a checkpoint, whose names may start with `bert.`. Every tensor must be used,
    /// except buffers and the heads of BERT's own training.
    pub fn load(
        self,
        config: &HuggingFaceConfig,
        checkpoint: &Checkpoint,
        device: &B::Device,
    ) -> Result<(Self, LoadReport), WeightError> {
        let prefix = config.prefix(checkpoint);
        let at = |name: &str| format!("{prefix}{name}");
        config.ignore_buffers(checkpoint);
        let pooler = at("pooler.");
        checkpoint.ignore(|name| name.starts_with(&pooler) || name.starts_with("cls."));

        let dtype = config.attention_config(0).dtype.of_backend::<B>(device)?;
        let reader = ParameterReader::<B>::new(checkpoint, dtype, device);
        let norm = |module, path: &str| reader.norm(&module, &norm_names(checkpoint, path));
        let linear = |module: &Weight<B>, path: &str| {
            reader.projection(module, &WeightNames::of(path), Orientation::OutputInput, &WeightPart::Whole)
        };
        let embedding = |module, path: &str| reader.embedding(module, &at(&format!("embeddings.{path}.weight")));
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for (layer, block) in self.blocks.into_iter().enumerate() {
            let path = config.layer_path(checkpoint, layer);
            let at = |name: &str| format!("{path}.{name}");
            blocks.push(Block {
                attention: block.attention.load(checkpoint, &config.attention_names(checkpoint, layer))?,
                attention_norm: norm(block.attention_norm, &at("attention.output.LayerNorm"))?,
                up: linear(&block.up, &at("intermediate.dense"))?,
                down: linear(&block.down, &at("output.dense"))?,
                output_norm: norm(block.output_norm, &at("output.LayerNorm"))?,
            });
        }
        let encoder = Self {
            words: embedding(self.words, "word_embeddings")?,
            positions: embedding(self.positions, "position_embeddings")?,
            token_types: embedding(self.token_types, "token_type_embeddings")?,
            embedding_norm: norm(self.embedding_norm, &at("embeddings.LayerNorm"))?,
            blocks,
        };
        Ok((encoder.no_grad(), checkpoint.finish()?))
    }
}

/// The names of a norm. Checkpoints that come from TensorFlow call the parameters `gamma` and `beta`.
fn norm_names(checkpoint: &Checkpoint, path: &str) -> NormNames {
    let gamma = format!("{path}.gamma");
    match checkpoint.contains(&gamma) {
        true => NormNames::new(gamma, format!("{path}.beta")),
        false => NormNames::of(path),
    }
}
