//! The keys that a layer hides, as a tensor.

pub use burn_deepspeed_core::visibility::Visibility;

use burn::tensor::{Bool, Tensor, TensorData, backend::Backend};

/// The hidden pairs of a layer, true hides: `[B or 1, 1, T, S]`; `None` if every query sees every key.
pub fn hidden_pairs<B: Backend>(
    visibility: &Visibility,
    tokens: usize,
    keys: usize,
    device: &B::Device,
) -> Option<Tensor<B, 4, Bool>> {
    let (rows, pairs) = visibility.hidden_pairs(tokens, keys)?;
    Some(Tensor::from_data(TensorData::new(pairs, [rows, 1, tokens, keys]), device))
}
