//! The encoder.

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use burn_deepspeed::load::families::SourceInput;
use burn_deepspeed::ops::qkv_gemm::normalise;
use burn_deepspeed::weight::{FusedNorm, RelativeBias};
use burn_deepspeed::{AttentionError, AttentionInit, AttentionMask, InferenceBackend, WeightError};

use super::input::{Convolutions, Positions, Tables, Tokens, relative_bias};
use super::plan::StackPlan;
use crate::layers::{Block, Loader, Mlp, MlpBranch};

/// The encoder of an encoder-decoder.
#[derive(Debug)]
pub(super) struct Encoder<B: Backend> {
    source: Source<B>,
    positions: Positions<B>,
    relative: Option<RelativeBias<B>>,
    blocks: Vec<Block<B>>,
    final_norm: Option<FusedNorm<B>>,
}

#[derive(Debug)]
enum Source<B: Backend> {
    Tokens(Tokens<B>),
    Features(Convolutions<B>),
}

/// The states of sources, `[B, S, E]`, and the number of each row's.
pub(super) struct Encoded<B: Backend> {
    pub states: Tensor<B, 3>,
    pub lengths: Vec<usize>,
}

impl<B: Backend> Encoder<B> {
    pub fn load(loader: &Loader<'_, B>, plan: &StackPlan<'_>, tables: &mut Tables<B>) -> Result<Self, WeightError> {
        let source = match (&plan.config.family.source, plan.config.features) {
            (SourceInput::Features { convolutions, .. }, Some(shape)) => {
                Source::Features(Convolutions::load(loader, *convolutions, shape.bins)?)
            }
            _ => Source::Tokens(Tokens::load(loader, plan, tables)?),
        };
        Ok(Self {
            source,
            positions: Positions::load(loader, plan)?,
            relative: relative_bias(loader, plan)?,
            blocks: (0..plan.stack.layers).map(|layer| block(loader, plan, layer)).collect::<Result<_, _>>()?,
            final_norm: plan.paths.final_norm.map(|path| loader.norm(&loader.at(path))).transpose()?,
        })
    }
}

fn block<B: Backend>(loader: &Loader<'_, B>, plan: &StackPlan<'_>, layer: usize) -> Result<Block<B>, WeightError> {
    let (config, paths) = (plan.config, plan.paths);
    let path = config.layer_path(loader.checkpoint, paths, layer);
    let at = |name: &str| format!("{path}.{name}");
    let attention = plan.attention().init_self_attention(layer, loader.device)?;
    let norm_after = config.norms_after();
    let mlp = Mlp::load(loader, &plan.mlp, &path)?;
    Ok(Block {
        attention: attention.load(loader.checkpoint, &paths.attention.names(&path))?,
        attention_norm: norm_after.then(|| loader.norm(&at(paths.attention.norm))).transpose()?,
        mlp: MlpBranch { norm: loader.norm(&at(paths.mlp.norm))?, norm_after, mlp },
    })
}

impl<B: InferenceBackend> Encoder<B> {
    /// The states of rows of tokens, which may have different lengths.
    ///
    /// # Panics
    /// If the encoder takes features.
    pub fn encode_tokens(&self, rows: &[Vec<u32>], device: &B::Device) -> Result<Encoded<B>, AttentionError> {
        let Source::Tokens(tokens) = &self.source else { panic!("Encoder::encode_tokens: the encoder takes features") };
        let lengths: Vec<usize> = rows.iter().map(Vec::len).collect();
        let width = lengths.iter().copied().max().unwrap_or(0);
        // What the padding is does not matter: it is hidden here, and behind the end of a row for the decoder.
        let padded = |row: &Vec<u32>| row.iter().map(|&id| id.into()).chain(std::iter::repeat(0)).take(width).collect();
        let padded: Vec<Vec<i64>> = rows.iter().map(padded).collect();
        let mask = match lengths.iter().all(|&length| length == width) {
            true => AttentionMask::none(),
            false => {
                let real = lengths.iter().flat_map(|&length| (0..width).map(move |slot| i64::from(slot < length)));
                let real = TensorData::new(real.collect::<Vec<i64>>(), [rows.len(), width]);
                AttentionMask::from_padding(Tensor::<B, 2, Int>::from_data(real, device))
            }
        };
        Ok(Encoded { states: self.forward(tokens.forward(&padded), mask)?, lengths })
    }

    /// The states of features.
    ///
    /// # Shapes
    /// - features: `[B, bins, frames]`
    ///
    /// # Panics
    /// If the encoder takes tokens.
    pub fn encode_features(&self, features: Tensor<B, 3>) -> Result<Encoded<B>, AttentionError> {
        let Source::Features(convolutions) = &self.source else {
            panic!("Encoder::encode_features: the encoder takes tokens")
        };
        let states = self.forward(convolutions.forward(features), AttentionMask::none())?;
        let [batch, tokens, _] = states.dims();
        Ok(Encoded { states, lengths: vec![tokens; batch] })
    }

    fn forward(&self, input: Tensor<B, 3>, mask: AttentionMask<B>) -> Result<Tensor<B, 3>, AttentionError> {
        let [_, tokens, _] = input.dims();
        let mask = match &self.relative {
            Some(relative) => mask.with_bias(relative.bias(&[0], tokens, tokens)),
            None => mask,
        };
        let input = self.positions.forward(input, 0);
        let states = self.blocks.iter().try_fold(input, |states, block| block.forward(states, mask.clone()))?;
        Ok(self.final_norm.as_ref().map_or(states.clone(), |norm| normalise(states, norm)))
    }
}
