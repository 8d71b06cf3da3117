//! A layer: attention and an MLP, with the norms of its family.

use burn::tensor::{Tensor, backend::Backend};
use burn_deepspeed::load::WeightPart;
use burn_deepspeed::load::families::{BlockNorms, Gate};
use burn_deepspeed::ops::qkv_gemm::normalise;
use burn_deepspeed::weight::{FusedNorm, Int8Blocks, Weight};
use burn_deepspeed::{
    AttentionError, AttentionInit, AttentionMask, DeepSpeedSelfAttention, InferenceBackend, Operations, WeightError,
};

use super::load::Loader;
use crate::decoder::activation::Activation;

/// One layer.
#[derive(Debug)]
pub(super) struct Block<B: Backend> {
    attention: DeepSpeedSelfAttention<B>,
    norms: Norms<B>,
    mlp: Mlp<B>,
}

/// The norms of a layer, without one before attention.
#[derive(Debug)]
enum Norms<B: Backend> {
    /// Of the sum with attention, and of the sum with the MLP.
    After(FusedNorm<B>, FusedNorm<B>),
    /// Before the MLP.
    Before(FusedNorm<B>),
}

/// Two projections with an activation between them, and a gate in some.
#[derive(Debug)]
pub(super) struct Mlp<B: Backend> {
    gate: Option<Weight<B>>,
    up: Weight<B>,
    down: Weight<B>,
    activation: Activation,
}

impl<B: Backend> Block<B> {
    pub fn load(loader: &Loader<'_, B>, layer: usize) -> Result<Self, WeightError> {
        let (plan, checkpoint) = (loader.plan, loader.checkpoint);
        let path = plan.config.layer_path(checkpoint, layer);
        let at = |name: &str| format!("{path}.{name}");
        let attention = plan.config.attention_config(layer).init_self_attention(layer, loader.device)?;
        Ok(Self {
            attention: attention.load(checkpoint, &plan.config.attention_names(checkpoint, layer))?,
            norms: match plan.paths.norms {
                BlockNorms::After { attention, mlp } => {
                    Norms::After(loader.norm(&at(attention))?, loader.norm(&at(mlp))?)
                }
                BlockNorms::Before { mlp } => Norms::Before(loader.norm(&at(mlp))?),
            },
            mlp: Mlp::load(loader, &path)?,
        })
    }

    /// The layer with projections of int8; norms stay as they are.
    pub fn quantize(self, blocks: Int8Blocks) -> Result<Self, WeightError> {
        Ok(Self { attention: self.attention.quantize(blocks)?, mlp: self.mlp.quantize(blocks)?, ..self })
    }
}

impl<B: InferenceBackend> Block<B> {
    /// # Shapes
    /// - input, output: `[B, T, E]`
    pub fn forward(&self, input: Tensor<B, 3>, mask: AttentionMask<B>) -> Result<Tensor<B, 3>, AttentionError> {
        let attended = self.attention.forward_uncached(input.clone(), mask, None)?;
        Ok(match &self.norms {
            Norms::After(attention, mlp) => {
                let hidden = B::Ops::residual_norm(input, attended, attention);
                B::Ops::residual_norm(hidden.clone(), self.mlp.forward(hidden), mlp)
            }
            Norms::Before(norm) => {
                let sum = input + attended;
                sum.clone() + self.mlp.forward(normalise(sum, norm))
            }
        })
    }
}

impl<B: Backend> Mlp<B> {
    /// The MLP of the layer at `path`.
    pub fn load(loader: &Loader<'_, B>, path: &str) -> Result<Self, WeightError> {
        let (paths, bias) = (loader.plan.paths, loader.plan.mlp_bias);
        let (hidden, inner) = (loader.plan.hidden, loader.plan.config.mlp_size);
        let at = |name: &str| format!("{path}.{name}");
        // Where one matrix has both, the gate comes first. The file may state any width; the tensor is compared with it.
        let outputs = |first: usize, all| WeightPart::Outputs { own: first..first.saturating_add(inner), all };
        let (gate, up) = match paths.gate {
            Gate::WithUp => {
                let all = inner.saturating_mul(2);
                (Some((paths.up, outputs(0, all))), outputs(inner, all))
            }
            Gate::At(path) => (Some((path, WeightPart::Whole)), WeightPart::Whole),
            Gate::None => (None, WeightPart::Whole),
        };
        let part = |name: &str, part: &WeightPart| loader.part_of_linear(&at(name), [hidden, inner], bias, part);
        Ok(Self {
            gate: gate.map(|(path, own)| part(path, &own)).transpose()?,
            up: part(paths.up, &up)?,
            down: loader.linear(&at(paths.down), [inner, hidden], bias)?,
            activation: loader.plan.activation,
        })
    }

    pub fn quantize(self, blocks: Int8Blocks) -> Result<Self, WeightError> {
        Ok(Self {
            gate: self.gate.map(|gate| gate.quantize(blocks)).transpose()?,
            up: self.up.quantize(blocks)?,
            down: self.down.quantize(blocks)?,
            ..self
        })
    }
}

impl<B: InferenceBackend> Mlp<B> {
    /// # Shapes
    /// - input, output: `[B, T, E]`
    pub fn forward(&self, input: Tensor<B, 3>) -> Tensor<B, 3> {
        let linear = B::Ops::linear;
        let inner = match &self.gate {
            Some(gate) => self.activation.apply(linear(input.clone(), gate)) * linear(input, &self.up),
            None => self.activation.apply(linear(input, &self.up)),
        };
        linear(inner, &self.down)
    }
}
