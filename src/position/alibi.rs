//! ALiBi slopes, <https://arxiv.org/abs/2108.12409>.

pub use burn_deepspeed_core::position::alibi::{shard_slopes, slopes};

#[cfg(feature = "cubecl")]
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

/// Slopes as a tensor, `[N]` of f32.
#[cfg(feature = "cubecl")]
pub(crate) fn on_device<B: Backend>(slopes: Vec<f32>, device: &B::Device) -> Tensor<B, 1> {
    let shape = [slopes.len()];
    Tensor::from_data(TensorData::new(slopes, shape), (device, DType::F32))
}
