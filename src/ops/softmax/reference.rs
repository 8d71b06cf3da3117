//! The definition of the masked softmax, in tensor operations.

use burn::tensor::{FloatDType, Tensor, backend::Backend};

use super::arguments::Softmax;
use crate::mask::AttentionMask;
use crate::ops::attention::{Visibility, Window, hidden_pairs};
use crate::ops::masked_softmax::masked_softmax;

/// The definition of [`Operations::softmax`](crate::ops::Operations::softmax).
pub fn reference<B: Backend>(arguments: Softmax<B>) -> Tensor<B, 4> {
    arguments.check();
    let Softmax { scores, scale, alibi, head_offset, mask, triangular, window } = arguments;
    let [_, heads, tokens, keys] = scores.dims();
    let (dtype, device) = (scores.dtype(), scores.device());
    if scores.shape().num_elements() == 0 {
        return scores;
    }
    let mut scores = scores.cast(FloatDType::F32) * scale;
    if let Some(alibi) = alibi {
        let own = alibi.narrow(0, head_offset, heads).cast(FloatDType::F32);
        scores = scores + own.unsqueeze();
    }
    if let Some(mask) = mask {
        scores = scores + mask.pairs().cast(FloatDType::F32);
    }
    let start = triangular.unwrap_or(keys.saturating_sub(tokens));
    let (causal, window) = (triangular.is_some(), window.map(Window::Back));
    let visibility = Visibility { causal, window, starts: vec![start], ends: vec![keys] };
    let hidden = hidden_pairs::<B>(&visibility, &AttentionMask::none(), [tokens, keys], &device);
    masked_softmax(scores, hidden).cast(dtype)
}
