//! An encoder of any family whose record has [`EncoderPaths`](burn_deepspeed::load::families::EncoderPaths): embeddings of tokens or of
//! patches, blocks around this crate's attention, and the vector that the class makes itself.
//!
//! The blocks of the families differ in where their norms are, in the gate of the MLP, and in windows and positions.

use burn::tensor::{Tensor, backend::Backend};
use burn_deepspeed::config::ActivationRounding;
use burn_deepspeed::load::families::BlockNorms;
use burn_deepspeed::load::{Checkpoint, LoadReport};
use burn_deepspeed::ops::qkv_gemm::normalise;
use burn_deepspeed::weight::{FusedNorm, Int8Blocks};
use burn_deepspeed::{AttentionError, AttentionInit, AttentionMask, InferenceBackend, WeightError};

use super::head::Head;
use super::input::Input;
use super::plan::Plan;
use super::tokens::TokenRows;
use crate::layers::{Block, Loader, Mlp, MlpBranch};

/// An encoder.
#[derive(Debug)]
pub struct Encoder<B: Backend> {
    input: Input<B>,
    input_norm: Option<FusedNorm<B>>,
    blocks: Vec<Block<B>>,
    final_norm: Option<FusedNorm<B>>,
    head: Option<Head<B>>,
    device: B::Device,
}

/// What an encoder takes: rows of tokens, or the patches of images, `[B, T, C · height · width]` of a patch.
pub enum Rows<B: Backend> {
    Tokens(TokenRows),
    Images(Tensor<B, 3>),
}

/// What an encoder computes.
pub struct States<B: Backend> {
    /// The last hidden states, `[B, T, E]`. Those of padding have no meaning.
    pub hidden: Tensor<B, 3>,
    /// One vector for each row, `[B, features]`, if the class makes one.
    pub vectors: Option<Tensor<B, 2>>,
}

impl<B: Backend> Encoder<B> {
    /// Reads an encoder. Every tensor of the checkpoint must be used, except buffers, heads, and those of another encoder in it.
    ///
    /// # Errors
    /// A [`WeightError`] that names the tensor.
    pub fn load(
        plan: &Plan<'_>,
        checkpoint: &Checkpoint,
        device: &B::Device,
    ) -> Result<(Self, LoadReport), WeightError> {
        let config = plan.config;
        let loader = Loader::new(&config.attention_config(0), checkpoint, config.prefix(checkpoint), device)?;
        config.ignore_buffers(checkpoint);
        let unused: Vec<String> = plan.paths.unused.iter().map(|start| loader.at(start)).collect();
        let heads = plan.paths.heads;
        let starts = |name: &str, start: &str| name.starts_with(start);
        checkpoint.ignore(|name| {
            heads.iter().any(|start| starts(name, start)) || unused.iter().any(|start| starts(name, start))
        });
        let norm = |path: Option<&str>| path.map(|path| loader.norm(&loader.at(path))).transpose();
        let encoder = Self {
            input: Input::load(plan, &loader)?,
            input_norm: norm(plan.paths.input_norm)?,
            blocks: (0..config.layers).map(|layer| block(plan, &loader, layer)).collect::<Result<_, _>>()?,
            final_norm: norm(plan.paths.final_norm)?,
            head: Head::load(plan, &loader)?,
            device: device.clone(),
        };
        Ok((encoder, checkpoint.finish()?))
    }

    /// The encoder with projections of int8, whose inputs are rounded or not; embeddings, norms and the head stay as they are.
    pub fn quantize(self, blocks: Int8Blocks, rounding: ActivationRounding) -> Result<Self, WeightError> {
        let layers = self.blocks.into_iter().map(|block| block.quantize(blocks, rounding));
        Ok(Self { blocks: layers.collect::<Result<_, _>>()?, ..self })
    }

    /// How the class makes one vector of a row; `None` if it does not.
    pub fn describe_vector(&self) -> Option<String> {
        self.head.as_ref().map(Head::describe)
    }
}

impl<B: InferenceBackend> Encoder<B> {
    /// Runs rows of one length.
    ///
    /// # Panics
    /// If the encoder takes images and gets tokens, or the other way round.
    pub fn forward(&self, rows: &Rows<B>) -> Result<States<B>, AttentionError> {
        let norm = self.input_norm.as_ref();
        let (embedded, mask, tokens) = match (&self.input, rows) {
            (Input::Tokens(embedding), Rows::Tokens(rows)) => {
                (embedding.forward(rows, norm, &self.device), rows.mask(&self.device), Some(rows))
            }
            (Input::Patches(embedding), Rows::Images(images)) => {
                (embedding.forward(images.clone(), norm), AttentionMask::none(), None)
            }
            _ => panic!("Encoder::forward: tokens and images are not the same"),
        };
        let hidden = self.blocks.iter().try_fold(embedded, |hidden, block| block.forward(hidden, mask.clone()))?;
        let hidden = self.final_norm.as_ref().map_or(hidden.clone(), |norm| normalise(hidden, norm));
        let vectors = self.head.as_ref().map(|head| head.forward(hidden.clone(), tokens)).transpose()?;
        Ok(States { hidden, vectors })
    }
}

/// The layer `layer` of an encoder.
fn block<B: Backend>(plan: &Plan<'_>, loader: &Loader<'_, B>, layer: usize) -> Result<Block<B>, WeightError> {
    let (config, checkpoint) = (plan.config, loader.checkpoint);
    let path = config.layer_path(checkpoint, layer);
    let at = |name: &str| format!("{path}.{name}");
    let attention = config.attention_config(layer).init_self_attention(layer, loader.device)?;
    let (attention_norm, mlp_norm) = match plan.paths.norms {
        BlockNorms::After { attention, mlp } => (Some(loader.norm(&at(attention))?), mlp),
        BlockNorms::Before { mlp } => (None, mlp),
    };
    let attention = attention.load(checkpoint, &config.attention_names(checkpoint, layer))?;
    let (norm, norm_after) = (loader.norm(&at(mlp_norm))?, attention_norm.is_some());
    let mlp = MlpBranch { norm, norm_after, mlp: Mlp::load(loader, &plan.mlp, &path)? };
    Ok(Block { attention, attention_norm, mlp })
}
