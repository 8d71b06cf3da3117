//! A projection: a matrix, dense, int8 or in blocks, with its bias.

use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Tensor, backend::Backend};
use burn_deepspeed_core::block::BlockFormat;
use burn_deepspeed_core::config::{ActivationRounding, MatrixFormat};
use burn_deepspeed_core::layout::Orientation;

use super::blocks::BlockMatrix;
use super::dense::DenseMatrix;
use super::int8::{Int8Blocks, Int8Matrix};
use super::param::{given, lazy};
use crate::element::require_int8;
use crate::error::{ConfigError, WeightError, check_shape};

/// Number of outputs of a quantised matrix that the reference makes dense at a time: enough for an efficient product, with little
/// extra memory.
const DENSE_OUTPUTS: usize = 1024;

/// A projection: `x · matrix + bias`.
#[derive(Module, Debug)]
pub struct Weight<B: Backend> {
    matrix: Matrix<B>,
    bias: Option<Param<Tensor<B, 1>>>,
    #[module(skip)]
    rounding: ActivationRounding,
}

/// The matrix of a [`Weight`].
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "a module cannot be boxed, and a layer has few of them")]
#[non_exhaustive]
pub enum Matrix<B: Backend> {
    /// Floats, `[in, out]` or `[out, in]`.
    Dense(DenseMatrix<B>),
    /// int8 with scales, always `[out, in]`.
    Int8(Int8Matrix<B>),
    /// Blocks as a file stores them, always `[out, in]`.
    Blocks(BlockMatrix<B>),
}

impl<B: Backend> Weight<B> {
    /// A fresh projection: normally distributed matrix, zero bias. Memory is allocated when a parameter is first read, so
    /// loading a checkpoint into a fresh projection allocates once.
    pub fn init(
        input: usize,
        output: usize,
        bias: bool,
        orientation: Orientation,
        dtype: DType,
        device: &B::Device,
    ) -> Self {
        let matrix = Matrix::Dense(DenseMatrix::init(input, output, orientation, dtype, device));
        Self { matrix, bias: zeros(output, bias, dtype, device), rounding: ActivationRounding::Never }
    }

    /// The same with an int8 matrix, `[out, in]`, which is never dense in memory; bias and activations are of `dtype`.
    ///
    /// # Errors
    /// [`ConfigError::UnsupportedDataType`] if the backend has no int8 arithmetic.
    pub fn init_int8(
        input: usize,
        output: usize,
        bias: bool,
        blocks: Int8Blocks,
        dtype: DType,
        device: &B::Device,
    ) -> Result<Self, ConfigError> {
        require_int8::<B>(device)?;
        let matrix = Matrix::Int8(Int8Matrix::init([output, input], blocks, dtype, device));
        Ok(Self { matrix, bias: zeros(output, bias, dtype, device), rounding: ActivationRounding::Never })
    }

    /// The same with a matrix of blocks, `[out, in]`. A file that is loaded into it keeps the formats of its rows, but for floats where a
    /// format is `wanted`, to which they are rounded. Until then the matrix is in that format, or f32.
    ///
    /// # Errors
    /// [`ConfigError::UnsupportedDataType`] if the backend does not store bytes; [`ConfigError::BlocksDoNotDivide`];
    /// [`ConfigError::Unsupported`] for a format that [cannot be written](BlockFormat::can_quantise).
    pub fn init_blocks(
        input: usize,
        output: usize,
        bias: bool,
        wanted: Option<BlockFormat>,
        dtype: DType,
        device: &B::Device,
    ) -> Result<Self, ConfigError> {
        let matrix = Matrix::Blocks(BlockMatrix::init([output, input], wanted, dtype, device)?);
        Ok(Self { matrix, bias: zeros(output, bias, dtype, device), rounding: ActivationRounding::Never })
    }

    /// The one that a `matrix_format` asks for: [`init`](Self::init), or [`init_blocks`](Self::init_blocks), which has no orientation.
    ///
    /// # Errors
    /// Those of [`init_blocks`](Self::init_blocks).
    pub fn init_with_format(
        input: usize,
        output: usize,
        bias: bool,
        format: MatrixFormat,
        orientation: Orientation,
        dtype: DType,
        device: &B::Device,
    ) -> Result<Self, ConfigError> {
        match format {
            MatrixFormat::OfDtype => Ok(Self::init(input, output, bias, orientation, dtype, device)),
            format => Self::init_blocks(input, output, bias, format.wanted(), dtype, device),
        }
    }

    /// A projection with these values.
    ///
    /// # Shapes
    /// - matrix: `[in, out]` or `[out, in]`, as `orientation` says
    /// - bias: `[out]`
    ///
    /// # Panics
    /// If the length of the bias is not the number of outputs.
    pub fn new(matrix: Tensor<B, 2>, bias: Option<Tensor<B, 1>>, orientation: Orientation) -> Self {
        let matrix = Matrix::Dense(DenseMatrix::new(matrix, orientation));
        let weight = Self { matrix, bias: bias.map(given), rounding: ActivationRounding::Never };
        if let Some(bias) = &weight.bias {
            check_shape("Weight::new", "bias", &[weight.output_size()], &bias.val().dims());
        }
        weight
    }

    /// A projection with an int8 matrix.
    pub(crate) fn of_int8(matrix: Int8Matrix<B>, bias: Option<Tensor<B, 1>>) -> Self {
        Self { matrix: Matrix::Int8(matrix), bias: bias.map(given), rounding: ActivationRounding::Never }
    }

    /// A projection with a matrix of blocks.
    pub(crate) fn of_blocks(matrix: BlockMatrix<B>, bias: Option<Tensor<B, 1>>) -> Self {
        Self { matrix: Matrix::Blocks(matrix), bias: bias.map(given), rounding: ActivationRounding::Never }
    }

    /// The same with a matrix of blocks, `[out, in]`; the bias stays as it is.
    ///
    /// # Errors
    /// Those of [`BlockMatrix::quantize`].
    pub fn quantize_blocks(self, format: BlockFormat) -> Result<Self, WeightError> {
        let matrix = BlockMatrix::quantize(self.input_output().transpose(), format)?;
        Ok(Self { matrix: Matrix::Blocks(matrix), ..self })
    }

    /// The same with an int8 matrix, `[out, in]`; the bias stays as it is.
    ///
    /// # Errors
    /// Those of [`Int8Matrix::quantize`].
    pub fn quantize(self, blocks: Int8Blocks) -> Result<Self, WeightError> {
        let inputs = self.input_size();
        self.quantize_in(blocks.sizes(inputs))
    }

    /// The same in blocks of `[outputs, inputs]`.
    pub(crate) fn quantize_in(self, blocks: [usize; 2]) -> Result<Self, WeightError> {
        let matrix = Int8Matrix::quantize_in(self.input_output().transpose(), blocks)?;
        Ok(Self { matrix: Matrix::Int8(matrix), ..self })
    }

    /// The same, rounding the input, or not. Default: never.
    ///
    /// | matrix | 14 bits (`true`) | 8 bits | [bf16](ActivationRounding::Bf16) |
    /// | --- | --- | --- | --- |
    /// | int8 | a step is the largest magnitude of a token over 8191 | over 127 | not rounded |
    /// | blocks of integers | the largest magnitude of 32 features of a token over 32767 | over 127 | not rounded |
    /// | bf16, f16 | not rounded | not rounded | each feature is off by at most a 512th of itself |
    /// | f32 | not rounded | not rounded | not rounded |
    ///
    /// **Bits:** a rounded input consists of integers times a step, and the product is one of integers (dynamic quantisation). A result is off by at
    /// most half a step times the magnitude of its weight, summed over the features. That is much for a token with a few features far larger than
    /// the others, in 8 bits above all, and less for blocks, whose steps follow the 32 neighbours. Only the CPU kernels round, with AVX2 or NEON
    /// (blocks: only with AVX2, FMA and F16C), because it is faster there. They round up to eight tokens next to blocks in any case. CubeCL, the
    /// reference and other processors multiply the floats.
    ///
    /// **bf16:** to nearest, as PyTorch has tensors of bf16. The CPU kernels and the reference round, whatever the shape of the input; GPU kernels do
    /// not. Magnitudes above the largest bf16, 3.39e38, become infinite. No gradient passes a rounded input.
    ///
    /// ```
    /// # use burn::tensor::DType;
    /// # use burn_deepspeed::{InputBits, weight::{Int8Blocks, Orientation, Weight}};
    /// # use burn_ndarray::NdArray;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let weight = Weight::<NdArray>::init(64, 32, true, Orientation::OutputInput, DType::F32, &Default::default());
    /// let weight = weight.quantize(Int8Blocks::PerOutput)?.with_rounded_input(InputBits::Eight);
    /// assert_eq!(weight.input_rounding().bits(), Some(InputBits::Eight));
    /// # Ok(()) }
    /// ```
    pub fn with_rounded_input(self, rounding: impl Into<ActivationRounding>) -> Self {
        Self { rounding: rounding.into(), ..self }
    }

    /// Whether the input may be rounded; see [`with_rounded_input`](Self::with_rounded_input).
    pub fn input_rounding(&self) -> ActivationRounding {
        self.rounding
    }

    /// Whether the input is rounded to bf16: under [`ActivationRounding::Bf16`], if all elements of the matrix are bf16 or f16.
    pub(crate) fn rounds_input_to_bf16(&self) -> bool {
        self.rounding == ActivationRounding::Bf16
            && match &self.matrix {
                Matrix::Dense(matrix) => matches!(matrix.values().dtype(), DType::F16 | DType::BF16),
                Matrix::Int8(_) => false,
                Matrix::Blocks(matrix) => {
                    matrix.formats().parts().all(|part| matches!(part.format, BlockFormat::F16 | BlockFormat::BF16))
                }
            }
    }

    /// The matrix in the form in which it is stored.
    pub fn stored(&self) -> &Matrix<B> {
        &self.matrix
    }

    /// The matrix, if it is int8.
    pub fn int8(&self) -> Option<&Int8Matrix<B>> {
        match &self.matrix {
            Matrix::Int8(matrix) => Some(matrix),
            Matrix::Dense(_) | Matrix::Blocks(_) => None,
        }
    }

    /// The matrix, if it is in blocks.
    pub fn blocks(&self) -> Option<&BlockMatrix<B>> {
        match &self.matrix {
            Matrix::Blocks(matrix) => Some(matrix),
            Matrix::Dense(_) | Matrix::Int8(_) => None,
        }
    }

    /// Whether the matrix is dense.
    pub fn is_dense(&self) -> bool {
        matches!(self.matrix, Matrix::Dense(_))
    }

    /// The device of the parameters, whether or not they are allocated yet.
    pub fn device(&self) -> B::Device {
        match &self.matrix {
            Matrix::Dense(matrix) => matrix.device(),
            Matrix::Int8(matrix) => matrix.device(),
            Matrix::Blocks(matrix) => matrix.device(),
        }
    }

    fn features(&self) -> [usize; 2] {
        match &self.matrix {
            Matrix::Dense(matrix) => matrix.features(),
            Matrix::Int8(matrix) => {
                let [outputs, inputs] = matrix.shape();
                [inputs, outputs]
            }
            Matrix::Blocks(matrix) => {
                let [outputs, inputs] = matrix.shape();
                [inputs, outputs]
            }
        }
    }

    /// Number of input features.
    pub fn input_size(&self) -> usize {
        self.features()[0]
    }

    /// Number of output features.
    pub fn output_size(&self) -> usize {
        self.features()[1]
    }

    /// The element type of a dense matrix; for int8 and blocks, that of its products.
    pub fn dtype(&self) -> DType {
        match &self.matrix {
            Matrix::Dense(matrix) => matrix.values().dtype(),
            Matrix::Int8(matrix) => matrix.dtype(),
            Matrix::Blocks(matrix) => matrix.dtype(),
        }
    }

    /// The matrix as it is stored, see [`orientation`](Self::orientation); int8 and blocks become dense.
    pub fn matrix(&self) -> Tensor<B, 2> {
        match &self.matrix {
            Matrix::Dense(matrix) => matrix.values(),
            Matrix::Int8(matrix) => matrix.dense(),
            Matrix::Blocks(matrix) => matrix.dense(),
        }
    }

    /// The matrix in parts of its outputs, each `[in, part]` with elements of `dtype`. A quantised matrix is never dense as a
    /// whole.
    pub(crate) fn parts(&self, dtype: DType) -> impl Iterator<Item = Tensor<B, 2>> {
        let outputs = self.output_size();
        let most = match &self.matrix {
            Matrix::Dense(_) => outputs,
            Matrix::Int8(_) | Matrix::Blocks(_) => DENSE_OUTPUTS.min(outputs),
        };
        (0..outputs.max(1)).step_by(most.max(1)).map(move |start| {
            let part = match &self.matrix {
                Matrix::Dense(_) => self.input_output(),
                Matrix::Int8(matrix) => matrix.dense_outputs(start, most.min(outputs - start)).transpose(),
                Matrix::Blocks(matrix) => matrix.dense_outputs(start, most.min(outputs - start)).transpose(),
            };
            part.cast(dtype)
        })
    }

    /// The matrix as `[in, out]`, whichever way it is stored.
    pub fn input_output(&self) -> Tensor<B, 2> {
        match self.orientation() {
            Orientation::InputOutput => self.matrix(),
            Orientation::OutputInput => self.matrix().transpose(),
        }
    }

    /// The bias, `[out]`.
    pub fn bias(&self) -> Option<Tensor<B, 1>> {
        self.bias.as_ref().map(Param::val)
    }

    /// Whether there is a bias.
    pub fn has_bias(&self) -> bool {
        self.bias.is_some()
    }

    /// How the matrix is stored. int8 and blocks are always `[out, in]`.
    pub fn orientation(&self) -> Orientation {
        match &self.matrix {
            Matrix::Dense(matrix) => matrix.orientation(),
            Matrix::Int8(_) | Matrix::Blocks(_) => Orientation::OutputInput,
        }
    }

    /// The weights of some outputs, in this order, `[outputs, in]`: rows of an embedding. They have the element type of
    /// [`dtype`](Self::dtype).
    ///
    /// # Panics
    /// If there is no such output.
    pub fn weights_of(&self, outputs: &[usize]) -> Tensor<B, 2> {
        if outputs.is_empty() {
            return Tensor::zeros([0, self.input_size()], (&self.device(), self.dtype()));
        }
        let cat =
            |row: &dyn Fn(usize) -> Tensor<B, 2>| Tensor::cat(outputs.iter().map(|output| row(*output)).collect(), 0);
        let rows = match &self.matrix {
            Matrix::Dense(matrix) => cat(&|output| matrix.outputs(output, 1).output_input()),
            Matrix::Int8(matrix) => cat(&|output| matrix.dense_outputs(output, 1)),
            Matrix::Blocks(matrix) => matrix.dense_rows(outputs),
        };
        rows.cast(self.dtype())
    }

    /// The outputs `start..start + len` as a separate projection.
    pub fn outputs(&self, start: usize, len: usize) -> Self {
        let matrix = match &self.matrix {
            Matrix::Dense(matrix) => Matrix::Dense(matrix.outputs(start, len)),
            Matrix::Int8(matrix) => Matrix::Int8(matrix.outputs(start, len)),
            Matrix::Blocks(matrix) => Matrix::Blocks(matrix.outputs(start, len)),
        };
        let bias = self.bias().map(|bias| Param::initialized(ParamId::new(), bias.narrow(0, start, len)));
        Self { matrix, bias, rounding: self.rounding }
    }
}

fn zeros<B: Backend>(output: usize, bias: bool, dtype: DType, device: &B::Device) -> Option<Param<Tensor<B, 1>>> {
    bias.then(|| lazy([output], dtype, device, move |device| Tensor::zeros([output], device)))
}
