//! How a token's position enters attention: rotary angles, ALiBi, or not at all.

pub mod alibi;
pub(crate) mod factor;
pub mod rotary;

pub use burn_deepspeed_core::position::{PositionEncoding, Positions, QueryFactor};

use burn::tensor::{Int, Tensor, backend::Backend};

use crate::error::AttentionError;

/// [`Positions`] from tensors.
pub trait FromTensor: Sized {
    /// Positions given by the caller, `[B, T]`. Reads the tensor back from its device.
    ///
    /// # Errors
    /// [`AttentionError::Positions`] for a negative position.
    fn from_tensor<B: Backend>(ids: Tensor<B, 2, Int>) -> Result<Self, AttentionError>;

    /// The positions of the last `tokens` columns of a padding mask `[B, S]` (1 = a real token). Reads the tensor back from its
    /// device. The position of a token is the number of real tokens before it; padding on the left gets 0.
    ///
    /// # Panics
    /// If the mask has fewer columns than `tokens`.
    fn from_padding_mask<B: Backend>(mask: Tensor<B, 2, Int>, tokens: usize) -> Self;
}

impl FromTensor for Positions {
    fn from_tensor<B: Backend>(ids: Tensor<B, 2, Int>) -> Result<Self, AttentionError> {
        let rows = ids.dims();
        Self::from_rows(ids.into_data().iter::<i64>(), rows)
    }

    fn from_padding_mask<B: Backend>(mask: Tensor<B, 2, Int>, tokens: usize) -> Self {
        let [batch, keys] = mask.dims();
        if keys == 0 {
            return Self::sequential(&vec![0; batch], tokens);
        }
        let real: Vec<bool> = mask.into_data().iter::<i64>().map(|keep| keep != 0).collect();
        Self::from_real_tokens(&real, keys, tokens)
    }
}
