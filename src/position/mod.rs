//! How a token's position enters attention: rotary angles, ALiBi, or not at all.

pub mod alibi;
pub(crate) mod factor;
pub mod rotary;

pub use burn_deepspeed_core::position::{
    PositionEncoding, Positions, QueryFactor, RelativeBuckets, RotarySections, SectionOrder,
};

use burn::tensor::{Int, Tensor, backend::Backend};

use crate::error::{AttentionError, check_shape};

/// [`Positions`] from tensors.
pub trait FromTensor: Sized {
    /// Positions given by the caller, `[B, T]`. Reads the tensor back from its device.
    ///
    /// # Errors
    /// [`AttentionError::Positions`] for a negative position.
    fn from_tensor<B: Backend>(ids: Tensor<B, 2, Int>) -> Result<Self, AttentionError>;

    /// Three positions of each token, `[3, B, T]`: time, height and width, as `position_ids` of Qwen2-VL. Only layers with
    /// [sections](RotarySections) take them. Reads the tensor back from its device.
    ///
    /// # Errors
    /// [`AttentionError::Positions`] for a negative position.
    ///
    /// # Panics
    /// If the first axis does not have three entries.
    fn from_axes_tensor<B: Backend>(ids: Tensor<B, 3, Int>) -> Result<Self, AttentionError>;

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

    fn from_axes_tensor<B: Backend>(ids: Tensor<B, 3, Int>) -> Result<Self, AttentionError> {
        let [axes, batch, tokens] = ids.dims();
        check_shape("Positions::from_axes_tensor", "ids", &[3, batch, tokens], &[axes, batch, tokens]);
        let ids: Vec<i64> = ids.into_data().iter::<i64>().collect();
        let axis = |axis: usize| ids[axis * batch * tokens..][..batch * tokens].to_vec();
        Self::from_axes([0, 1, 2].map(axis), [batch, tokens])
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
