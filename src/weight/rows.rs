//! Rows of a matrix on the host, for what is rounded there.

use burn::tensor::{DType, Distribution, FloatDType, Tensor, backend::Backend};

use crate::error::WeightError;

/// Elements that are drawn at a time.
const BATCH: usize = 1 << 20;

/// The elements of a matrix, row by row.
///
/// # Errors
/// [`WeightError::NotFinite`] for one that has no nearest value.
pub(super) fn finite<B: Backend>(matrix: Tensor<B, 2>) -> Result<Vec<f32>, WeightError> {
    let [_, inputs] = matrix.dims();
    let values: Vec<f32> = matrix.cast(FloatDType::F32).into_data().iter().collect();
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(at) => Err(WeightError::NotFinite { output: at / inputs, input: at % inputs }),
    }
}

/// Draws elements with a mean of 0, and gives them to `each` in batches of rows.
pub(super) fn draw<B: Backend>(
    [outputs, inputs]: [usize; 2],
    deviation: f64,
    device: &B::Device,
    mut each: impl FnMut(Vec<f32>),
) {
    let rows = (BATCH / inputs.max(1)).max(1);
    let normal = Distribution::Normal(0.0, deviation);
    for first in (0..outputs).step_by(rows) {
        let some = Tensor::<B, 2>::random([rows.min(outputs - first), inputs], normal, (device, DType::F32));
        each(some.into_data().iter().collect());
    }
}
