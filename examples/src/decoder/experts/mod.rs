//! An MLP of experts: a router sends each token to a few of them, <https://arxiv.org/abs/2101.03961>.
//!
//! The host decides which experts a token is sent to, so each of these layers waits for the device once. An expert multiplies only the
//! tokens that were sent to it. On several ranks each has some of the experts, and some of the inner features of the shared one.

mod forward;
mod load;

use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::{DType, Tensor, backend::Backend};
use burn_deepspeed::load::HuggingFaceConfig;
use burn_deepspeed::load::families::{
    ExpertActivation, ExpertWeights, GateOrder, GroupScores, GroupSizes, GroupedRouting, Routing,
};
use burn_deepspeed::weight::{Int8Blocks, Orientation, Weight};
use burn_deepspeed::{ConfigError, OfBackend, WeightError};

use super::parts::linear;

/// The experts of one layer on one rank.
#[derive(Module, Debug)]
pub(super) struct Experts<B: Backend> {
    pub router: Weight<B>,
    /// What is added to the score of each expert before the choice, in f32.
    pub correction: Option<Param<Tensor<B, 1>>>,
    pub experts: Vec<GatedMlp<B>>,
    pub shared: Option<Shared<B>>,
    /// The number of the first expert of this rank.
    #[module(skip)]
    first: usize,
    #[module(skip)]
    settings: Settings,
}

/// An MLP with a gate.
#[derive(Module, Debug)]
pub(super) struct GatedMlp<B: Backend> {
    /// `None` if `up` has the outputs of both.
    pub gate: Option<Weight<B>>,
    pub up: Weight<B>,
    pub down: Weight<B>,
}

/// The MLP of every token.
#[derive(Module, Debug)]
pub(super) struct Shared<B: Backend> {
    pub mlp: GatedMlp<B>,
    /// The projection to a number whose sigmoid multiplies the output.
    pub scale: Option<Weight<B>>,
}

/// What is not a weight, the same on every rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Settings {
    count: usize,
    chosen: usize,
    weighting: Weighting,
    /// What the weights are multiplied by.
    scale: f64,
    /// The groups that limit the choice.
    groups: Option<GroupSizes>,
    form: Form,
    /// The order of the outputs of `up` without a gate.
    order: GateOrder,
}

/// What the scores of a token become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weighting {
    SoftmaxOfChosen,
    SoftmaxOfAll { normalised: bool },
    SigmoidOfAll { normalised: bool },
    SigmoidOfInput,
}

/// How gate and MLP are combined.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    /// `a(gate) · up`
    Gated,
    /// `g · sigmoid(alpha · g) · (u + 1)`, where g is `gate` up to `limit`, and u is `up` in `-limit..=limit`
    ClampedSwiglu { alpha: f64, limit: f64 },
}

impl<B: Backend> Experts<B> {
    /// The experts of a layer, with random weights; `None` if the layer has none.
    pub fn init(config: &HuggingFaceConfig, layer: usize, device: &B::Device) -> Result<Option<Self>, ConfigError> {
        let Some((experts, sizes)) = config.experts(layer) else { return Ok(None) };
        let (attention, fields) = (config.attention_config(layer), config.fields()?);
        let (ranks, hidden) = (attention.rank_group()?, attention.hidden_size);
        let dtype = attention.dtype.of_backend::<B>(device)?;
        // What decides between experts is never int8.
        let score = |outputs, bias, dtype| Weight::init(hidden, outputs, bias, Orientation::OutputInput, dtype, device);
        let linear = |input, output, bias| linear(config, [input, output], bias, device);
        let separate = |size| {
            let (gate, up) = (Some(linear(hidden, size, false)?), linear(hidden, size, false)?);
            Ok::<_, ConfigError>(GatedMlp { gate, up, down: linear(size, hidden, false)? })
        };
        let expert = || match experts.weights {
            ExpertWeights::Separate(..) => separate(sizes.size),
            ExpertWeights::Packed { bias, .. } => {
                let up = linear(hidden, sizes.size.saturating_mul(2), bias)?;
                Ok(GatedMlp { gate: None, up, down: linear(sizes.size, hidden, bias)? })
            }
        };
        let shared = experts.shared.zip(sizes.shared).map(|(shared, size)| {
            let mlp = separate(ranks.part(size).len())?;
            Ok::<_, ConfigError>(Shared { mlp, scale: shared.scale.map(|_| score(1, false, dtype)) })
        });
        let (weighting, scale) = match experts.routing {
            Routing::SoftmaxOfChosen => (Weighting::SoftmaxOfChosen, 1.0),
            Routing::SoftmaxOfAll { normalised } => {
                (Weighting::SoftmaxOfAll { normalised: normalised.of(&fields)? }, 1.0)
            }
            Routing::SigmoidOfInput => (Weighting::SigmoidOfInput, 1.0),
            Routing::Grouped(GroupedRouting { scores, scale, .. }) => {
                let weighting = match scores {
                    GroupScores::Softmax => Weighting::SoftmaxOfAll { normalised: false },
                    GroupScores::Sigmoid { normalised, .. } => {
                        Weighting::SigmoidOfAll { normalised: normalised.of(&fields)? }
                    }
                };
                (weighting, scale.above_zero(&fields)?)
            }
        };
        let correction = matches!(weighting, Weighting::SigmoidOfAll { .. });
        let form = match experts.activation {
            ExpertActivation::Gated => Form::Gated,
            ExpertActivation::ClampedSwiglu { alpha, limit } => {
                Form::ClampedSwiglu { alpha: alpha.above_zero(&fields)?, limit: limit.above_zero(&fields)? }
            }
        };
        let order = match experts.weights {
            ExpertWeights::Packed { order, .. } => order,
            ExpertWeights::Separate(..) => GateOrder::Halves,
        };
        let own = ranks.part(sizes.count);
        Ok(Some(Self {
            first: own.start,
            router: score(sizes.count, experts.router_bias, score_type(experts.routing, dtype)),
            correction: correction.then(|| Initializer::Zeros.init([sizes.count], device)),
            experts: own.map(|_| expert()).collect::<Result<_, _>>()?,
            shared: shared.transpose()?,
            settings: Settings {
                count: sizes.count,
                chosen: sizes.chosen,
                weighting,
                scale,
                groups: sizes.groups,
                form,
                order,
            },
        }))
    }

    /// What every rank must agree in.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    pub fn quantize(self, blocks: Int8Blocks) -> Result<Self, WeightError> {
        let experts = self.experts.into_iter().map(|expert| expert.quantize(blocks));
        let shared =
            self.shared.map(|shared| Ok::<_, WeightError>(Shared { mlp: shared.mlp.quantize(blocks)?, ..shared }));
        Ok(Self { experts: experts.collect::<Result<_, _>>()?, shared: shared.transpose()?, ..self })
    }
}

/// The element type of the scores that decide between experts: classes with groups compute them in f32.
fn score_type(routing: Routing, own: DType) -> DType {
    if matches!(routing, Routing::Grouped(_)) { DType::F32 } else { own }
}

impl<B: Backend> GatedMlp<B> {
    fn quantize(self, blocks: Int8Blocks) -> Result<Self, WeightError> {
        let gate = self.gate.map(|gate| gate.quantize(blocks)).transpose()?;
        Ok(Self { gate, up: self.up.quantize(blocks)?, down: self.down.quantize(blocks)? })
    }
}
