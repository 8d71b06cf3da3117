//! Reads a Hugging Face checkpoint into the encoder.

use burn::module::{Module, Param};
use burn::nn::Embedding;
use burn::tensor::{DType, backend::Backend};
use burn_deepspeed::load::{Checkpoint, HuggingFaceConfig, LoadReport};
use burn_deepspeed::weight::{FusedNorm, Weight};
use burn_deepspeed::{OfBackend, WeightError};

use super::encoder::{Block, Encoder};

struct Reader<'a, B: Backend> {
    checkpoint: &'a Checkpoint,
    dtype: DType,
    device: B::Device,
}

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
        // `position_ids` is 0, 1, 2, … and was saved by older versions of `transformers`.
        let (buffer, pooler) = (at("embeddings.position_ids"), at("pooler."));
        checkpoint.ignore(|name| name == buffer || name.starts_with(&pooler) || name.starts_with("cls."));

        let dtype = config.attention_config(0).dtype.of_backend::<B>(device)?;
        let reader = Reader::<B> { checkpoint, dtype, device: device.clone() };
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for (layer, block) in self.blocks.into_iter().enumerate() {
            let path = config.layer_path(checkpoint, layer);
            let at = |name: &str| format!("{path}.{name}");
            blocks.push(Block {
                attention: block.attention.load(checkpoint, &config.attention_names(checkpoint, layer))?,
                attention_norm: reader.layer_norm(block.attention_norm, &at("attention.output.LayerNorm"))?,
                up: reader.linear(&block.up, &at("intermediate.dense"))?,
                down: reader.linear(&block.down, &at("output.dense"))?,
                output_norm: reader.layer_norm(block.output_norm, &at("output.LayerNorm"))?,
            });
        }
        let encoder = Self {
            words: reader.embedding(self.words, &at("embeddings.word_embeddings"))?,
            positions: reader.embedding(self.positions, &at("embeddings.position_embeddings"))?,
            token_types: reader.embedding(self.token_types, &at("embeddings.token_type_embeddings"))?,
            embedding_norm: reader.layer_norm(self.embedding_norm, &at("embeddings.LayerNorm"))?,
            blocks,
        };
        Ok((encoder.no_grad(), checkpoint.finish()?))
    }
}

impl<B: Backend> Reader<'_, B> {
    fn embedding(&self, module: Embedding<B>, path: &str) -> Result<Embedding<B>, WeightError> {
        let shape = module.weight.lazy_shape().dims::<2>();
        let weight = self.checkpoint.tensor(&format!("{path}.weight"), shape, self.dtype, &self.device)?;
        Ok(Embedding { weight: Param::from_tensor(weight) })
    }

    fn linear(&self, weight: &Weight<B>, path: &str) -> Result<Weight<B>, WeightError> {
        let (input, output) = (weight.input_size(), weight.output_size());
        let shape = weight.orientation().shape(input, output);
        let matrix = self.checkpoint.tensor(&format!("{path}.weight"), shape, self.dtype, &self.device)?;
        let bias = self.checkpoint.tensor(&format!("{path}.bias"), [output], self.dtype, &self.device)?;
        Ok(Weight::new(matrix, Some(bias), weight.orientation()))
    }

    /// Checkpoints that come from TensorFlow call the parameters `gamma` and `beta`.
    fn layer_norm(&self, norm: FusedNorm<B>, path: &str) -> Result<FusedNorm<B>, WeightError> {
        let [gamma, beta] = match self.checkpoint.contains(&format!("{path}.gamma")) {
            true => ["gamma", "beta"],
            false => ["weight", "bias"],
        };
        let vector =
            |name: &str| self.checkpoint.tensor(&format!("{path}.{name}"), [norm.size()], self.dtype, &self.device);
        Ok(FusedNorm::new(vector(gamma)?, Some(vector(beta)?), norm.spec()))
    }
}
