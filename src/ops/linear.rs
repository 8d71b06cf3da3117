//! A projection with its bias; DeepSpeed's `LinearOp`, whose fallback it leaves unimplemented.

use burn::tensor::{Tensor, backend::Backend};

use crate::weight::Weight;

/// The definition of [`Operations::linear`](crate::ops::Operations::linear).
pub fn reference<B: Backend>(input: Tensor<B, 3>, weight: &Weight<B>) -> Tensor<B, 3> {
    let dtype = input.dtype();
    super::projection::project("linear", input, weight, weight.bias(), dtype)
}
