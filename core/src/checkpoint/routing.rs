//! How the router of an MLP of experts chooses, and what the scores of a token become.

use super::class::Setting;
use super::flag::Flag;
use crate::error::{ConfigError, Origin};
use crate::fields::Fields;

/// What the scores of a token become.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Routing {
    /// The softmax over the scores of the chosen experts: factors of their outputs.
    SoftmaxOfChosen,
    /// The softmax over the scores of all experts. Those of the chosen ones are factors of their outputs.
    SoftmaxOfAll {
        /// Whether the factors are divided by their sum.
        normalised: Flag,
    },
    /// The sigmoid of each score: factors of the inputs of the chosen experts.
    SigmoidOfInput,
    /// DeepSeek's: experts are in groups of one size, and only those of the best groups are chosen.
    Grouped(GroupedRouting),
}

/// Experts in groups of one size, of which a token is sent to the best experts of the best groups, <https://arxiv.org/abs/2405.04434>.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupedRouting {
    /// What the scores become.
    pub scores: GroupScores,
    /// The key that says whether groups limit the choice: `greedy`, which they do not, if it is absent, or `group_limited_greedy`. `None` if
    /// they always do.
    pub method: Option<&'static str>,
    /// The number of groups; without a default it is required where groups limit the choice.
    pub groups: Setting<Option<usize>>,
    /// The number of groups that each token is sent to; the same of its default.
    pub chosen: Setting<Option<usize>>,
    /// What the factors are multiplied by.
    pub scale: Setting<f64>,
}

/// What the scores of experts in groups become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupScores {
    /// The softmax over the scores of all experts. Those of the chosen ones are factors of their outputs. A group is as good as its best
    /// expert (DeepSeek V2).
    Softmax,
    /// The sigmoid of each score: a factor of the output of a chosen expert. The choice alone sees a learned term added to it, and a group
    /// is as good as its best two experts together (DeepSeek V3), <https://arxiv.org/abs/2412.19437>.
    Sigmoid {
        /// The term of each expert, relative to a layer.
        correction: &'static str,
        /// Whether the factors are divided by their sum.
        normalised: Flag,
    },
}

/// The groups of experts in one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupSizes {
    /// The number of groups.
    pub count: usize,
    /// The number of groups that each token is sent to.
    pub chosen: usize,
}

impl Routing {
    /// The keys that are read.
    pub(super) fn keys(&self) -> Vec<&'static str> {
        match self {
            Self::SoftmaxOfChosen | Self::SigmoidOfInput => Vec::new(),
            Self::SoftmaxOfAll { normalised } => normalised.key().into_iter().collect(),
            Self::Grouped(grouped) => {
                let normalised = match grouped.scores {
                    GroupScores::Softmax => None,
                    GroupScores::Sigmoid { normalised, .. } => normalised.key(),
                };
                let settings = [grouped.groups.names, grouped.chosen.names, grouped.scale.names];
                settings.into_iter().flatten().copied().chain(normalised).chain(grouped.method).collect()
            }
        }
    }

    /// Checks the values of the keys that are read, without those of groups.
    ///
    /// # Errors
    /// [`ConfigError::WrongType`] or [`ConfigError::Unsupported`].
    pub(super) fn check(&self, fields: &Fields<'_>) -> Result<(), ConfigError> {
        match self {
            Self::SoftmaxOfChosen | Self::SigmoidOfInput => {}
            Self::SoftmaxOfAll { normalised } => _ = normalised.of(fields)?,
            Self::Grouped(grouped) => {
                grouped.scale.above_zero(fields)?;
                if let GroupScores::Sigmoid { normalised, .. } = grouped.scores {
                    normalised.of(fields)?;
                }
            }
        }
        Ok(())
    }

    /// The groups in this `config.json`, of `experts` experts of which `chosen` are chosen; `None` if groups do not limit the choice.
    ///
    /// # Errors
    /// [`ConfigError::WrongType`]; [`ConfigError::Missing`]; [`ConfigError::Unsupported`] for groups that do not have one size, and for
    /// too few of them.
    pub(super) fn groups(
        &self,
        fields: &Fields<'_>,
        experts: usize,
        chosen: usize,
    ) -> Result<Option<GroupSizes>, ConfigError> {
        match self {
            Self::Grouped(grouped) => grouped.sizes(fields, experts, chosen),
            _ => Ok(None),
        }
    }
}

impl GroupedRouting {
    fn sizes(&self, fields: &Fields<'_>, experts: usize, chosen: usize) -> Result<Option<GroupSizes>, ConfigError> {
        let [groups, best] = [self.groups, self.chosen];
        let given = [fields.positive(groups.names)?.or(groups.default), fields.positive(best.names)?.or(best.default)];
        if !self.limits(fields)? {
            return Ok(None);
        }
        let missing = |setting: Setting<Option<usize>>| ConfigError::Missing {
            key: setting.names[0],
            origin: Origin::HuggingFace,
        };
        let sizes = GroupSizes { count: given[0].ok_or(missing(groups))?, chosen: given[1].ok_or(missing(best))? };
        let unsupported = |setting: Setting<Option<usize>>, value: usize, supported: String| {
            let (key, value) = (fields.spelling(setting.names).into(), value.to_string());
            Err(ConfigError::Unsupported { key, value, supported })
        };
        let least = match self.scores {
            GroupScores::Softmax => 1,
            GroupScores::Sigmoid { .. } => 2,
        };
        if !experts.is_multiple_of(sizes.count) || experts / sizes.count < least {
            let supported = format!("a number that divides the {experts} experts into groups of at least {least}");
            return unsupported(groups, sizes.count, supported);
        }
        if sizes.chosen > sizes.count {
            return unsupported(best, sizes.chosen, format!("at most {}, the number of groups", sizes.count));
        }
        if chosen > experts / sizes.count * sizes.chosen {
            let supported = format!("as many groups as have the {chosen} experts that a token is sent to");
            return unsupported(best, sizes.chosen, supported);
        }
        Ok(Some(sizes))
    }

    /// Whether groups limit the choice.
    fn limits(&self, fields: &Fields<'_>) -> Result<bool, ConfigError> {
        let Some(key) = self.method else { return Ok(true) };
        match fields.text(&[key])? {
            None | Some("greedy") => Ok(false),
            Some("group_limited_greedy") => Ok(true),
            Some(_) => Err(fields.unsupported(key, "\"greedy\", \"group_limited_greedy\"")),
        }
    }
}
