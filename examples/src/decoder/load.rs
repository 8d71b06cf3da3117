//! Reads a Hugging Face checkpoint into the decoder: on several ranks, each its part of it.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};
use burn_deepspeed::WeightError;
use burn_deepspeed::element::OfBackend;
use burn_deepspeed::load::{
    Checkpoint, HuggingFaceConfig, LoadReport, NormNames, ParameterReader, WeightNames, WeightPart,
};
use burn_deepspeed::weight::{Int8Blocks, Orientation, Weight, transposed};

use super::{Block, Decoder, Norm, paths};

impl<B: Backend> Decoder<B> {
    /// The model with the weights of a checkpoint. An error names every tensor that has no place in the model.
    pub fn load(
        mut self,
        config: &HuggingFaceConfig,
        checkpoint: &Checkpoint,
        device: &B::Device,
    ) -> Result<(Self, LoadReport), WeightError> {
        config.ignore_buffers(checkpoint);
        let (paths, orientation) = (paths(config)?, config.family.layer.orientation);
        let attention = config.attention_config(0);
        let reader = ParameterReader::<B>::new(checkpoint, attention.dtype.of_backend::<B>(device)?, device);
        let prefix = config.prefix(checkpoint);
        let at = |path: &str| format!("{prefix}{path}");
        let table = |path: &str| format!("{prefix}{path}.weight");

        self.tokens = reader.embedding(self.tokens, &table(paths.tokens))?;
        if let (Some(module), Some(positions)) = (self.positions.take(), config.family.positions) {
            self.positions = Some(reader.embedding(module, &table(positions.path))?);
        }
        if let (Some(norm), Some(path)) = (self.embedding_norm.take(), paths.embedding_norm) {
            self.embedding_norm = Some(reader.layer_norm(norm, &NormNames::of(&at(path)))?);
        }
        self.final_norm = self.final_norm.read(&reader, &at(paths.final_norm))?;

        let (own, all) = (attention.rank_group()?.part(config.mlp_size), config.mlp_size);
        let (inner, outer) = (WeightPart::Outputs { own: own.clone(), all }, WeightPart::Inputs { own, all });
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for (layer, block) in self.blocks.into_iter().enumerate() {
            let layer_path = config.layer_path(checkpoint, layer);
            let at = |path: &str| format!("{layer_path}.{path}");
            let projection = |module: &Weight<B>, path: &str, part: &WeightPart| {
                reader.projection(module, &WeightNames::of(&at(path)), orientation, part)
            };
            let mlp_norm = match (block.mlp_norm, paths.mlp_norm) {
                (Some(norm), Some(path)) => Some(norm.read(&reader, &at(path))?),
                (norm, _) => norm,
            };
            let gate = match (block.gate, paths.gate) {
                (Some(gate), Some(path)) => Some(projection(&gate, path, &inner)?),
                (gate, _) => gate,
            };
            blocks.push(Block {
                attention: block.attention.load(checkpoint, &config.attention_names(checkpoint, layer))?,
                mlp_norm,
                gate,
                up: projection(&block.up, paths.up, &inner)?,
                down: projection(&block.down, paths.down, &outer)?,
                ..block
            });
        }
        self.blocks = blocks;

        let untied = checkpoint.contains(&format!("{}.weight", paths.head)) || !config.tie_word_embeddings;
        self.head = match untied {
            true => reader.projection(
                &self.head,
                &WeightNames::of(paths.head),
                Orientation::OutputInput,
                &WeightPart::Whole,
            )?,
            false => tied(&self.head, self.tokens.weight.val())?,
        };
        let report = checkpoint.finish()?;
        Ok((self.no_grad(), report))
    }
}

/// The head of a model whose output embedding is its input embedding, in the form in which the module stores it. The tensor is
/// shared where that form is the same.
fn tied<B: Backend>(head: &Weight<B>, tokens: Tensor<B, 2>) -> Result<Weight<B>, WeightError> {
    let matrix = match head.orientation() {
        Orientation::OutputInput => tokens,
        Orientation::InputOutput => transposed(tokens),
    };
    let weight = Weight::new(matrix, None, head.orientation());
    if head.int8().is_some() { weight.quantize(Int8Blocks::PerOutput) } else { Ok(weight) }
}

impl<B: Backend> Norm<B> {
    fn read(self, reader: &ParameterReader<'_, B>, path: &str) -> Result<Self, WeightError> {
        let names = NormNames::of(path);
        Ok(match self {
            Self::Layer(norm) => Self::Layer(reader.layer_norm(norm, &names)?),
            Self::Rms(norm) => Self::Rms(reader.rms_norm(norm, &names)?),
        })
    }
}
