//! A projection without its bias; DeepSpeed's `VectorMatMulOp`.

use burn::tensor::{Tensor, backend::Backend};

use super::projection::project;
use crate::weight::Weight;

/// The definition of [`Operations::vector_matmul`](crate::ops::Operations::vector_matmul).
pub fn reference<B: Backend>(input: Tensor<B, 3>, weight: &Weight<B>) -> Tensor<B, 3> {
    let dtype = input.dtype();
    project("vector_matmul", input, weight, None, dtype)
}
