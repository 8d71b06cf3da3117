//! Gradients: the reference on every operation.

use burn_autodiff::{Autodiff, checkpoint::strategy::CheckpointStrategy};

use crate::ops::InferenceBackend;

impl<B: InferenceBackend, C: CheckpointStrategy> InferenceBackend for Autodiff<B, C> {}
