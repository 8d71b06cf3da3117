//! A few rows times a matrix: the arguments and their checks.

use burn_deepspeed_core::error::check_shape;
use burn_deepspeed_core::layout::Orientation;
use burn_deepspeed_core::path::MOST_GEMV_ROWS;
use cubecl::prelude::*;
use cubecl::std::tensor::TensorHandle;

use super::int8::{CheckedInt8, Int8};
use crate::cube::blocks::{Blocks, CheckedBlocks};
use crate::cube::contract::{Checked, Contract, f32_type, same_type};
use crate::cube::machine::Unsupported;
use crate::cube::tensors::array;

/// Most rows of the input: each row of sums stays in registers.
pub const MOST_ROWS: usize = MOST_GEMV_ROWS;

/// `norm(input) · matrix + bias`, accumulated in f32 and rounded once.
///
/// Rows may have any stride; the elements of a row are contiguous. Input, matrix, output and normed have the same element type,
/// except for a matrix of int8 or blocks; bias, gamma and beta each their own.
#[derive(Debug, Clone, Copy)]
pub struct Gemv<'a, R: Runtime> {
    /// `[rows, in]`, with up to [`MOST_ROWS`] rows.
    pub input: &'a TensorHandle<R>,
    /// The norm before the product. Its result is not rounded to the element type. With blocks and bf16, on tensor cores it is rounded to f16,
    /// three bits more.
    pub norm: Option<Norm<'a, R>>,
    /// What the rows are multiplied with.
    pub matrix: Matrix<'a, R>,
    /// `[out]`.
    pub bias: Option<&'a TensorHandle<R>>,
    /// `[rows, at least offset + out]`; the columns from `offset` are written, and no others.
    pub output: &'a TensorHandle<R>,
    /// The first column of the output, so that several launches fill it.
    pub offset: usize,
    /// `[rows, in]`: receives the normalised input, rounded.
    pub normed: Option<&'a TensorHandle<R>>,
}

/// The weights.
#[derive(Debug, Clone, Copy)]
pub enum Matrix<'a, R: Runtime> {
    /// Floats, `[out, in]` or `[in, out]`, as the orientation says.
    Dense(&'a TensorHandle<R>, Orientation),
    /// One-byte integers with scales, `[out, in]`.
    Int8(Int8<'a, R>),
    /// Quantised blocks of one format, `[out, in]`.
    Blocks(Blocks<'a, R>),
}

/// A norm over the features of a row: `gamma · (x - mean) / sqrt(variance + epsilon) + beta`.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a, R: Runtime> {
    /// LayerNorm or RMSNorm.
    pub kind: NormKind,
    /// `[in]`.
    pub gamma: &'a TensorHandle<R>,
    /// `[in]`.
    pub beta: Option<&'a TensorHandle<R>>,
    /// Added to the variance.
    pub epsilon: f32,
}

/// Which norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NormKind {
    /// The mean is subtracted first.
    LayerNorm,
    /// The mean counts as 0.
    RmsNorm,
}

/// The sizes of a problem, in elements.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extents {
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
}

/// [`Gemv`], checked.
pub(super) struct CheckedGemv<'a, R: Runtime> {
    pub input: Checked<'a, R>,
    /// Kind and epsilon.
    pub norm: Option<(NormKind, f32)>,
    pub gamma: Option<Checked<'a, R>>,
    pub beta: Option<Checked<'a, R>>,
    pub matrix: CheckedMatrix<'a, R>,
    pub bias: Option<Checked<'a, R>>,
    pub output: Checked<'a, R>,
    pub offset: usize,
    pub normed: Option<Checked<'a, R>>,
    pub extents: Extents,
}

/// [`Matrix`], checked.
pub(super) enum CheckedMatrix<'a, R: Runtime> {
    Dense(Checked<'a, R>, Orientation),
    Int8(CheckedInt8<'a, R>),
    Blocks(CheckedBlocks<'a, R>),
}

impl<'a, R: Runtime> CheckedMatrix<'a, R> {
    pub fn elements(&self) -> Checked<'a, R> {
        match self {
            Self::Dense(elements, _) => *elements,
            Self::Int8(matrix) => matrix.elements,
            Self::Blocks(matrix) => matrix.bytes,
        }
    }
}

impl<'a, R: Runtime> Gemv<'a, R> {
    /// Checks every argument.
    #[track_caller]
    pub(super) fn check(&self, client: &ComputeClient<R>) -> Result<CheckedGemv<'a, R>, Unsupported> {
        let contract = Contract::new("gemv", client);
        let norm = self.norm.as_ref();
        let [rows, inputs] = contract.axes("input", self.input);
        // Without features there is nothing to read ahead.
        contract.require(inputs > 0, || "`input` has no features, expected at least 1".to_owned());
        let (outputs, shape) = match self.matrix {
            Matrix::Dense(elements, Orientation::InputOutput) => {
                let [_, outputs] = contract.axes("matrix", elements);
                (outputs, [inputs, outputs])
            }
            Matrix::Dense(elements, _) | Matrix::Int8(Int8 { elements, .. }) => {
                let [outputs, _] = contract.axes("matrix", elements);
                (outputs, [outputs, inputs])
            }
            Matrix::Blocks(Blocks { shape: [outputs, _], .. }) => (outputs, [outputs, inputs]),
        };
        let [_, columns] = contract.axes("output", self.output);
        let needed = self.offset.saturating_add(outputs);
        contract.require(needed <= columns, || {
            format!("`output` has {columns} columns, expected at least {needed}: {outputs} from {} on", self.offset)
        });
        let optional = |name, tensor: Option<&'a TensorHandle<R>>, shape: &[usize]| {
            tensor.map(|tensor| contract.rows(name, tensor, shape)).transpose()
        };
        let input = contract.rows("input", self.input, &[rows, inputs])?;
        let output = contract.rows("output", self.output, &[rows, columns])?;
        let normed = optional("normed", self.normed, &[rows, inputs])?;
        let bias = optional("bias", self.bias, &[outputs])?;
        let gamma = optional("gamma", norm.map(|norm| norm.gamma), &[inputs])?;
        let beta = optional("beta", norm.and_then(|norm| norm.beta), &[inputs])?;
        let matrix = match &self.matrix {
            Matrix::Dense(elements, orientation) => {
                let elements = contract.rows("matrix", elements, &shape)?;
                same_type("matrix", &elements, input.dtype)?;
                CheckedMatrix::Dense(elements, *orientation)
            }
            Matrix::Int8(matrix) => CheckedMatrix::Int8(matrix.check(&contract, shape)?),
            Matrix::Blocks(matrix) => {
                check_shape("gemv", "matrix", &shape, &matrix.shape);
                CheckedMatrix::Blocks(matrix.check(&contract)?)
            }
        };

        same_type("output", &output, input.dtype)?;
        normed.map_or(Ok(()), |normed| same_type("normed", &normed, input.dtype))?;
        contract.supports(&[input.dtype])?;
        for parameter in [bias, gamma, beta].into_iter().flatten() {
            contract.supports(&[parameter.dtype])?;
        }
        if rows > MOST_ROWS {
            return Err(Unsupported::Rows { rows, limit: MOST_ROWS });
        }
        Ok(CheckedGemv {
            input,
            norm: norm.map(|norm| (norm.kind, norm.epsilon)),
            gamma,
            beta,
            matrix,
            bias,
            output,
            offset: self.offset,
            normed,
            extents: Extents { rows, inputs, outputs },
        })
    }
}

impl<'a, R: Runtime> CheckedGemv<'a, R> {
    /// Element types of gamma, beta and bias; f32 where there is none.
    pub fn parameter_types(&self) -> [StorageType; 3] {
        [self.gamma, self.beta, self.bias].map(|tensor| tensor.map_or(f32_type(), |tensor| tensor.dtype))
    }

    /// The input and the other tensors that the kernel reads or writes in the same vectors.
    pub fn activations(&self) -> Vec<Checked<'a, R>> {
        [self.input].into_iter().chain(self.normed).collect()
    }

    pub fn normed_array<E: CubePrimitive>(&self) -> ComptimeOptionArgs<Array<E>, R> {
        self.normed.map(array).into()
    }

    pub fn bias_array<E: CubePrimitive>(&self) -> ComptimeOptionArgs<Array<E>, R> {
        self.bias.map(array).into()
    }
}
