//! Norm and projections on the CPU kernels.

use std::ops::Range;

use burn::tensor::{DType, Tensor};
use burn_deepspeed_core::block::BlockFormat;
use burn_deepspeed_core::config::ActivationRounding;
use burn_deepspeed_kernels::cpu::norm::{Norm, norm_into as normalise};
use burn_deepspeed_kernels::cpu::places::{Places, result};
use burn_deepspeed_kernels::cpu::product::{
    AnyMatrix, BlockMatrix as BlockProblem, InputElements, Int8Matrix as Int8Problem, Matrix as DenseProblem, Product,
    RoundedMatrix, has_rounded, product_into, rounded_product_into,
};
use bytemuck::Pod;

use super::reference::{QkvGemmOutput, reference};
use crate::error::check_shape;
use crate::ops::cpu::{Elements, Floats, InMemory, is_float, tensor, with_vector};
use crate::ops::projection::{self, check_types};
use crate::weight::{BlockMatrix, DenseMatrix, FusedNorm, Int8Matrix, Matrix, QkvWeight, SeparateQkv, Weight};

/// [`Operations::qkv_gemm`](crate::ops::Operations::qkv_gemm) for backends on the CPU.
pub(crate) fn qkv_gemm<B: InMemory>(
    input: Tensor<B, 3>,
    norm: Option<&FusedNorm<B>>,
    qkv: &QkvWeight<B>,
    want_norm: bool,
) -> QkvGemmOutput<B> {
    if !is_float(input.dtype()) || input.shape().num_elements() == 0 {
        return reference(input, norm, qkv, want_norm);
    }
    let (device, dtype) = (input.device(), input.dtype());
    let weights: Vec<&Weight<B>> = match qkv {
        QkvWeight::Fused(weight) => vec![weight],
        QkvWeight::Separate(SeparateQkv { query, key, value }) => vec![query, key, value],
    };
    let Some(norm) = norm else {
        return QkvGemmOutput {
            qkv: products("qkv_gemm", &input, &weights, true),
            inp_norm: want_norm.then_some(input),
        };
    };
    // It is not rounded before the products.
    let (normed, shape) = (normalised("qkv_gemm", &input, None, norm), input.dims());
    let (qkv, wide) = multiplied("qkv_gemm", (&normed, InputElements::F32), (shape, dtype), &weights, true);
    let qkv = tensor(qkv, wide, (&device, dtype));
    QkvGemmOutput { qkv, inp_norm: want_norm.then(|| tensor(normed, shape, (&device, dtype))) }
}

/// `input · weight`, with its bias or without.
pub(crate) fn project<B: InMemory>(
    operation: &str,
    input: Tensor<B, 3>,
    weight: &Weight<B>,
    bias: bool,
) -> Tensor<B, 3> {
    if !is_float(input.dtype()) || input.shape().num_elements() == 0 {
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
    tensor(normalised(operation, input, residual, norm), input.dims(), (&input.device(), input.dtype()))
}

/// The same in f32.
fn normalised<B: InMemory>(
    operation: &str,
    input: &Tensor<B, 3>,
    residual: Option<&Tensor<B, 3>>,
    norm: &FusedNorm<B>,
) -> Vec<f32> {
    let [batch, tokens, width] = input.dims();
    check_shape(operation, "input", &[batch, tokens, norm.size()], &[batch, tokens, width]);
    let (gamma, beta, spec) = (norm.gamma(), norm.beta(), norm.spec());
    B::with_elements(input, |input| {
        B::with_elements(&gamma, |gamma| {
            with_vector(beta.as_ref(), |beta| {
                let (input, gamma, epsilon) = (input.dense(), gamma.dense(), spec.epsilon as f32);
                let problem = Norm { input: &input, residual: None, gamma: &gamma, beta, epsilon, rms: spec.rms };
                let run = |problem: &Norm<'_>| result(input.len(), |output| normalise(problem, output));
                match residual {
                    Some(residual) => B::with_elements(residual, |residual| {
                        let residual = residual.dense();
                        run(&Norm { residual: Some(&residual), ..problem })
                    }),
                    None => run(&problem),
                }
            })
        })
    })
}

/// The products with several matrices, concatenated.
fn products<B: InMemory>(
    operation: &str,
    input: &Tensor<B, 3>,
    weights: &[&Weight<B>],
    with_bias: bool,
) -> Tensor<B, 3> {
    let (device, dtype, shape) = (input.device(), input.dtype(), input.dims());
    let elements = if dtype == DType::BF16 { InputElements::Bf16 } else { InputElements::F32 };
    let (output, wide) = B::with_elements(input, |input| {
        multiplied(operation, (&input.dense(), elements), (shape, dtype), weights, with_bias)
    });
    tensor(output, wide, (&device, dtype))
}

/// The same for rows in f32, `[B, T, in]`, that are next to activations of `dtype`; with the shape of the output.
fn multiplied<B: InMemory>(
    operation: &str,
    (input, elements): (&[f32], InputElements),
    ([batch, tokens, inputs], dtype): ([usize; 3], DType),
    weights: &[&Weight<B>],
    with_bias: bool,
) -> (Vec<f32>, [usize; 3]) {
    let width = weights.iter().map(|weight| weight.output_size()).sum();
    let output = result(batch * tokens * width, |output| {
        let mut first = 0;
        for weight in weights {
            check_shape(operation, "input", &[batch, tokens, weight.input_size()], &[batch, tokens, inputs]);
            check_types(operation, dtype, weight);
            let bias = weight.bias().filter(|_| with_bias);
            let elements = match elements {
                InputElements::F32 if weight.rounds_input_to_bf16() => InputElements::RoundToBf16,
                elements => elements,
            };
            with_vector(bias.as_ref(), |bias| {
                Rows { input, elements, sequence: tokens, bias, width, first }.times(weight, output);
            });
            first += weight.output_size();
        }
    });
    (output, [batch, tokens, width])
}

/// Everything of a [`Product`] but the matrix.
#[derive(Clone, Copy)]
struct Rows<'a> {
    input: &'a [f32],
    elements: InputElements,
    sequence: usize,
    bias: Option<&'a [f32]>,
    width: usize,
    first: usize,
}

impl<'a> Rows<'a> {
    fn problem<W: AnyMatrix>(self, matrix: W) -> Product<'a, W> {
        let Self { input, elements, sequence, bias, width, first } = self;
        Product { input, elements, sequence, matrix, bias, width, first }
    }

    /// The product with a weight, in its form.
    fn times<B: InMemory>(self, weight: &Weight<B>, output: &mut Places<'_>) {
        match weight.stored() {
            Matrix::Int8(int8) => with_int8(int8, |matrix| self.times_rounded(matrix, weight.input_rounding(), output)),
            Matrix::Blocks(blocks) => with_blocks(blocks, |outputs, matrix| {
                let first = self.first + outputs.start;
                let rows = Rows { first, bias: self.bias.map(|bias| &bias[outputs]), ..self };
                rows.times_rounded(matrix, weight.input_rounding(), output);
            }),
            Matrix::Dense(matrix) => self.times_dense(matrix, output),
        }
    }

    /// The product with a matrix of integers, of rows that are rounded where the processor has kernels for them.
    fn times_rounded<W: RoundedMatrix>(self, matrix: W, rounding: ActivationRounding, output: &mut Places<'_>) {
        match rounding.bits().filter(|_| has_rounded()) {
            Some(bits) => rounded_product_into(&self.problem(matrix), bits, output),
            None => product_into(&self.problem(matrix), output),
        }
    }

    /// The product with a dense matrix, which is read in place.
    fn times_dense<B: InMemory>(self, matrix: &DenseMatrix<B>, output: &mut Places<'_>) {
        B::with_floats(&matrix.output_input(), |floats| match floats {
            Floats::F32(matrix) => product_into(&self.problem(dense(&matrix)), output),
            Floats::F16(matrix) => self.times_halves(&matrix, BlockFormat::F16, output),
            Floats::BF16(matrix) => self.times_halves(&matrix, BlockFormat::BF16, output),
        });
    }

    /// The product with a matrix of 16 bits; as blocks if its rows follow each other, for which there are more kernels.
    fn times_halves<E: Pod>(self, matrix: &Elements<'_, 2, E>, format: BlockFormat, output: &mut Places<'_>)
    where
        for<'m> DenseProblem<'m, E>: AnyMatrix,
    {
        let [outputs, inputs] = matrix.shape;
        if matrix.strides != [inputs, 1] {
            return product_into(&self.problem(dense(matrix)), output);
        }
        let blocks = bytemuck::cast_slice(&matrix.elements[..outputs * inputs]);
        product_into(&self.problem(BlockProblem { format, blocks, inputs, outputs }), output);
    }
}

/// A matrix `[out, in]` as kernels take it.
fn dense<'a, E: Clone>(matrix: &'a Elements<'_, 2, E>) -> DenseProblem<'a, E> {
    let ([outputs, inputs], [output_stride, input_stride]) = (matrix.shape, matrix.strides);
    DenseProblem { elements: &matrix.elements, inputs, outputs, input_stride, output_stride }
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
