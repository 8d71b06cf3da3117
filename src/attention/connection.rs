//! The connection of a layer to the other ranks of its group.

use std::sync::Arc;

use burn::tensor::Tensor;

use crate::error::{AttentionError, ConfigError};
use crate::ops::{InferenceBackend, Operations, Plan};
use crate::parallel::{AgreedSettings, Communicator};
use crate::spec::AttentionSpec;
use crate::weight::Weight;

/// The communicator of a layer, once it has one, and the settings in which every rank must agree.
#[derive(Debug, Clone, Default)]
pub(super) struct Connection(Option<Link>);

#[derive(Debug, Clone)]
struct Link {
    communicator: Arc<dyn Communicator>,
    settings: AgreedSettings,
}

impl Connection {
    /// The connection of a layer over this communicator.
    pub(super) fn new(communicator: Arc<dyn Communicator>, spec: &AttentionSpec) -> Result<Self, ConfigError> {
        let (own, actual, size) = (spec.ranks, communicator.rank(), communicator.size());
        if (own.rank(), own.ranks()) != (actual, size) {
            return Err(ConfigError::OtherRank { rank: own.rank(), ranks: own.ranks(), actual, size });
        }
        Ok(Self(Some(Link { communicator, settings: spec.settings() })))
    }

    /// The same for a layer whose settings changed.
    pub(super) fn with_settings(self, spec: &AttentionSpec) -> Self {
        Self(self.0.map(|link| Link { settings: spec.settings(), ..link }))
    }

    fn link(&self, spec: &AttentionSpec) -> Result<&Link, AttentionError> {
        let (rank, ranks) = (spec.ranks.rank(), spec.ranks.ranks());
        self.0.as_ref().ok_or(AttentionError::NoCommunicator { rank, ranks })
    }

    /// An error on one of several ranks without a communicator.
    pub(super) fn check(&self, spec: &AttentionSpec) -> Result<(), AttentionError> {
        if spec.ranks.ranks() == 1 { Ok(()) } else { self.link(spec).map(|_| ()) }
    }

    /// The sum of `partial` over all ranks.
    pub(super) fn over_ranks<B: InferenceBackend, const D: usize>(
        &self,
        partial: Tensor<B, D>,
        spec: &AttentionSpec,
    ) -> Result<Tensor<B, D>, AttentionError> {
        if spec.ranks.ranks() == 1 {
            return Ok(partial);
        }
        let Link { communicator, settings } = self.link(spec)?;
        Ok(B::Ops::all_reduce(partial, &**communicator, settings)?)
    }

    /// The output projection of `context`, summed over all ranks, with the bias added once. On one rank that is a single operation,
    /// unless the bias is left to the caller.
    pub(super) fn project<B: InferenceBackend>(
        &self,
        context: Tensor<B, 3>,
        output: &Weight<B>,
        spec: &AttentionSpec,
        with_bias: bool,
    ) -> Result<Tensor<B, 3>, AttentionError> {
        if spec.ranks.ranks() == 1 && with_bias {
            return Ok(B::Ops::linear(context, output));
        }
        let sum = self.over_ranks(B::Ops::vector_matmul(context, output), spec)?;
        Ok(match output.bias().filter(|_| with_bias && sum.shape().num_elements() > 0) {
            Some(bias) => sum + bias.unsqueeze(),
            None => sum,
        })
    }
}

/// An error if the plan is the reference and the layer requires a kernel.
pub(super) fn require(
    operation: &'static str,
    spec: &AttentionSpec,
    plan: impl FnOnce() -> Plan,
) -> Result<(), AttentionError> {
    if !spec.require_fast {
        return Ok(());
    }
    match plan() {
        Plan::Reference(reason) => Err(AttentionError::NoFastPath { operation, reason }),
        Plan::Kernel(_) => Ok(()),
    }
}
