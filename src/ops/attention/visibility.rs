//! The keys that a layer hides, as a tensor.

pub use burn_deepspeed_core::visibility::{Visibility, Window};

use burn::tensor::{Bool, Tensor, TensorData, backend::Backend};

use crate::mask::AttentionMask;

/// The hidden pairs of a layer, true hides: `[B or 1, 1, T, S]`; `None` if every query sees every key. Chunks count from the first key
/// of a row that `mask` does not hide.
pub fn hidden_pairs<B: Backend>(
    visibility: &Visibility,
    mask: &AttentionMask<B>,
    [tokens, keys]: [usize; 2],
    device: &B::Device,
) -> Option<Tensor<B, 4, Bool>> {
    let (rows, pairs) = visibility.hidden_pairs(tokens, keys, &origins(visibility, mask, keys))?;
    Some(Tensor::from_data(TensorData::new(pairs, [rows, 1, tokens, keys]), device))
}

/// The slot of each row's first token, where the layer needs it and `mask` hides keys; else an empty list. Reads the mask back from
/// its device.
fn origins<B: Backend>(visibility: &Visibility, mask: &AttentionMask<B>, keys: usize) -> Vec<usize> {
    match mask.hidden_keys().filter(|_| visibility.reads_origins()) {
        Some(hidden) => {
            let hidden: Vec<bool> = hidden.to_data().iter().collect();
            burn_deepspeed_core::visibility::origins(&hidden, keys)
        }
        None => Vec::new(),
    }
}
