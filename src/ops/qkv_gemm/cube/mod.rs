//! Projections on CubeCL: for a few rows one kernel that includes norm and bias, for many rows, and for formats of blocks that it does not
//! read, a norm kernel and Burn's matmul.

mod dequantise;
mod exact_matmul;
mod gemv;
mod norm;

use burn::tensor::{DType, Tensor};

use self::dequantise::dense_parts;
use self::exact_matmul::exact_matmul;
use self::gemv::{project_few, takes};
pub(in crate::ops) use self::norm::normalise;
use super::reference::{QkvGemmOutput, reference};
use crate::error::check_shape;
use crate::ops::cube::{CubeDevice, is_float};
use crate::ops::projection::{self, check_types, concatenated, product};
use crate::weight::{FusedNorm, QkvWeight, SeparateQkv, Weight};

/// [`Operations::qkv_gemm`](crate::ops::Operations::qkv_gemm) on CubeCL.
pub(crate) fn qkv_gemm<B: CubeDevice>(
    input: Tensor<B, 3>,
    norm: Option<&FusedNorm<B>>,
    qkv: &QkvWeight<B>,
    want_norm: bool,
) -> QkvGemmOutput<B> {
    let [batch, tokens, width] = input.dims();
    if batch * tokens * width == 0 || !is_float(input.dtype()) {
        return reference(input, norm, qkv, want_norm);
    }
    if let Some(norm) = norm {
        check_shape("qkv_gemm", "input", &[batch, tokens, norm.size()], &[batch, tokens, width]);
    }
    let weights: Vec<&Weight<B>> = match qkv {
        QkvWeight::Fused(weight) => vec![weight],
        QkvWeight::Separate(SeparateQkv { query, key, value }) => vec![query, key, value],
    };
    let (rows, dtype) = (batch * tokens, input.dtype());
    if weights.iter().all(|weight| takes(rows, dtype, weight)) {
        let (qkv, normed) = project_few("qkv_gemm", input.clone(), norm, &weights, true, want_norm && norm.is_some());
        return QkvGemmOutput { qkv, inp_norm: want_norm.then(|| normed.unwrap_or(input)) };
    }
    let normed = match norm {
        Some(norm) => normalise(input, None, norm),
        None => input,
    };
    let inp_norm = want_norm.then(|| normed.clone());
    let mut parts: Vec<_> = weights.iter().map(|weight| project("qkv_gemm", normed.clone(), weight, true)).collect();
    let qkv = if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 2) };
    QkvGemmOutput { qkv, inp_norm }
}

/// `input · weight`, with its bias or without.
pub(crate) fn project<B: CubeDevice>(
    operation: &str,
    input: Tensor<B, 3>,
    weight: &Weight<B>,
    bias: bool,
) -> Tensor<B, 3> {
    let [batch, tokens, width] = input.dims();
    let rows = batch * tokens;
    if rows * width == 0 || !is_float(input.dtype()) {
        let dtype = input.dtype();
        return projection::project(operation, input, weight, weight.bias().filter(|_| bias), dtype);
    }
    match takes(rows, input.dtype(), weight) {
        true => project_few(operation, input, None, &[weight], bias, false).0,
        false => project_many(operation, input, weight, bias),
    }
}

/// Burn's matmul, which accumulates half types in f32 and reads a transposed matrix in place. On devices with TF32 it would
/// round f32 to that, so there the product is [`exact_matmul`]. int8 weights, and those of blocks, are rounded to the element type
/// of the input; blocks become dense on the device, some outputs at a time.
fn project_many<B: CubeDevice>(operation: &str, input: Tensor<B, 3>, weight: &Weight<B>, bias: bool) -> Tensor<B, 3> {
    let [batch, tokens, width] = input.dims();
    check_shape(operation, "input", &[batch, tokens, weight.input_size()], &[batch, tokens, width]);
    let dtype = input.dtype();
    check_types(operation, dtype, weight);
    let input = input.reshape([batch * tokens, width]);
    let exact = dtype == DType::F32 && B::has_tf32(&input.device());
    let multiply = |part: Tensor<B, 2>| match exact {
        true => exact_matmul(input.clone(), part),
        false => input.clone().matmul(part),
    };
    let product = match weight.blocks() {
        Some(matrix) => concatenated(dense_parts(matrix, dtype).map(|part| multiply(part.transpose()))),
        None => product(weight, dtype, multiply),
    };
    let sum = match weight.bias().filter(|_| bias) {
        Some(bias) => product + bias.cast(dtype).unsqueeze(),
        None => product,
    };
    sum.reshape([batch, tokens, weight.output_size()])
}
