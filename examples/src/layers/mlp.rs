//! The MLP of a layer.

use burn::tensor::{Tensor, backend::Backend};
use burn_deepspeed::config::ActivationRounding;
use burn_deepspeed::load::WeightPart;
use burn_deepspeed::load::families::Gate;
use burn_deepspeed::ops::qkv_gemm::normalise;
use burn_deepspeed::weight::{FusedNorm, Int8Blocks, Weight};
use burn_deepspeed::{InferenceBackend, Operations, WeightError};

use super::loader::Loader;
use crate::decoder::activation::Activation;

/// Where a layer keeps its MLP, and how it is built.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MlpPlan {
    pub gate: Gate,
    /// The projection to the inner features, in a layer.
    pub up: &'static str,
    /// The projection back, in a layer.
    pub down: &'static str,
    pub bias: bool,
    /// Number of inner features, as the file states it.
    pub inner: usize,
    pub activation: Activation,
}

/// Two projections with an activation between them, and a gate in some.
#[derive(Debug)]
pub(crate) struct Mlp<B: Backend> {
    gate: Option<Weight<B>>,
    up: Weight<B>,
    down: Weight<B>,
    activation: Activation,
}

/// An MLP with its norm and the sum around it.
#[derive(Debug)]
pub(crate) struct MlpBranch<B: Backend> {
    pub norm: FusedNorm<B>,
    /// Whether the norm comes after the sum, not before the MLP.
    pub norm_after: bool,
    pub mlp: Mlp<B>,
}

impl<B: Backend> Mlp<B> {
    /// The MLP of the layer at `path`.
    pub fn load(loader: &Loader<'_, B>, plan: &MlpPlan, path: &str) -> Result<Self, WeightError> {
        let (hidden, &MlpPlan { bias, inner, .. }) = (loader.hidden, plan);
        let at = |name: &str| format!("{path}.{name}");
        // Where one matrix has both, the gate comes first. The file may state any width; the tensor is compared with it.
        let outputs = |first: usize, all| WeightPart::Outputs { own: first..first.saturating_add(inner), all };
        let (gate, up) = match plan.gate {
            Gate::WithUp => {
                let all = inner.saturating_mul(2);
                (Some((plan.up, outputs(0, all))), outputs(inner, all))
            }
            Gate::At(path) => (Some((path, WeightPart::Whole)), WeightPart::Whole),
            Gate::None => (None, WeightPart::Whole),
        };
        let part = |name: &str, part: &WeightPart| loader.part_of_linear(&at(name), [hidden, inner], bias, part);
        Ok(Self {
            gate: gate.map(|(path, own)| part(path, &own)).transpose()?,
            up: part(plan.up, &up)?,
            down: loader.linear(&at(plan.down), [inner, hidden], bias)?,
            activation: plan.activation,
        })
    }

    pub fn quantize(self, blocks: Int8Blocks, rounding: ActivationRounding) -> Result<Self, WeightError> {
        let int8 = |weight: Weight<B>| Ok::<_, WeightError>(weight.quantize(blocks)?.with_rounded_input(rounding));
        Ok(Self { gate: self.gate.map(int8).transpose()?, up: int8(self.up)?, down: int8(self.down)?, ..self })
    }
}

impl<B: InferenceBackend> Mlp<B> {
    /// # Shapes
    /// - input, output: `[B, T, E]`
    pub fn forward(&self, input: Tensor<B, 3>) -> Tensor<B, 3> {
        let linear = B::Ops::linear;
        let inner = match &self.gate {
            Some(gate) => self.activation.gated(linear(input.clone(), gate), linear(input, &self.up)),
            None => self.activation.apply(linear(input, &self.up)),
        };
        linear(inner, &self.down)
    }
}

impl<B: InferenceBackend> MlpBranch<B> {
    /// The sum of the input and the MLP, with the norm.
    ///
    /// # Shapes
    /// - input, output: `[B, T, E]`
    pub fn forward(&self, input: Tensor<B, 3>) -> Tensor<B, 3> {
        match self.norm_after {
            true => B::Ops::residual_norm(input.clone(), self.mlp.forward(input), &self.norm),
            false => input.clone() + self.mlp.forward(normalise(input, &self.norm)),
        }
    }
}
