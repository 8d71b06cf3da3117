//! The product of rows and a weight: the reference of every projection.

use burn::tensor::{DType, Tensor, backend::Backend};
use half::bf16;

use crate::error::check_shape;
use crate::weight::Weight;
use crate::zeros::zeros;

/// `input · matrix + bias` over the last axis, rounded once to `dtype`. Half types are accumulated in f32.
pub(super) fn project<B: Backend>(
    operation: &str,
    input: Tensor<B, 3>,
    weight: &Weight<B>,
    bias: Option<Tensor<B, 1>>,
    dtype: DType,
) -> Tensor<B, 3> {
    let [batch, tokens, width] = input.dims();
    check_shape(operation, "input", &[batch, tokens, weight.input_size()], &input.dims());
    check_types(operation, dtype, weight);
    if batch * tokens == 0 {
        // Burn's reshape reads 0 as an axis to keep.
        return zeros([batch, tokens, weight.output_size()], (&input.device(), dtype));
    }
    let accumulated = match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        other => other,
    };
    let rows = input.reshape([batch * tokens, width]);
    let rows = if weight.rounds_input_to_bf16() { rounded_to_bf16(rows) } else { rows };
    let rows = rows.cast(accumulated);
    let product = product(weight, accumulated, |part| rows.clone().matmul(part));
    let sum = match bias {
        Some(bias) => product + bias.cast(accumulated).unsqueeze(),
        None => product,
    };
    sum.cast(dtype).reshape([batch, tokens, weight.output_size()])
}

/// The rows in f32, rounded to bf16 on the host: not every backend has the type.
fn rounded_to_bf16<B: Backend>(rows: Tensor<B, 2>) -> Tensor<B, 2> {
    let device = rows.device();
    let data = rows.into_data().convert::<bf16>().convert::<f32>();
    Tensor::from_data(data, (&device, DType::F32))
}

/// Applies `multiply` to each part of the matrix and concatenates the results along the columns.
pub(super) fn product<B: Backend>(
    weight: &Weight<B>,
    dtype: DType,
    multiply: impl Fn(Tensor<B, 2>) -> Tensor<B, 2>,
) -> Tensor<B, 2> {
    concatenated(weight.parts(dtype).map(multiply))
}

/// Products with parts of the outputs, next to each other.
pub(super) fn concatenated<B: Backend>(parts: impl Iterator<Item = Tensor<B, 2>>) -> Tensor<B, 2> {
    let mut parts: Vec<_> = parts.collect();
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 1) }
}

/// Panics unless input and weights have the same element type. Weights of int8 and of blocks multiply floats of
/// every type.
#[track_caller]
pub(super) fn check_types<B: Backend>(operation: &str, input: DType, weight: &Weight<B>) {
    let weights = weight.dtype();
    assert!(
        !weight.is_dense() || input == weights,
        "{operation}: `input` has elements of {input:?} and the weights of {weights:?}; cast one of them"
    );
}
