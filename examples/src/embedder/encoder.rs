//! BERT: embeddings, and post-norm blocks around this crate's attention.
//!
//! [BERT](https://arxiv.org/abs/1810.04805) normalises after each sum, not before attention, and every token sees
//! every other: the preset builds [`DeepSpeedSelfAttention`] without a norm and without a triangle.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Initializer};
use burn::tensor::{DType, Int, Tensor, backend::Backend};
use burn_deepspeed::error::Origin;
use burn_deepspeed::load::HuggingFaceConfig;
use burn_deepspeed::spec::NormSpec;
use burn_deepspeed::weight::{FusedNorm, Int8Blocks, Orientation, Weight};
use burn_deepspeed::{
    AttentionError, AttentionInit, AttentionMask, ConfigError, DeepSpeedSelfAttention, InferenceBackend, Operations,
    WeightError,
};

/// Segments that the class of BERT tells apart, if `type_vocab_size` is not given.
const TOKEN_TYPES: usize = 2;

/// A BERT encoder without a head.
#[derive(Module, Debug)]
pub struct Encoder<B: Backend> {
    pub(super) words: Embedding<B>,
    pub(super) positions: Embedding<B>,
    pub(super) token_types: Embedding<B>,
    pub(super) embedding_norm: FusedNorm<B>,
    pub(super) blocks: Vec<Block<B>>,
}

/// One layer.
#[derive(Module, Debug)]
pub struct Block<B: Backend> {
    pub(super) attention: DeepSpeedSelfAttention<B>,
    pub(super) attention_norm: FusedNorm<B>,
    pub(super) up: Weight<B>,
    pub(super) down: Weight<B>,
    pub(super) output_norm: FusedNorm<B>,
}

impl<B: Backend> Encoder<B> {
    /// An encoder with random weights.
    pub fn init(config: &HuggingFaceConfig, device: &B::Device) -> Result<Self, ConfigError> {
        let (fields, family) = (config.fields()?, config.family);
        if family.name() != "bert" {
            return Err(fields.unsupported("model_type", "bert; `generate` runs the decoders"));
        }
        if config.activation != "gelu" {
            let key = fields.spelling(family.class.activation.names);
            return Err(fields.unsupported(key, "gelu, the exact one"));
        }

        let hidden = config.attention_config(0).hidden_size;
        let embedding = |rows: usize| EmbeddingConfig::new(rows, hidden).with_initializer(initializer()).init(device);
        let token_types = fields.size(&["type_vocab_size"])?.unwrap_or(TOKEN_TYPES);
        Ok(Self {
            words: embedding(config.vocab_size),
            positions: embedding(
                config
                    .max_positions
                    .ok_or(ConfigError::Missing { key: "max_position_embeddings", origin: Origin::HuggingFace })?,
            ),
            token_types: embedding(token_types),
            embedding_norm: layer_norm(config, device),
            blocks: (0..config.layers).map(|layer| Block::init(config, layer, device)).collect::<Result<_, _>>()?,
        })
    }

    /// The encoder with projections of int8; embeddings and norms stay as they are.
    pub fn quantize(self, blocks: Int8Blocks) -> Result<Self, WeightError> {
        let int8 = |block: Block<B>| -> Result<Block<B>, WeightError> {
            Ok(Block {
                attention: block.attention.quantize(blocks)?,
                up: block.up.quantize(blocks)?,
                down: block.down.quantize(blocks)?,
                ..block
            })
        };
        Ok(Self { blocks: self.blocks.into_iter().map(int8).collect::<Result<_, _>>()?, ..self })
    }

    /// Tokens of the longest text.
    pub fn max_positions(&self) -> usize {
        let [rows, _] = self.positions.weight.lazy_shape().dims();
        rows
    }
}

fn initializer() -> Initializer {
    Initializer::Normal { mean: 0.0, std: 0.02 }
}

fn layer_norm<B: Backend>(config: &HuggingFaceConfig, device: &B::Device) -> FusedNorm<B> {
    let attention = config.attention_config(0);
    let spec = NormSpec { rms: false, epsilon: attention.layer_norm_eps };
    FusedNorm::init(attention.hidden_size, true, spec, DType::F32, device)
}

impl<B: Backend> Block<B> {
    fn init(config: &HuggingFaceConfig, layer: usize, device: &B::Device) -> Result<Self, ConfigError> {
        let attention = config.attention_config(layer);
        let (hidden, mlp) = (attention.hidden_size, config.mlp_size);
        let linear = |input, output| Weight::init(input, output, true, Orientation::OutputInput, DType::F32, device);
        Ok(Self {
            attention: attention.init_self_attention(layer, device)?,
            attention_norm: layer_norm(config, device),
            up: linear(hidden, mlp),
            down: linear(mlp, hidden),
            output_norm: layer_norm(config, device),
        })
    }
}

impl<B: InferenceBackend> Encoder<B> {
    /// The last hidden states. Padding is on the right; its hidden states have no meaning.
    ///
    /// # Shapes
    /// - ids, padding: `[B, T]`; padding is 1 for a real token, 0 hides
    /// - output: `[B, T, E]`
    pub fn forward(&self, ids: Tensor<B, 2, Int>, padding: Tensor<B, 2, Int>) -> Result<Tensor<B, 3>, AttentionError> {
        let [batch, tokens] = ids.dims();
        let positions = Tensor::arange(0..tokens as i64, &ids.device()).unsqueeze();
        // A single text is the first of BERT's two segments, so every token has type 0.
        let first_segment = self.token_types.weight.val().narrow(0, 0, 1).unsqueeze();
        let places = first_segment + self.positions.forward(positions);
        let places = places.repeat_dim(0, batch);
        let mask = AttentionMask::from_padding(padding);
        let embedded = B::Ops::residual_norm(self.words.forward(ids), places, &self.embedding_norm);
        self.blocks.iter().try_fold(embedded, |hidden, block| block.forward(hidden, mask.clone()))
    }
}

impl<B: InferenceBackend> Block<B> {
    fn forward(&self, input: Tensor<B, 3>, mask: AttentionMask<B>) -> Result<Tensor<B, 3>, AttentionError> {
        // BERT adds positions to its embeddings, so attention needs none.
        let attended = self.attention.forward_uncached(input.clone(), mask, None)?;
        let hidden = B::Ops::residual_norm(input, attended, &self.attention_norm);
        let linear = B::Ops::linear;
        let mlp = linear(B::Ops::gelu(linear(hidden.clone(), &self.up)), &self.down);
        Ok(B::Ops::residual_norm(hidden, mlp, &self.output_norm))
    }
}
