//! An MLP of experts, of which a router chooses a few for each token.

use serde_json::Value;

use super::class::Setting;
use super::files::Checkpoint;
use super::routing::{GroupSizes, Routing};
use crate::error::{ConfigError, Origin, WeightError};
use crate::fields::Fields;

/// An MLP of experts, of which a router chooses a few for each token, <https://arxiv.org/abs/2101.03961>. Paths are relative to a
/// layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Experts {
    /// Which layers have experts. The others have the MLP of the decoder.
    pub layers: ExpertLayers,
    /// The number of experts.
    pub count: Setting<usize>,
    /// The number of experts that each token is sent to; required if the class has no default.
    pub chosen: Setting<Option<usize>>,
    /// Inner features of an expert.
    pub size: Setting<usize>,
    /// The projection to a score for each expert.
    pub router: &'static str,
    /// Whether the router has a bias.
    pub router_bias: bool,
    /// How experts are chosen, and how scores become factors.
    pub routing: Routing,
    /// Where the matrices are.
    pub weights: ExpertWeights,
    /// The activation of an expert.
    pub activation: ExpertActivation,
    /// An MLP for every token, whose output is added.
    pub shared: Option<SharedExpert>,
}

/// Which layers have experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertLayers {
    /// All.
    All,
    /// All but the first ones; the setting says how many those are.
    From(Setting<usize>),
    /// Each layer whose number, counted from 1, the value of a key divides (every layer if it is absent), apart from those that another
    /// key lists, counted from 0.
    StepWithout {
        /// The key of the step.
        step: &'static str,
        /// The key of the list.
        without: &'static str,
    },
    /// Those that a key lists, counted from 0. If it is absent, each layer whose number, counted from 1, the value of another key divides.
    ListedOrStep {
        /// The key of the list.
        list: &'static str,
        /// The key of the step.
        step: &'static str,
    },
}

/// Where the matrices of the experts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertWeights {
    /// For expert 3 the projections `path.3.gate`, `path.3.up` and `path.3.down`, under these names.
    Separate(&'static str, [&'static str; 3]),
    /// One tensor `[experts, in, out]` for gate and MLP, and one for the projections back.
    Packed {
        /// Gate and MLP.
        gate_up: &'static str,
        /// The projection back.
        down: &'static str,
        /// The order of the outputs of `gate_up`.
        order: GateOrder,
        /// Whether there are biases, `[experts, out]`, at the same paths with `_bias`.
        bias: bool,
    },
}

/// The order of the outputs of a projection to gate and MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateOrder {
    /// All of the gate first.
    Halves,
    /// In turn, the gate first.
    Interleaved,
}

/// The activation of an expert.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ExpertActivation {
    /// `a(gate) · up`, with the activation of the model.
    Gated,
    /// `g · sigmoid(alpha · g) · (u + 1)`, where `g` is the gate up to `limit`, and `u` is `up` in `-limit..=limit` (gpt-oss).
    ClampedSwiglu {
        /// Factor in the sigmoid.
        alpha: Setting<f64>,
        /// The limit.
        limit: Setting<f64>,
    },
}

/// An MLP for every token next to the experts, with a gate and without biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedExpert {
    /// Inner features.
    pub size: SharedSize,
    /// The gate.
    pub gate: &'static str,
    /// The projection to the inner features.
    pub up: &'static str,
    /// The projection back.
    pub down: &'static str,
    /// The projection to a number for each token. Its sigmoid multiplies the output.
    pub scale: Option<&'static str>,
}

/// The inner features of the MLP for every token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedSize {
    /// This number.
    Features(Setting<usize>),
    /// Those of so many experts.
    Experts(Setting<usize>),
}

impl SharedSize {
    fn setting(&self) -> &Setting<usize> {
        let (Self::Features(setting) | Self::Experts(setting)) = self;
        setting
    }
}

/// The numbers of an MLP of experts in one model.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExpertSizes {
    /// The number of experts.
    pub count: usize,
    /// The number of experts that each token is sent to.
    pub chosen: usize,
    /// Inner features of an expert.
    pub size: usize,
    /// Inner features of the shared expert, if there is one.
    pub shared: Option<usize>,
    /// The groups that limit the choice of experts, if there are some.
    pub groups: Option<GroupSizes>,
    layers: Layers,
}

/// Layers, counted from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Layers {
    /// This one and those after it.
    From(usize),
    /// Each whose number, counted from 1, `step` divides, apart from these.
    Step { step: usize, without: Vec<usize> },
    /// These.
    Listed(Vec<usize>),
}

impl ExpertSizes {
    /// Whether layer `layer`, counted from 0, has experts.
    pub fn in_layer(&self, layer: usize) -> bool {
        match &self.layers {
            Layers::From(first) => layer >= *first,
            Layers::Step { step, without } => {
                layer.checked_add(1).is_some_and(|number| number.is_multiple_of(*step)) && !without.contains(&layer)
            }
            Layers::Listed(layers) => layers.contains(&layer),
        }
    }
}

impl Experts {
    /// The numbers in this `config.json`.
    ///
    /// # Errors
    /// [`ConfigError::WrongType`]; [`ConfigError::Missing`]; [`ConfigError::Unsupported`] for 0, for more chosen experts than there
    /// are, and for groups that do not fit them.
    pub fn sizes(&self, fields: &Fields<'_>) -> Result<ExpertSizes, ConfigError> {
        let size = |setting: &Setting<usize>| Ok(fields.positive(setting.names)?.unwrap_or(setting.default));
        let missing = ConfigError::Missing { key: self.chosen.names[0], origin: Origin::HuggingFace };
        let chosen = fields.positive(self.chosen.names)?.or(self.chosen.default).ok_or(missing)?;
        let (count, features) = (size(&self.count)?, size(&self.size)?);
        if chosen > count {
            let supported = format!("at most `{}`, which is {count}", fields.spelling(self.count.names));
            let (key, value) = (fields.spelling(self.chosen.names).into(), chosen.to_string());
            return Err(ConfigError::Unsupported { key, value, supported });
        }
        let shared = self.shared.as_ref().map(|shared| match shared.size {
            SharedSize::Features(setting) => size(&setting),
            SharedSize::Experts(setting) => Ok(size(&setting)?.saturating_mul(features)),
        });
        let (shared, layers) = (shared.transpose()?, self.layers(fields)?);
        let groups = self.routing.groups(fields, count, chosen)?;
        Ok(ExpertSizes { count, chosen, size: features, shared, groups, layers })
    }

    fn layers(&self, fields: &Fields<'_>) -> Result<Layers, ConfigError> {
        let step = |key| Ok::<_, ConfigError>(fields.positive(&[key])?.unwrap_or(1));
        match self.layers {
            ExpertLayers::All => Ok(Layers::From(0)),
            ExpertLayers::From(first) => Ok(Layers::From(fields.size(first.names)?.unwrap_or(first.default))),
            ExpertLayers::StepWithout { step: key, without } => {
                Ok(Layers::Step { step: step(key)?, without: listed(fields, without)?.unwrap_or_default() })
            }
            ExpertLayers::ListedOrStep { list, step: key } => {
                let every = Layers::Step { step: step(key)?, without: Vec::new() };
                Ok(listed(fields, list)?.map_or(every, Layers::Listed))
            }
        }
    }

    /// The keys that are read.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'static str> {
        let layers = match self.layers {
            ExpertLayers::All => vec![],
            ExpertLayers::From(first) => first.names.to_vec(),
            ExpertLayers::StepWithout { step, without: list } | ExpertLayers::ListedOrStep { list, step } => {
                vec![step, list]
            }
        };
        let activation = match self.activation {
            ExpertActivation::Gated => [&[][..]; 2],
            ExpertActivation::ClampedSwiglu { alpha, limit } => [alpha.names, limit.names],
        };
        let shared = self.shared.as_ref().map_or(&[][..], |shared| shared.size.setting().names);
        let sizes = [self.count.names, self.chosen.names, self.size.names, shared].into_iter().chain(activation);
        sizes.flatten().copied().chain(layers).chain(self.routing.keys())
    }

    /// Checks the values of the keys that are read.
    ///
    /// # Errors
    /// Those of [`sizes`](Self::sizes).
    pub(super) fn check(&self, fields: &Fields<'_>) -> Result<(), ConfigError> {
        self.routing.check(fields)?;
        if let ExpertActivation::ClampedSwiglu { alpha, limit } = self.activation {
            alpha.above_zero(fields)?;
            limit.above_zero(fields)?;
        }
        self.sizes(fields).map(|_| ())
    }

    /// Checks the number of experts and their sizes against the layer at `path` of a checkpoint. The first expert that is missing ends the
    /// search, so the number of tensors bounds it.
    ///
    /// # Errors
    /// [`WeightError::Missing`] or [`WeightError::Shape`].
    pub(super) fn check_layer(
        &self,
        (checkpoint, path): (&Checkpoint, &str),
        sizes: &ExpertSizes,
        hidden: usize,
    ) -> Result<(), WeightError> {
        match self.weights {
            ExpertWeights::Separate(experts, [_, _, down]) => (0..sizes.count).try_for_each(|expert| {
                checkpoint.check_shape(&format!("{path}.{experts}.{expert}.{down}.weight"), &[hidden, sizes.size])
            }),
            ExpertWeights::Packed { down, .. } => {
                checkpoint.check_shape(&format!("{path}.{down}"), &[sizes.count, sizes.size, hidden])
            }
        }
    }
}

impl Setting<f64> {
    /// The value in this `config.json`, a number above 0.
    ///
    /// # Errors
    /// [`ConfigError::WrongType`] or [`ConfigError::Unsupported`].
    pub fn above_zero(&self, fields: &Fields<'_>) -> Result<f64, ConfigError> {
        Ok(fields.above_zero(self.names)?.unwrap_or(self.default))
    }
}

/// A list of layers, counted from 0.
fn listed(fields: &Fields<'_>, key: &str) -> Result<Option<Vec<usize>>, ConfigError> {
    let layer = |entry: &Value| entry.as_u64().and_then(|layer| usize::try_from(layer).ok());
    let Some(list) = fields.list(key)? else { return Ok(None) };
    let layers = list.iter().map(layer).collect::<Option<_>>();
    layers.map(Some).ok_or_else(|| fields.wrong(key, "a list of layers, counted from 0"))
}
