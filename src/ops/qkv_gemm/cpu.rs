//! Norm and projections on the CPU kernels.

use std::ops::Range;

use burn::tensor::{DType, Tensor};
use burn_deepspeed_kernels::cpu::norm::{Norm, norm as normalise};
use burn_deepspeed_kernels::cpu::product::{
    BlockMatrix as BlockProblem, InputElements, Int8Matrix as Int8Problem, Matrix as DenseProblem, Product,
    has_rounded, product, rounded_product,
};

use super::reference::{QkvGemmOutput, reference};
use crate::error::check_shape;
use crate::ops::cpu::{InMemory, tensor, with_vector};
use crate::ops::projection::{self, check_types};
use crate::weight::{BlockMatrix, DenseMatrix, FusedNorm, Int8Matrix, Matrix, QkvWeight, SeparateQkv, Weight};

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
        let (input, elements) = (input.dense(), InputElements::F32);
        let mut first = 0;
        for weight in weights {
            check_shape(operation, "input", &[batch, tokens, weight.input_size()], &[batch, tokens, inputs]);
            let bias = weight.bias().filter(|_| with_bias);
            with_vector(bias.as_ref(), |bias| match weight.stored() {
                Matrix::Int8(int8) => with_int8(int8, |matrix| {
                    let problem = Product { input: &input, elements, sequence: tokens, matrix, bias, width, first };
                    match weight.input_rounding().bits().filter(|_| has_rounded()) {
                        Some(bits) => rounded_product(&problem, bits, &mut output),
                        None => product(&problem, &mut output),
                    }
                }),
                Matrix::Blocks(blocks) => with_blocks(blocks, |outputs, matrix| {
                    let (first, bias) = (first + outputs.start, bias.map(|bias| &bias[outputs]));
                    let problem = Product { input: &input, elements, sequence: tokens, matrix, bias, width, first };
                    product(&problem, &mut output);
                }),
                Matrix::Dense(matrix) => {
                    check_types(operation, DType::F32, weight);
                    with_matrix(matrix, |matrix| {
                        product(
                            &Product { input: &input, elements, sequence: tokens, matrix, bias, width, first },
                            &mut output,
                        );
                    });
                }
            });
            first += weight.output_size();
        }
    });
    tensor(output, [batch, tokens, width], &input.device())
}

/// Reads a dense matrix in place.
fn with_matrix<B: InMemory, R>(matrix: &DenseMatrix<B>, read: impl FnOnce(DenseProblem<'_>) -> R) -> R {
    B::with_elements(&matrix.output_input(), |matrix| {
        let ([outputs, inputs], [output_stride, input_stride]) = (matrix.shape, matrix.strides);
        read(DenseProblem { elements: &matrix.elements, inputs, outputs, input_stride, output_stride })
    })
}

/// Reads a matrix of blocks in place: outputs of one format at a time.
fn with_blocks<B: InMemory>(matrix: &BlockMatrix<B>, mut read: impl FnMut(Range<usize>, BlockProblem<'_>)) {
    let inputs = matrix.formats().inputs();
    B::with_int8(&matrix.bytes(), |bytes| {
        let bytes: &[u8] = bytemuck::cast_slice(bytes);
        for part in matrix.formats().parts() {
            let (format, outputs) = (part.format, part.outputs.len());
            read(part.outputs, BlockProblem { format, blocks: &bytes[part.bytes], inputs, outputs });
        }
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
