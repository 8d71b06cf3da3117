//! A projection with its bias; DeepSpeed's `LinearOp`, whose fallback is unimplemented.

use burn::tensor::{Tensor, backend::Backend};

use super::projection::project;
use crate::weight::Weight;

/// The definition of [`Operations::linear`](crate::ops::Operations::linear).
pub fn reference<B: Backend>(input: Tensor<B, 3>, weight: &Weight<B>) -> Tensor<B, 3> {
    let dtype = input.dtype();
    project("linear", input, weight, weight.bias(), dtype)
}
