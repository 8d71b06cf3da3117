//! A float matrix, and how it is stored.

use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Distribution, Tensor, backend::Backend};
use burn_deepspeed_core::layout::Orientation;

use super::param::{INITIAL_DEVIATION, given, lazy};

/// A float matrix, `[in, out]` or `[out, in]`.
#[derive(Module, Debug)]
pub struct DenseMatrix<B: Backend> {
    values: Param<Tensor<B, 2>>,
    #[module(skip)]
    orientation: Orientation,
}

impl<B: Backend> DenseMatrix<B> {
    /// A normally distributed matrix. Its memory is allocated when it is first read.
    pub(super) fn init(
        input: usize,
        output: usize,
        orientation: Orientation,
        dtype: DType,
        device: &B::Device,
    ) -> Self {
        let shape = orientation.shape(input, output);
        let normal = Distribution::Normal(0.0, INITIAL_DEVIATION);
        let draw = move |device: &B::Device| Tensor::random(shape, normal, (device, DType::F32));
        Self { values: lazy(shape, dtype, device, draw), orientation }
    }

    pub(super) fn new(values: Tensor<B, 2>, orientation: Orientation) -> Self {
        Self { values: given(values), orientation }
    }

    /// The matrix as it is stored; see [`orientation`](Self::orientation).
    pub fn values(&self) -> Tensor<B, 2> {
        self.values.val()
    }

    /// How the matrix is stored.
    pub fn orientation(&self) -> Orientation {
        self.orientation
    }

    /// Input and output features.
    pub(super) fn features(&self) -> [usize; 2] {
        let [rows, columns] = self.values.lazy_shape().dims();
        match self.orientation {
            Orientation::InputOutput => [rows, columns],
            Orientation::OutputInput => [columns, rows],
        }
    }

    /// The matrix as `[out, in]`, whichever way it is stored.
    pub(crate) fn output_input(&self) -> Tensor<B, 2> {
        match self.orientation {
            Orientation::InputOutput => self.values().transpose(),
            Orientation::OutputInput => self.values(),
        }
    }

    pub(super) fn device(&self) -> B::Device {
        self.values.lazy_device()
    }

    /// The outputs `start..start + len`.
    pub(super) fn outputs(&self, start: usize, len: usize) -> Self {
        let dim = match self.orientation {
            Orientation::InputOutput => 1,
            Orientation::OutputInput => 0,
        };
        // Not `Param::from_tensor`: it requires gradients, and a part of a tracked matrix refuses that.
        let part = Param::initialized(ParamId::new(), self.values().narrow(dim, start, len));
        Self { values: part, orientation: self.orientation }
    }
}

/// The transpose, copied into contiguous memory, so that products read it row by row. Each product would copy a transposed view.
pub fn transposed<B: Backend>(matrix: Tensor<B, 2>) -> Tensor<B, 2> {
    let (device, dtype) = (matrix.device(), matrix.dtype());
    Tensor::from_data(matrix.transpose().into_data(), (&device, dtype))
}
