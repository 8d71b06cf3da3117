//! Norm, matrices and biases for a few rows, in one kernel per matrix.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_deepspeed_core::block::{BlockFormat, RowPart};
use burn_deepspeed_core::path::{BlockKernel, BlockProblem};
use burn_deepspeed_kernels::cube::gemv::MOST_ROWS;
use burn_deepspeed_kernels::cube::{Blocks, Machine, gemv};

use super::norm::{Parameters, parameters};
use crate::element::element_type;
use crate::error::check_shape;
use crate::ops::cube::{
    CubeCall, CubeDevice, TensorKind, TensorLike, empty, float, from_float, handle, int, kernel_accepts,
    optional_handle, rows,
};
use crate::ops::projection::check_types;
use crate::weight::{FusedNorm, Matrix as Stored, Orientation, Weight};

/// The arguments of projections of a few rows, with `T` for each tensor. The outputs of the matrices are concatenated.
#[derive(Debug, Clone)]
struct GemvCall<T> {
    /// `[rows, in]`.
    input: T,
    norm: Option<Parameters<T>>,
    matrices: Vec<Matrix<T>>,
    want_norm: bool,
}

/// One projection: a matrix and its bias, with `T` for each tensor.
#[derive(Debug, Clone)]
struct Matrix<T> {
    elements: Elements<T>,
    outputs: usize,
    bias: Option<T>,
}

/// The elements of a matrix, with `T` for each tensor.
#[derive(Debug, Clone)]
enum Elements<T> {
    Dense {
        matrix: T,
        orientation: Orientation,
    },
    Int8 {
        elements: T,
        scales: T,
        /// Outputs and inputs of the block of one scale.
        blocks: [usize; 2],
    },
    /// Outputs of one format.
    Blocks {
        /// Of the whole matrix.
        bytes: T,
        first: usize,
        format: BlockFormat,
        inputs: usize,
    },
}

/// The results, with `T` for each tensor.
struct GemvOutput<T> {
    /// `[rows, out]`.
    product: T,
    /// The normalised input, if it was requested.
    normed: Option<T>,
}

/// Whether the kernel takes the product of this number of rows.
pub(super) fn takes<B: CubeDevice>(rows: usize, dtype: DType, weight: &Weight<B>) -> bool {
    let reads = |format| BlockProblem { dtype: element_type(dtype), rows, format }.on_cube() == Ok(BlockKernel::Gemv);
    rows <= MOST_ROWS && weight.blocks().is_none_or(|matrix| matrix.formats().parts().all(|part| reads(part.format)))
}

/// The products with several matrices, concatenated, and the normalised input if `want_norm`.
///
/// # Shapes
/// - input, normalised input: `[B, T, in]`, products: `[B, T, out]`
pub(super) fn project_few<B: CubeDevice>(
    operation: &str,
    input: Tensor<B, 3>,
    norm: Option<&FusedNorm<B>>,
    weights: &[&Weight<B>],
    bias: bool,
    want_norm: bool,
) -> (Tensor<B, 3>, Option<Tensor<B, 3>>) {
    let [batch, tokens, width] = input.dims();
    let matrices: Vec<_> = weights
        .iter()
        .flat_map(|weight| {
            check_shape(operation, "input", &[batch, tokens, weight.input_size()], &[batch, tokens, width]);
            check_types(operation, input.dtype(), weight);
            matrices(weight, bias)
        })
        .collect();
    let call = GemvCall {
        input: float(input.reshape([batch * tokens, width])),
        norm: norm.map(parameters),
        matrices,
        want_norm,
    };
    let outputs = call.outputs();
    let GemvOutput { product, normed } = B::run::<GemvCall<()>>(call);
    let product: Tensor<B, 2> = from_float(product);
    let normed = normed.map(|normed| from_float::<B, 2>(normed).reshape([batch, tokens, width]));
    (product.reshape([batch, tokens, outputs]), normed)
}

/// A weight as matrices of one launch each: a matrix of blocks has one for each part of its outputs that has a format of its own.
fn matrices<B: CubeDevice>(weight: &Weight<B>, bias: bool) -> Vec<Matrix<FloatTensor<B>>> {
    let bias = weight.bias().filter(|_| bias);
    let whole = |elements| vec![Matrix { elements, outputs: weight.output_size(), bias: bias.clone().map(float) }];
    match weight.stored() {
        Stored::Dense(matrix) => {
            whole(Elements::Dense { matrix: float(matrix.values()), orientation: matrix.orientation() })
        }
        Stored::Int8(matrix) => whole(Elements::Int8 {
            elements: int(matrix.elements()),
            scales: float(matrix.scales()),
            blocks: matrix.blocks(),
        }),
        Stored::Blocks(matrix) => {
            let own = |part: RowPart| Matrix {
                elements: Elements::Blocks {
                    bytes: int(matrix.bytes()),
                    first: part.bytes.start,
                    format: part.format,
                    inputs: matrix.formats().inputs(),
                },
                outputs: part.outputs.len(),
                bias: bias.clone().map(|bias| float(bias.narrow(0, part.outputs.start, part.outputs.len()))),
            };
            matrix.formats().parts().map(own).collect()
        }
    }
}

impl<T> GemvCall<T> {
    /// Features of the concatenated outputs.
    fn outputs(&self) -> usize {
        self.matrices.iter().map(|matrix| matrix.outputs).sum()
    }
}

impl<T> Matrix<T> {
    fn map<U>(self, visit: &mut impl FnMut(T) -> U) -> Matrix<U> {
        let elements = match self.elements {
            Elements::Dense { matrix, orientation } => Elements::Dense { matrix: visit(matrix), orientation },
            Elements::Int8 { elements, scales, blocks } => {
                Elements::Int8 { elements: visit(elements), scales: visit(scales), blocks }
            }
            Elements::Blocks { bytes, first, format, inputs } => {
                Elements::Blocks { bytes: visit(bytes), first, format, inputs }
            }
        };
        Matrix { elements, outputs: self.outputs, bias: self.bias.map(visit) }
    }
}

impl CubeCall for GemvCall<()> {
    const NAME: &'static str = "gemv";

    type Arguments<T: TensorLike> = GemvCall<T>;
    type Output<T: TensorLike> = GemvOutput<T>;

    fn walk<T: TensorLike, U: TensorLike>(call: GemvCall<T>, visit: &mut impl FnMut(T) -> U) -> GemvCall<U> {
        GemvCall {
            input: visit(call.input),
            norm: call.norm.map(|norm| norm.map(visit)),
            matrices: call.matrices.into_iter().map(|matrix| matrix.map(visit)).collect(),
            want_norm: call.want_norm,
        }
    }

    fn walk_output<T: TensorLike, U: TensorLike>(
        output: GemvOutput<T>,
        visit: &mut impl FnMut(T) -> U,
    ) -> GemvOutput<U> {
        GemvOutput { product: visit(output.product), normed: output.normed.map(visit) }
    }

    fn announce(call: GemvCall<TensorKind>) -> GemvOutput<TensorKind> {
        let outputs = call.outputs();
        let (shape, dtype) = call.input;
        let product = (Shape::new([shape[0], outputs]), dtype);
        GemvOutput { product, normed: call.want_norm.then_some((shape, dtype)) }
    }

    fn launch<R: CubeRuntime>(call: GemvCall<CubeTensor<R>>) -> GemvOutput<CubeTensor<R>> {
        let outputs = call.outputs();
        let input = rows(call.input);
        let (client, machine) = (input.client.clone(), Machine::new(&input.client));
        let parameters = call.norm.map(|norm| norm.map(&mut |tensor| handle(&rows(tensor))));
        let product = empty(&input, [input.meta.shape()[0], outputs]);
        let normed = call.want_norm.then(|| empty(&input, input.meta.shape().clone()));
        let mut offset = 0;
        for (index, matrix) in call.matrices.into_iter().enumerate() {
            let Matrix { elements, outputs, bias } = matrix.map(&mut |tensor| handle(&rows(tensor)));
            // Every launch computes the norm; the first one also writes it out.
            let normed = optional_handle(normed.as_ref().filter(|_| index == 0));
            let arguments = gemv::Gemv {
                input: &handle(&input),
                norm: parameters.as_ref().map(|Parameters { spec, gamma, beta }| gemv::Norm {
                    kind: if spec.rms { gemv::NormKind::RmsNorm } else { gemv::NormKind::LayerNorm },
                    gamma,
                    beta: beta.as_ref(),
                    epsilon: spec.epsilon as f32,
                }),
                matrix: match &elements {
                    Elements::Dense { matrix, orientation } => gemv::Matrix::Dense(matrix, *orientation),
                    Elements::Int8 { elements, scales, blocks } => {
                        gemv::Matrix::Int8(gemv::Int8 { elements, scales, blocks: *blocks })
                    }
                    Elements::Blocks { bytes, first, format, inputs } => gemv::Matrix::Blocks(Blocks {
                        bytes,
                        first: *first,
                        format: *format,
                        shape: [outputs, *inputs],
                    }),
                },
                bias: bias.as_ref(),
                output: &handle(&product),
                offset,
                normed: normed.as_ref(),
            };
            kernel_accepts(Self::NAME, gemv::launch(&client, &machine, arguments));
            offset += outputs;
        }
        GemvOutput { product, normed }
    }
}
