//! A few rows through a matrix: norm, product and bias in one launch.

mod activations;
mod columns;
mod int8;
mod rows;

use cubecl::prelude::*;
use cubecl::std::tensor::TensorHandle;

use super::machine::{
    Machine, Unsupported, array, axes, check_extent, check_rows, check_same_type, check_shape, check_types,
};
use activations::Exchange;
pub use int8::Int8;

/// Most rows of the input: each row of sums stays in registers.
pub const MOST_ROWS: usize = 8;
/// Bytes of shared memory that the rows of a cube's tile may take: three cubes stay resident on a multiprocessor.
const TILE_BYTES: usize = 32 * 1024;
/// Vectors of the matrix that a unit has in flight for one or two rows.
const LOADS: usize = 8;

/// `norm(input) · matrix + bias`, accumulated in f32 and rounded once.
///
/// Rows may have any stride; the elements of a row lie one behind the other. Input, matrix, output and normed have the
/// same element type, except for a matrix of int8; bias, gamma and beta each their own.
#[derive(Debug, Clone, Copy)]
pub struct Gemv<'a, R: Runtime> {
    /// `[rows, in]`, with up to [`MOST_ROWS`] rows.
    pub input: &'a TensorHandle<R>,
    /// The norm in front of the product. Its result is not rounded.
    pub norm: Option<Norm<'a, R>>,
    /// What the rows are multiplied with.
    pub matrix: Matrix<'a, R>,
    /// `[out]`.
    pub bias: Option<&'a TensorHandle<R>>,
    /// `[rows, at least offset + out]`; the columns from `offset` are written, and no others.
    pub output: &'a TensorHandle<R>,
    /// The first column of the output, so that several launches fill it.
    pub offset: usize,
    /// `[rows, in]`: takes the normalised input, rounded.
    pub normed: Option<&'a TensorHandle<R>>,
}

/// The weights.
#[derive(Debug, Clone, Copy)]
pub enum Matrix<'a, R: Runtime> {
    /// Floats, `[out, in]` or `[in, out]`, as the orientation says.
    Dense(&'a TensorHandle<R>, Orientation),
    /// Whole numbers of one byte with scales, `[out, in]`.
    Int8(Int8<'a, R>),
}

impl<'a, R: Runtime> Matrix<'a, R> {
    fn elements(&self) -> &'a TensorHandle<R> {
        match self {
            Self::Dense(elements, _) => elements,
            Self::Int8(matrix) => matrix.elements,
        }
    }
}

/// How a matrix lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orientation {
    /// `[in, out]`: neighbouring outputs lie one behind the other.
    InputOutput,
    /// `[out, in]`: the weights of an output lie one behind the other.
    OutputInput,
}

/// A norm over the features of a row: `gamma · (x - mean) / sqrt(variance + epsilon) + beta`.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a, R: Runtime> {
    /// What is normalised.
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
    /// The mean is taken off first.
    LayerNorm,
    /// The mean counts as 0.
    RmsNorm,
}

/// Multiplies: one launch, on the kernel for the orientation.
///
/// # Errors
/// [`Unsupported`]; nothing was launched.
pub fn launch<R: Runtime>(
    client: &ComputeClient<R>,
    machine: &Machine,
    arguments: Gemv<'_, R>,
) -> Result<(), Unsupported> {
    let extents = arguments.check(client)?;
    if extents.rows == 0 || extents.outputs == 0 {
        return Ok(());
    }
    match arguments.matrix {
        Matrix::Dense(_, Orientation::InputOutput) => columns::launch(client, machine, &arguments, extents),
        _ => rows::launch(client, machine, &arguments, extents),
    }
}

/// The sizes of a problem, in elements.
#[derive(Debug, Clone, Copy)]
struct Extents {
    rows: usize,
    inputs: usize,
    outputs: usize,
}

impl<R: Runtime> Gemv<'_, R> {
    /// The sizes, once shapes, layouts and element types are known to suit the kernels.
    fn check(&self, client: &ComputeClient<R>) -> Result<Extents, Unsupported> {
        let Self { input, bias, output, normed, .. } = *self;
        let matrix = self.matrix.elements();
        let (gamma, beta) = (self.gamma(), self.beta());
        let [rows, inputs] = axes("input", input)?;
        if rows > MOST_ROWS {
            return Err(Unsupported::Rows { rows, limit: MOST_ROWS });
        }
        // Without any there is nothing that could be read ahead.
        check_shape("input", input, [rows, inputs.max(1)])?;
        let [first, second] = axes("matrix", matrix)?;
        let (outputs, shape) = match self.matrix {
            Matrix::Dense(_, Orientation::InputOutput) => (second, [inputs, second]),
            _ => (first, [first, inputs]),
        };
        check_shape("matrix", matrix, shape)?;
        let [_, columns] = axes("output", output)?;
        check_shape("output", output, [rows, columns.max(self.offset + outputs)])?;
        if let Some(normed) = normed {
            check_shape("normed", normed, [rows, inputs])?;
        }
        for (name, vector, size) in [("bias", bias, outputs), ("gamma", gamma, inputs), ("beta", beta, inputs)] {
            vector.map_or(Ok(()), |vector| check_shape(name, vector, [size]))?;
        }
        let dense = match &self.matrix {
            Matrix::Dense(matrix, _) => Some(*matrix),
            Matrix::Int8(matrix) => {
                matrix.check(outputs, inputs)?;
                None
            }
        };
        let alike = [("input", Some(input)), ("matrix", dense), ("output", Some(output)), ("normed", normed)];
        let vectors = [("bias", bias), ("gamma", gamma), ("beta", beta)];
        check_same_type(input.dtype, &alike)?;
        for (name, tensor) in alike.into_iter().chain(vectors) {
            if let Some(tensor) = tensor {
                check_rows(&[(name, tensor)])?;
                check_extent(&[tensor])?;
                check_types(client, &[tensor.dtype])?;
            }
        }
        Ok(Extents { rows, inputs, outputs })
    }

    fn gamma(&self) -> Option<&TensorHandle<R>> {
        self.norm.as_ref().map(|norm| norm.gamma)
    }

    fn beta(&self) -> Option<&TensorHandle<R>> {
        self.norm.as_ref().and_then(|norm| norm.beta)
    }

    /// Element types of gamma, beta and bias; f32 where there is none.
    fn parameter_types(&self) -> [StorageType; 3] {
        let float = f32::as_type_native_unchecked().storage_type();
        [self.gamma(), self.beta(), self.bias].map(|tensor| tensor.map_or(float, |tensor| tensor.dtype))
    }

    /// The input and whatever of its kind the kernel reads or writes in the same vectors.
    fn activations(&self) -> Vec<&TensorHandle<R>> {
        [self.input].into_iter().chain(self.normed).collect()
    }

    fn normed_array<E: CubePrimitive>(&self) -> ComptimeOptionArgs<Array<E>, R> {
        self.normed.map(array).into()
    }

    fn bias_array<E: CubePrimitive>(&self) -> ComptimeOptionArgs<Array<E>, R> {
        self.bias.map(array).into()
    }

    /// What the kernel needs beside the arrays; `vector` weights of a row of the matrix are read together.
    fn sizes(&self, extents: Extents, vector: usize) -> SizesLaunch<R> {
        SizesLaunch::new(
            extents.outputs as u32,
            (self.matrix.elements().strides()[0] / vector) as u32,
            self.output.strides()[0] as u32,
            self.offset as u32,
        )
    }
}

/// Whether this many cubes keep the device busy: three for every two multiprocessors.
fn fills(machine: &Machine, cubes: usize) -> bool {
    cubes * 2 >= machine.processors as usize * 3
}

/// Vectors of the matrix that a unit has in flight: fewer where the sums of many rows fill the registers.
fn loads(rows: usize) -> usize {
    if rows > 2 { LOADS / 2 } else { LOADS }
}

/// Units that share a plane, or stand in for one: without plane operations, as few as read a line of memory.
fn lanes(machine: &Machine, units: u32) -> u32 {
    if machine.plane_operations { machine.plane_size } else { units.min(8) }
}

/// Vectors of a row that a tile holds: as many as fit, in whole steps of the cube, but no more than there are.
fn tile_length(
    machine: &Machine,
    exchange: Exchange,
    others: usize,
    vectors: usize,
    step: usize,
    vector: usize,
) -> Result<usize, Unsupported> {
    let others = others + exchange.bytes();
    let limit = machine.shared_bytes;
    let step_bytes = step * vector * exchange.rows as usize * size_of::<f32>();
    let steps = TILE_BYTES.min(limit.saturating_sub(others)) / step_bytes;
    match steps {
        0 => Err(Unsupported::SharedMemory { needed: others + step_bytes, limit }),
        steps => Ok(steps.min(vectors.div_ceil(step).max(1)) * step),
    }
}

/// Scalar sizes of matrix and output.
#[derive(CubeType, CubeLaunch)]
struct Sizes {
    outputs: u32,
    /// Stride of the first axis of the matrix, in vectors.
    matrix: u32,
    /// Stride of the rows of the output, in elements.
    output: u32,
    /// First column of the output.
    offset: u32,
}

/// Adds the bias and rounds.
#[cube]
fn write<F: Float, B: Float>(
    sum: f32,
    row: u32,
    at: u32,
    bias: &ComptimeOption<Array<B>>,
    output: &mut Array<F>,
    sizes: &Sizes,
) {
    let mut result = sum;
    #[comptime]
    match bias {
        ComptimeOption::Some(bias) => {
            result += f32::cast_from(bias[at as usize]);
        }
        ComptimeOption::None => {}
    }
    output[(row * sizes.output + sizes.offset + at) as usize] = F::cast_from(result);
}
