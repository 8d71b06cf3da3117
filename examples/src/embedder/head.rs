//! The vector that a class of `transformers` makes of a row itself.

use burn::tensor::{Tensor, backend::Backend};
use burn_deepspeed::load::families::ClassPooling;
use burn_deepspeed::load::{AttentionNames, QkvLayout, QkvNames, WeightNames};
use burn_deepspeed::ops::qkv_gemm::normalise;
use burn_deepspeed::weight::{FusedNorm, Orientation, Weight};
use burn_deepspeed::{
    AttentionError, AttentionInit, AttentionMask, DeepSpeedDiffusersAttention, InferenceBackend, Operations,
    WeightError,
};

use super::plan::Plan;
use super::tokens::TokenRows;
use crate::decoder::activation::Activation;
use crate::layers::{Loader, Mlp};

/// The pooling of a class, and the projection after it.
#[derive(Debug)]
pub(super) struct Head<B: Backend> {
    pooler: Pooler<B>,
    projection: Option<Weight<B>>,
}

#[derive(Debug)]
enum Pooler<B: Backend> {
    /// The state of the token with this id.
    EndToken(usize),
    /// A projection of the last state.
    LastToken(Box<Weight<B>>),
    FirstToken(Box<FirstToken<B>>),
    Probe(Box<Probe<B>>),
}

/// The first state, with a norm or a projection.
#[derive(Debug)]
struct FirstToken<B: Backend> {
    norm: Option<FusedNorm<B>>,
    dense: Option<(Weight<B>, Activation)>,
}

/// Attention of one learned query to all states, and an MLP; the head of SigLIP, <https://arxiv.org/abs/2303.15343>.
#[derive(Debug)]
struct Probe<B: Backend> {
    /// `[1, E]`.
    query: Tensor<B, 2>,
    attention: DeepSpeedDiffusersAttention<B>,
    norm: FusedNorm<B>,
    mlp: Mlp<B>,
}

impl<B: Backend> Head<B> {
    /// The head of an encoder; `None` if its class makes no vector.
    pub fn load(plan: &Plan<'_>, loader: &Loader<'_, B>) -> Result<Option<Self>, WeightError> {
        let hidden = plan.hidden;
        let mut width = hidden;
        let pooler = match plan.paths.pooling {
            ClassPooling::None => return Ok(None),
            ClassPooling::EndToken(default) => Pooler::EndToken(plan.end.unwrap_or(default)),
            ClassPooling::LastToken { projection, .. } => {
                width = plan.pooled_size;
                Pooler::LastToken(Box::new(loader.linear(&loader.at(projection), [hidden, width], true)?))
            }
            ClassPooling::FirstToken { norm, pooler } => {
                let norm = norm.map(|path| loader.norm(&loader.at(path))).transpose()?;
                let dense = match pooler.map(|path| loader.at(path)).filter(|path| loader.has(path)) {
                    Some(path) => {
                        width = plan.pooled_size;
                        Some((loader.linear(&path, [hidden, width], true)?, plan.pooler))
                    }
                    None => None,
                };
                Pooler::FirstToken(Box::new(FirstToken { norm, dense }))
            }
            ClassPooling::Probe(path) => Pooler::Probe(Box::new(Probe::load(plan, loader, &loader.at(path))?)),
        };
        let projection = match plan.config.vector_projection(loader.checkpoint)? {
            Some((path, size)) => Some(loader.linear(path, [width, size], false)?),
            None => None,
        };
        Ok(Some(Self { pooler, projection }))
    }

    /// How the vector is made.
    pub fn describe(&self) -> String {
        let pooled = match &self.pooler {
            Pooler::EndToken(_) => "the state of the end token",
            Pooler::LastToken(_) => "a projection of the state of the last token, padding included",
            Pooler::FirstToken(head) if head.dense.is_some() => "the state of the class token, after the pooler",
            Pooler::FirstToken(_) => "the state of the class token",
            Pooler::Probe(_) => "attention of a learned query",
        };
        format!("{pooled}{}", if self.projection.is_some() { ", projected" } else { "" })
    }
}

impl<B: InferenceBackend> Head<B> {
    /// One vector for each row. `rows` are its tokens, if it has some.
    ///
    /// # Shapes
    /// - hidden: `[B, T, E]`, output: `[B, features]`
    pub fn forward(&self, hidden: Tensor<B, 3>, rows: Option<&TokenRows>) -> Result<Tensor<B, 2>, AttentionError> {
        let [batch, tokens, width] = hidden.dims();
        let slot = |at: usize| hidden.clone().slice([0..batch, at..at + 1, 0..width]);
        let pooled = match &self.pooler {
            Pooler::EndToken(end) => {
                let ends = rows.map_or(vec![0; batch], |rows| rows.ids.iter().map(|ids| end_of(ids, *end)).collect());
                let state = |(row, at): (usize, usize)| hidden.clone().slice([row..row + 1, at..at + 1, 0..width]);
                Tensor::cat(ends.into_iter().enumerate().map(state).collect(), 0)
            }
            Pooler::LastToken(projection) => B::Ops::linear(slot(tokens - 1), projection),
            Pooler::FirstToken(head) => {
                let first = slot(0);
                let first = head.norm.as_ref().map_or(first.clone(), |norm| normalise(first, norm));
                match &head.dense {
                    Some((projection, activation)) => activation.apply(B::Ops::linear(first, projection)),
                    None => first,
                }
            }
            Pooler::Probe(probe) => probe.forward(hidden)?,
        };
        let vectors = match &self.projection {
            Some(projection) => B::Ops::linear(pooled, projection),
            None => pooled,
        };
        Ok(vectors.squeeze_dim(1))
    }
}

/// The id of the end token in old configurations of CLIP, where it is wrong: `transformers` then takes the largest id of a row.
const WRONG_END: usize = 2;

/// The slot of the token whose state is the vector of a row: the first end, and the first slot in a row without one.
fn end_of(ids: &[u32], end: usize) -> usize {
    let wanted = if end == WRONG_END { ids.iter().copied().max() } else { u32::try_from(end).ok() };
    ids.iter().position(|&id| Some(id) == wanted).unwrap_or(0)
}

impl<B: Backend> Probe<B> {
    fn load(plan: &Plan<'_>, loader: &Loader<'_, B>, path: &str) -> Result<Self, WeightError> {
        let at = |name: &str| format!("{path}.{name}");
        let qkv = QkvNames::Fused {
            names: WeightNames::new(at("attention.in_proj_weight"), at("attention.in_proj_bias")),
            layout: QkvLayout::Concat,
        };
        let names = AttentionNames::new(qkv, WeightNames::of(&at("attention.out_proj")), Orientation::OutputInput);
        let config = plan.config.attention_config(0);
        let attention = config.init_diffusers_cross(plan.hidden, 0, loader.device)?;
        Ok(Self {
            query: loader.rows(&at("probe"), 1)?,
            attention: attention.load(loader.checkpoint, &names)?,
            norm: loader.norm(&at("layernorm"))?,
            mlp: Mlp::load(loader, &plan.mlp, path)?,
        })
    }
}

impl<B: InferenceBackend> Probe<B> {
    /// # Shapes
    /// - hidden: `[B, T, E]`, output: `[B, 1, E]`
    fn forward(&self, hidden: Tensor<B, 3>) -> Result<Tensor<B, 3>, AttentionError> {
        let query: Tensor<B, 3> = self.query.clone().unsqueeze();
        let query = query.repeat_dim(0, hidden.dims()[0]);
        let attended = self.attention.forward(query, Some(hidden), AttentionMask::none())?;
        Ok(attended.clone() + self.mlp.forward(normalise(attended, &self.norm)))
    }
}
