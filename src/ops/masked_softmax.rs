//! Softmax with hidden scores, which both attention and the softmax operation use.

use burn::tensor::{Bool, Tensor, backend::Backend};

/// Softmax over the last axis of f32 scores, without the hidden ones and those of `-inf`. A row without a visible
/// score gives zeros, and finite gradients.
///
/// # Shapes
/// - scores, output: `[B, N, T, S]`
/// - hidden: broadcasts to it, true hides
pub fn masked_softmax<B: Backend>(scores: Tensor<B, 4>, hidden: Option<Tensor<B, 4, Bool>>) -> Tensor<B, 4> {
    let scores = match hidden {
        Some(hidden) => {
            let shape = scores.dims();
            scores.mask_fill(expand_bool(hidden, shape), f32::NEG_INFINITY)
        }
        None => scores,
    };
    // The maximum only keeps the exponentials in range. The result does not depend on it, so it needs no gradient.
    let max = scores.clone().detach().max_dim(3);
    let nothing = max.clone().equal_elem(f32::NEG_INFINITY);
    let weights = (scores - max.mask_fill(nothing, 0.0)).exp();
    let sum = weights.clone().sum_dim(3);
    let nothing = sum.clone().equal_elem(0.0);
    weights / sum.mask_fill(nothing, 1.0)
}

/// A mask broadcast to `shape`.
pub(super) fn expand_bool<B: Backend>(mask: Tensor<B, 4, Bool>, shape: [usize; 4]) -> Tensor<B, 4, Bool> {
    if mask.dims() == shape { mask } else { mask.expand(shape) }
}
