//! Errors between ranks.

use std::fmt;
use std::time::Duration;

use crate::spelling::list;

/// What can go wrong between the ranks of a tensor-parallel group. No rank received a sum, and the group cannot be used again:
/// build a new one and process the prompts again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommunicationError {
    /// Not every rank arrived in time.
    TimedOut {
        /// The ranks that did not arrive, as far as they are known.
        missing: Vec<usize>,
        /// Ranks of the group.
        ranks: usize,
        /// How long the others waited.
        limit: Duration,
    },
    /// A rank left: its thread or process ended.
    Lost {
        /// The rank.
        rank: usize,
        /// Ranks of the group.
        ranks: usize,
        /// What is known about it.
        cause: String,
    },
    /// A rank is about to do something else.
    Differ {
        /// The first rank that differs.
        rank: usize,
        /// In what.
        difference: String,
    },
    /// A rank gave up.
    Aborted {
        /// The rank.
        rank: usize,
        /// Its reason.
        reason: String,
    },
    /// The engine failed.
    Engine {
        /// The engine.
        engine: &'static str,
        /// What it said.
        cause: String,
    },
    /// The engine cannot be used here.
    Unavailable {
        /// The engine.
        engine: &'static str,
        /// Why, and what to do.
        cause: String,
    },
    /// Gradients do not pass through a sum over ranks.
    Gradients,
}

impl CommunicationError {
    /// What happened, without the advice at the end of the message.
    pub fn fact(&self) -> String {
        match self {
            Self::TimedOut { missing, ranks, limit } => {
                let noun = if missing.len() == 1 { "rank" } else { "ranks" };
                format!("{noun} {} of {ranks} did not arrive within {limit:?}", list(missing))
            }
            Self::Lost { rank, ranks, cause } => format!("rank {rank} of {ranks} is gone: {cause}"),
            Self::Differ { rank, difference } => format!("rank {rank} does not do what rank 0 does: {difference}"),
            Self::Aborted { rank, reason } => format!("rank {rank} gave up: {reason}"),
            Self::Engine { engine, cause } => format!("{engine} failed: {cause}"),
            Self::Unavailable { engine, cause } => format!("{engine} cannot be used: {cause}"),
            Self::Gradients => {
                "the tensor to add over ranks requires gradients, and they do not pass from rank to rank".into()
            }
        }
    }
}

impl fmt::Display for CommunicationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let remedy = match self {
            Self::TimedOut { .. } => {
                "; check what it is doing, or raise the time limit; this group can no longer be used"
            }
            Self::Lost { .. } | Self::Aborted { .. } | Self::Engine { .. } => {
                "; this group can no longer be used: build a new one"
            }
            Self::Differ { .. } => "; start every rank with the same model and input",
            Self::Unavailable { .. } => "", // the cause says what to do
            Self::Gradients => "; train on one rank, or load the weights (`with_training(false)`)",
        };
        write!(f, "{}{remedy}", self.fact())
    }
}
