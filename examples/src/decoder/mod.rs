//! A small decoder-only language model, composed from this crate's attention and `burn::nn`. It runs every family whose record
//! has [`DecoderPaths`](burn_deepspeed::load::families::DecoderPaths).
//!
//! The blocks of the families differ in their norms, the input of the MLP and its gate, factors, and how positions enter.
//!
//! On several ranks attention is split by heads and the MLP by its inner features, <https://arxiv.org/abs/1909.08053>; embeddings
//! and norms are on each.

pub(crate) mod activation;
mod block;
mod experts;
mod layer_inputs;
mod load;
pub(crate) mod parts;

use std::sync::Arc;

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Initializer, LayerNorm};
use burn::tensor::{Int, Tensor, backend::Backend};
use burn_deepspeed::load::HuggingFaceConfig;
use burn_deepspeed::ops::Keys;
use burn_deepspeed::parallel::Communicator;
use burn_deepspeed::weight::{Int8Blocks, Weight};
use burn_deepspeed::{
    AttentionError, AttentionMask, ConfigError, InferenceBackend, KvCacheType, Operations, Positions, Step, WeightError,
};

use block::Block;
use layer_inputs::LayerInputs;
use parts::{Norm, layer_norm, norm, paths, rounded};

/// A decoder-only language model.
#[derive(Module, Debug)]
pub struct Decoder<B: Backend> {
    /// The embedding, whose outputs are the tokens.
    tokens: Weight<B>,
    positions: Option<Embedding<B>>,
    embedding_norm: Option<LayerNorm<B>>,
    layer_inputs: Option<LayerInputs<B>>,
    blocks: Vec<Block<B>>,
    final_norm: Norm<B>,
    head: Weight<B>,
    #[module(skip)]
    position_offset: usize,
    #[module(skip)]
    factors: Factors,
}

/// What the embedding and the logits are multiplied by.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Factors {
    embedding: f64,
    logit: f64,
    /// `c` of `c · tanh(logit / c)`.
    softcap: Option<f64>,
}

impl<B: Backend> Decoder<B> {
    /// A model with random weights.
    pub fn init(config: &HuggingFaceConfig, device: &B::Device) -> Result<Self, ConfigError> {
        let hidden = config.attention_config(0).hidden_size;
        let paths = paths(config)?;
        let fields = config.fields()?;
        paths.only.iter().try_for_each(|only| only.check(&fields))?;
        // A narrower embedding has a projection on each side.
        let width = fields.size(&["word_embed_proj_dim"])?.unwrap_or(hidden);
        if width != hidden {
            return Err(fields.unsupported("word_embed_proj_dim", &format!("{hidden}, the hidden size")));
        }

        let initializer = Initializer::Normal { mean: 0.0, std: 0.02 };
        let embedding =
            |rows: usize| EmbeddingConfig::new(rows, hidden).with_initializer(initializer.clone()).init(device);
        let position_offset = config.family.positions.map_or(0, |positions| positions.offset);
        let positions = config.learned_positions().map(|rows| embedding(rows.saturating_add(position_offset)));
        let layer_inputs = paths.layer_inputs.as_ref();
        let blocks = (0..config.layers).map(|layer| Block::init(config, layer, device)).collect::<Result<_, _>>()?;
        Ok(Self {
            tokens: parts::embedding(config, [config.vocab_size, hidden], device)?,
            positions,
            embedding_norm: paths.embedding_norm.map(|_| layer_norm(config, device)),
            layer_inputs: layer_inputs.map(|paths| LayerInputs::init(config, paths, device)).transpose()?,
            blocks,
            final_norm: norm(config, device),
            head: parts::head(config, hidden, paths.head_bias, device)?,
            position_offset,
            factors: Factors {
                embedding: paths.embedding_factor.of(&fields, hidden)?,
                logit: paths.logit_factor.of(&fields, hidden)?,
                softcap: paths.logit_softcap(&fields)?,
            },
        })
    }

    /// The model of one rank, which adds its attention and MLP to those of the others.
    pub fn with_communicator(self, communicator: &Arc<dyn Communicator>) -> Result<Self, ConfigError> {
        let linked = |(layer, block): (usize, Block<B>)| block.with_communicator(layer, communicator);
        let blocks = self.blocks.into_iter().enumerate().map(linked).collect::<Result<_, ConfigError>>()?;
        Ok(Self { blocks, ..self })
    }

    /// The model for a cache of these element types.
    pub fn with_kv_cache_dtype(self, types: KvCacheType) -> Self {
        let blocks = self.blocks.into_iter().map(|block| block.with_kv_cache_dtype(types)).collect();
        Self { blocks, ..self }
    }

    /// The model with projections of int8; embeddings and norms stay as they are. Records of such a model are loaded into one.
    pub fn quantize(self, blocks: Int8Blocks) -> Result<Self, WeightError> {
        let layers = self.blocks.into_iter().map(|block| block.quantize(blocks));
        Ok(Self {
            blocks: layers.collect::<Result<_, _>>()?,
            layer_inputs: self.layer_inputs.map(|inputs| inputs.quantize(blocks)).transpose()?,
            head: self.head.quantize(blocks)?,
            ..self
        })
    }

    /// Whether the projections are int8.
    pub fn is_int8(&self) -> bool {
        self.head.int8().is_some()
    }
}

impl<B: InferenceBackend> Decoder<B> {
    /// Logits of the last of `T` tokens that follow those in the cache. The others have none: with a large vocabulary they would take most of the time of
    /// a prompt.
    ///
    /// # Shapes
    /// - ids, positions: `[B, T]`; padding: `[B, S]`, 1 = a real token
    /// - output: `[B, 1, vocabulary]`
    pub fn forward(
        &self,
        ids: Tensor<B, 2, Int>,
        padding: Tensor<B, 2, Int>,
        positions: &Positions,
        step: &mut Step<'_, B>,
    ) -> Result<Tensor<B, 3>, AttentionError> {
        let tokens = ids.dims()[1];
        let hidden = self.hidden(ids, &AttentionMask::from_padding(padding), positions, Some(step))?;
        Ok(self.logits(hidden.narrow(1, tokens - 1, 1)))
    }

    /// Logits of whole sequences, without a cache: for training.
    ///
    /// # Shapes
    /// - ids: `[B, T]`, output: `[B, T, vocabulary]`
    pub fn forward_uncached(&self, ids: Tensor<B, 2, Int>) -> Result<Tensor<B, 3>, AttentionError> {
        let [batch, tokens] = ids.dims();
        let positions = Positions::sequential(&vec![0; batch], tokens);
        Ok(self.logits(self.hidden(ids, &AttentionMask::none(), &positions, None)?))
    }

    /// What the last block computes, `[B, T, hidden]`.
    fn hidden(
        &self,
        ids: Tensor<B, 2, Int>,
        mask: &AttentionMask<B>,
        positions: &Positions,
        mut step: Option<&mut Step<'_, B>>,
    ) -> Result<Tensor<B, 3>, AttentionError> {
        let [batch, tokens] = ids.dims();
        let mut x = parts::embed(&self.tokens, ids.clone());
        if self.factors.embedding != 1.0 {
            let factor = rounded(self.factors.embedding, x.dtype());
            x = x.mul_scalar(factor);
        }
        if let Some(table) = &self.positions {
            let rows: Vec<i64> = positions.ids().iter().map(|&at| (at + self.position_offset) as i64).collect();
            let rows = burn::tensor::TensorData::new(rows, [batch, tokens]);
            x = x.clone() + table.forward(Tensor::from_data(rows, &x.device()));
        }
        if let Some(norm) = &self.embedding_norm {
            x = norm.forward(x);
        }
        let inputs = self.layer_inputs.as_ref().map(|inputs| inputs.forward(ids, x.clone()));
        for (layer, block) in self.blocks.iter().enumerate() {
            let keys = match &mut step {
                Some(step) => Keys::Cached(step.layer(layer)),
                None => Keys::Fresh(positions),
            };
            x = block.forward(x, mask.clone(), keys, inputs.as_ref())?;
        }
        Ok(x)
    }

    fn logits(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        self.factors.of_logits(B::Ops::linear(self.final_norm.forward(hidden), &self.head))
    }
}

impl Factors {
    fn of_logits<B: Backend>(&self, logits: Tensor<B, 3>) -> Tensor<B, 3> {
        let logits = if self.logit == 1.0 { logits } else { logits.mul_scalar(self.logit) };
        match self.softcap {
            Some(cap) => logits.div_scalar(cap).tanh().mul_scalar(cap),
            None => logits,
        }
    }
}
