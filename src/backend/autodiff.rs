//! Gradients: the reference on every operation.

use burn_autodiff::{Autodiff, checkpoint::strategy::CheckpointStrategy};

use burn::tensor::Tensor;

use crate::error::CommunicationError;
use crate::ops::InferenceBackend;
use crate::parallel::{Communicator, Settings};

impl<B: InferenceBackend, C: CheckpointStrategy> InferenceBackend for Autodiff<B, C> {
    /// A sum over ranks is not part of the graph of any of them, so a tensor that is in one is refused.
    fn all_reduce<const D: usize>(
        partial: Tensor<Self, D>,
        communicator: &dyn Communicator,
        settings: &Settings,
    ) -> Result<Tensor<Self, D>, CommunicationError> {
        if !partial.clone().into_primitive().tensor().node.requirement.is_none() {
            return Err(CommunicationError::Gradients);
        }
        Ok(Tensor::from_inner(B::all_reduce(partial.inner(), communicator, settings)?))
    }
}
