//! Norm and projections on the CPU kernels.

use burn::tensor::{DType, Tensor};
use burn_deepspeed_kernels::cpu::norm::{Norm, norm as normalise};
use burn_deepspeed_kernels::cpu::product::{
    Int8Matrix as Int8Problem, Matrix, Product, has_rounded, product, rounded_product,
};

use super::reference::{QkvGemmOutput, reference};
use crate::error::check_shape;
use crate::ops::cpu::{InMemory, tensor, with_vector};
use crate::ops::projection::{self, check_types};
use crate::weight::{FusedNorm, Int8Matrix, QkvWeight, SeparateQkv, Weight};

/// [`Operations::qkv_gemm`](crate::ops::Operations::qkv_gemm) for backends on the CPU.
pub(crate) fn qkv_gemm<B: InMemory>(
    input: Tensor<B, 3>,
    norm: Option<&FusedNorm<B>>,
    qkv: &QkvWeight<B>,
    want_norm: bool,
) -> QkvGemmOutput<B> {
    if input.dtype() != DType::F32 || input.shape().num_elements() == 0 {
        return reference(input, norm, qkv, want_norm);
    }
    let input = match norm {
        Some(norm) => normed("qkv_gemm", &input, None, norm),
        None => input,
    };
    let weights: Vec<&Weight<B>> = match qkv {
        QkvWeight::Fused(weight) => vec![weight],
        QkvWeight::Separate(SeparateQkv { query, key, value }) => vec![query, key, value],
    };
    let qkv = products("qkv_gemm", &input, &weights, true);
    QkvGemmOutput { qkv, inp_norm: want_norm.then_some(input) }
}

/// `input · weight`, with its bias or without.
pub(crate) fn project<B: InMemory>(
    operation: &str,
    input: Tensor<B, 3>,
    weight: &Weight<B>,
    bias: bool,
) -> Tensor<B, 3> {
    if input.dtype() != DType::F32 || input.shape().num_elements() == 0 {
        let dtype = input.dtype();
        return projection::project(operation, input, weight, weight.bias().filter(|_| bias), dtype);
    }
    products(operation, &input, &[weight], bias)
}

/// `norm(input + residual)`.
pub(crate) fn normed<B: InMemory>(
    operation: &str,
    input: &Tensor<B, 3>,
    residual: Option<&Tensor<B, 3>>,
    norm: &FusedNorm<B>,
) -> Tensor<B, 3> {
    let [batch, tokens, width] = input.dims();
    check_shape(operation, "input", &[batch, tokens, norm.size()], &[batch, tokens, width]);
    let (gamma, beta, spec) = (norm.gamma(), norm.beta(), norm.spec());
    let mut output = vec![0.0; batch * tokens * width];
    B::with_elements(input, |input| {
        B::with_elements(&gamma, |gamma| {
            with_vector(beta.as_ref(), |beta| {
                let (input, gamma, epsilon) = (input.dense(), gamma.dense(), spec.epsilon as f32);
                let problem = Norm { input: &input, residual: None, gamma: &gamma, beta, epsilon, rms: spec.rms };
                match residual {
                    Some(residual) => B::with_elements(residual, |residual| {
                        let residual = residual.dense();
                        normalise(&Norm { residual: Some(&residual), ..problem }, &mut output);
                    }),
                    None => normalise(&problem, &mut output),
                }
            });
        });
    });
    tensor(output, [batch, tokens, width], &input.device())
}

/// The products with several matrices, concatenated.
fn products<B: InMemory>(
    operation: &str,
    input: &Tensor<B, 3>,
    weights: &[&Weight<B>],
    with_bias: bool,
) -> Tensor<B, 3> {
    let [batch, tokens, inputs] = input.dims();
    let width = weights.iter().map(|weight| weight.output_size()).sum();
    let mut output = vec![0.0; batch * tokens * width];
    B::with_elements(input, |input| {
        let input = input.dense();
        let mut first = 0;
        for weight in weights {
            check_shape(operation, "input", &[batch, tokens, weight.input_size()], &[batch, tokens, inputs]);
            let bias = weight.bias().filter(|_| with_bias);
            with_vector(bias.as_ref(), |bias| match weight.int8() {
                Some(int8) => with_int8(int8, |matrix| {
                    let problem = Product { input: &input, sequence: tokens, matrix, bias, width, first };
                    let rounded = weight.rounds_input() && has_rounded();
                    if rounded { rounded_product(&problem, &mut output) } else { product(&problem, &mut output) }
                }),
                None => with_matrix(operation, weight, |matrix| {
                    product(&Product { input: &input, sequence: tokens, matrix, bias, width, first }, &mut output);
                }),
            });
            first += weight.output_size();
        }
    });
    tensor(output, [batch, tokens, width], &input.device())
}

/// Reads a dense matrix in place.
fn with_matrix<B: InMemory, R>(operation: &str, weight: &Weight<B>, read: impl FnOnce(Matrix<'_>) -> R) -> R {
    check_types(operation, DType::F32, weight);
    let matrix = weight.input_output();
    B::with_elements(&matrix, |matrix| {
        let ([inputs, outputs], [input_stride, output_stride]) = (matrix.shape, matrix.strides);
        read(Matrix { elements: &matrix.elements, inputs, outputs, input_stride, output_stride })
    })
}

/// Reads a matrix of int8 in place.
fn with_int8<B: InMemory, R>(matrix: &Int8Matrix<B>, read: impl FnOnce(Int8Problem<'_>) -> R) -> R {
    let ([outputs, inputs], [output_block, input_block]) = (matrix.shape(), matrix.blocks());
    B::with_int8(&matrix.elements(), |elements| {
        B::with_elements(&matrix.scales(), |scales| {
            let scales = &scales.dense();
            read(Int8Problem { elements, inputs, outputs, scales, output_block, input_block })
        })
    })
}
