//! Gradients: the reference for every operation.

use burn::tensor::Tensor;
use burn_autodiff::{Autodiff, checkpoint::strategy::CheckpointStrategy};

use crate::error::CommunicationError;
use crate::ops::{InferenceBackend, Operations};
use crate::parallel::{AgreedSettings, Communicator};

/// Every operation on its reference, which Burn differentiates.
#[derive(Debug, Clone, Copy)]
pub struct Differentiable;

impl<B: InferenceBackend, C: CheckpointStrategy> InferenceBackend for Autodiff<B, C> {
    type Ops = Differentiable;
}

impl<B: InferenceBackend, C: CheckpointStrategy> Operations<Autodiff<B, C>> for Differentiable {
    /// A sum over ranks is not part of any rank's graph, so a tensor that requires gradients is refused.
    fn all_reduce<const D: usize>(
        partial: Tensor<Autodiff<B, C>, D>,
        communicator: &dyn Communicator,
        settings: &AgreedSettings,
    ) -> Result<Tensor<Autodiff<B, C>, D>, CommunicationError> {
        if !partial.clone().into_primitive().tensor().node.requirement.is_none() {
            return Err(CommunicationError::Gradients);
        }
        Ok(Tensor::from_inner(B::Ops::all_reduce(partial.inner(), communicator, settings)?))
    }
}
