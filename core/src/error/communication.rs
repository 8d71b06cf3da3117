//! Errors between ranks.

use std::time::Duration;

use crate::spelling::list;

/// What can go wrong between the ranks of a tensor-parallel group. No rank received a sum, and the group cannot be used again:
/// build a new one and process the prompts again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommunicationError {
    /// Not every rank arrived in time.
    #[error(
        "rank {} of {ranks} did not come within {limit:?}; look at what it is doing, or raise the time limit; this group is over",
        list(.missing)
    )]
    TimedOut {
        /// The ranks that did not arrive, as far as they are known.
        missing: Vec<usize>,
        /// Ranks of the group.
        ranks: usize,
        /// How long the others waited.
        limit: Duration,
    },
    /// A rank left: its thread or process ended.
    #[error("rank {rank} of {ranks} is gone: {cause}; this group is over, start it again")]
    Lost {
        /// The rank.
        rank: usize,
        /// Ranks of the group.
        ranks: usize,
        /// What is known about it.
        cause: String,
    },
    /// A rank is about to do something else.
    #[error("rank {rank} does not do what rank 0 does: {difference}; start every rank with the same model and input")]
    Differ {
        /// The first rank that differs.
        rank: usize,
        /// In what.
        difference: String,
    },
    /// A rank gave up.
    #[error("rank {rank} gave up: {reason}; this group is over, start it again")]
    Aborted {
        /// The rank.
        rank: usize,
        /// Its reason.
        reason: String,
    },
    /// The engine failed.
    #[error("{engine} failed: {cause}; this group is over, start it again")]
    Engine {
        /// The engine.
        engine: &'static str,
        /// What it said.
        cause: String,
    },
    /// The engine cannot be used here.
    #[error("{engine} cannot be used: {cause}")]
    Unavailable {
        /// The engine.
        engine: &'static str,
        /// Why, and what to do.
        cause: String,
    },
    /// Gradients do not pass through a sum over ranks.
    #[error(
        "the tensor to add over ranks requires gradients, and they do not pass from rank to rank; train on one rank, or load the \
         weights (`with_training(false)`)"
    )]
    Gradients,
}
