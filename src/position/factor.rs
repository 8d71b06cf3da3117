//! Factors of queries by their position, on tensors.

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use super::{Positions, QueryFactor};

/// The factors of the new tokens, `[B, T]` of f32, computed on the host and put on the device.
pub(crate) fn on_device<B: Backend>(factor: QueryFactor, positions: &Positions, device: &B::Device) -> Tensor<B, 2> {
    let shape = [positions.batch(), positions.tokens()];
    Tensor::from_data(TensorData::new(factor.of(positions), shape), (device, DType::F32))
}
