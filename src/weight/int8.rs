//! An int8 matrix with scales, a quarter of the size of f32 in memory and on disk.

use std::num::NonZeroUsize;

use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, FloatDType, Int, Tensor, TensorData};
use burn_deepspeed_core::int8::LARGEST;

use super::elements::Elements;
use super::param::{INITIAL_DEVIATION, given, lazy};
use super::rows;
use crate::element::require_int8;
use crate::error::{ConfigError, WeightError};

/// The range of a fresh matrix in standard deviations. Elements outside it, one in 16,000, are clamped.
const SPAN: f64 = 4.0;

/// Which weights share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Int8Blocks {
    /// All weights of one output feature.
    #[default]
    PerOutput,
    /// All weights of this number of consecutive output features, as in DeepSpeed's groups.
    Outputs(NonZeroUsize),
    /// This number of consecutive weights of one output feature. Finer than one scale per output, with more scales to read.
    Inputs(NonZeroUsize),
}

impl Int8Blocks {
    /// Outputs and inputs of a block, in a matrix with `inputs` inputs.
    pub(super) fn sizes(self, inputs: usize) -> [usize; 2] {
        match self {
            Self::PerOutput => [1, inputs.max(1)],
            Self::Outputs(outputs) => [outputs.get(), inputs.max(1)],
            Self::Inputs(inputs) => [1, inputs.get()],
        }
    }
}

/// A matrix `[out, in]` of integers from -127 to 127, each times the scale of its block. A matrix from a checkpoint may
/// contain -128.
#[derive(Module, Debug)]
pub struct Int8Matrix<B: Backend> {
    /// The integers, `[out, in]`, with the outputs and inputs of a block.
    elements: Elements<B, 2, [usize; 2]>,
    scales: Param<Tensor<B, 2>>,
    #[module(skip)]
    dtype: DType,
}

impl<B: Backend> Int8Matrix<B> {
    /// Quantises a dense matrix, `[out, in]`. A scale is the largest magnitude of its block over 127; elements are rounded to
    /// the nearest integer, ties to even. So no element is off by more than half a scale.
    ///
    /// # Errors
    /// [`WeightError::NotFinite`]; [`ConfigError::UnsupportedDataType`] if the backend has no int8 arithmetic.
    pub fn quantize(matrix: Tensor<B, 2>, blocks: Int8Blocks) -> Result<Self, WeightError> {
        let [_, inputs] = matrix.dims();
        Self::quantize_in(matrix, blocks.sizes(inputs))
    }

    pub(super) fn quantize_in(matrix: Tensor<B, 2>, own: [usize; 2]) -> Result<Self, WeightError> {
        let ([outputs, inputs], dtype, device) = (matrix.dims(), matrix.dtype(), matrix.device());
        require_int8::<B>(&device)?;
        let values = rows::finite(matrix)?;
        let across = inputs.div_ceil(own[1]);
        let mut scales = vec![0.0f32; outputs.div_ceil(own[0]) * across];
        for (output, row) in values.chunks(inputs.max(1)).enumerate() {
            let scales = &mut scales[output / own[0] * across..][..across];
            for (scale, block) in scales.iter_mut().zip(row.chunks(own[1])) {
                *scale = block.iter().fold(*scale, |scale, value| scale.max(value.abs() / LARGEST));
            }
        }
        let mut elements = Vec::with_capacity(values.len());
        for (output, row) in values.chunks(inputs.max(1)).enumerate() {
            let scales = &scales[output / own[0] * across..][..across];
            for (scale, block) in scales.iter().zip(row.chunks(own[1])) {
                let nearest = |value: &f32| match *scale {
                    0.0 => 0, // the value is 0 too
                    scale => (value / scale).round_ties_even().clamp(-LARGEST, LARGEST) as i8,
                };
                elements.extend(block.iter().map(nearest));
            }
        }
        Ok(Self::from_blocks(elements, scales, [outputs, inputs], own, dtype, &device)?)
    }

    /// A matrix of this shape, `[out, in]`, from its elements and the scales of its blocks, both row by row. Products and the
    /// dequantised matrix have elements of `dtype`.
    ///
    /// # Errors
    /// [`ConfigError::UnsupportedDataType`] if the backend has no int8 arithmetic.
    pub(crate) fn from_blocks(
        elements: Vec<i8>,
        scales: Vec<f32>,
        shape: [usize; 2],
        blocks: [usize; 2],
        dtype: DType,
        device: &B::Device,
    ) -> Result<Self, ConfigError> {
        require_int8::<B>(device)?;
        let grid = [0, 1].map(|axis: usize| shape[axis].div_ceil(blocks[axis]));
        let elements = Tensor::from_data(TensorData::new(elements, shape), (device, DType::I8));
        let scales = Tensor::from_data(TensorData::new(scales, grid), (device, DType::F32));
        Ok(Self::new(elements, scales, blocks, dtype))
    }

    /// A fresh matrix of this shape, distributed like a dense one, with equal scales. Memory is allocated when it is first
    /// read, and never for a dense matrix.
    pub(super) fn init(shape: [usize; 2], blocks: Int8Blocks, dtype: DType, device: &B::Device) -> Self {
        let blocks = blocks.sizes(shape[1]);
        let grid = [0, 1].map(|axis: usize| shape[axis].div_ceil(blocks[axis]));
        let elements = Elements::lazy(shape, device, blocks, move |device| drawn(shape, device));
        let scale = SPAN * INITIAL_DEVIATION / f64::from(LARGEST);
        let full = move |device: &B::Device| Tensor::full(grid, scale, (device, DType::F32));
        let scales = of_any_grid(lazy(grid, DType::F32, device, full));
        Self { elements, scales, dtype }
    }

    fn new(elements: Tensor<B, 2, Int>, scales: Tensor<B, 2>, blocks: [usize; 2], dtype: DType) -> Self {
        let elements = Elements::given(elements, blocks);
        Self { elements, scales: of_any_grid(given(scales)), dtype }
    }

    /// The integers, `[out, in]`, of type [`DType::I8`].
    pub fn elements(&self) -> Tensor<B, 2, Int> {
        self.elements.values()
    }

    /// The scales, in f32: output `o` and input `i` have `[o / blocks[0], i / blocks[1]]`.
    pub fn scales(&self) -> Tensor<B, 2> {
        self.scales.val()
    }

    /// Outputs and inputs of a block.
    pub fn blocks(&self) -> [usize; 2] {
        *self.elements.form()
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.elements.shape()
    }

    /// Bytes of elements and scales.
    pub fn bytes(&self) -> usize {
        let [outputs, inputs] = self.shape();
        outputs * inputs + self.scales.lazy_shape().num_elements() * size_of::<f32>()
    }

    pub(super) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(super) fn device(&self) -> B::Device {
        self.elements.device()
    }

    /// The dequantised matrix, `[out, in]`, in its element type before quantisation.
    pub fn dense(&self) -> Tensor<B, 2> {
        self.dense_outputs(0, self.shape()[0]).cast(self.dtype)
    }

    /// The outputs `start..start + len` of the dequantised matrix, `[len, in]`, in f32.
    pub(super) fn dense_outputs(&self, start: usize, len: usize) -> Tensor<B, 2> {
        let ([_, inputs], [_, wide]) = (self.shape(), self.blocks());
        let mut scales = self.scales_by_output(start, len);
        let [_, across] = scales.dims();
        if across > 1 {
            scales = scales.reshape([len, across, 1]).expand([len, across, wide]).reshape([len, across * wide]);
            scales = scales.narrow(1, 0, inputs);
        }
        self.elements().narrow(0, start, len).float().cast(FloatDType::F32) * scales
    }

    /// The outputs `start..start + len`.
    pub(super) fn outputs(&self, start: usize, len: usize) -> Self {
        let blocks = [1, self.blocks()[1]];
        Self::new(self.elements().narrow(0, start, len), self.scales_by_output(start, len), blocks, self.dtype)
    }

    /// The scales of the outputs `start..start + len`, one row per output.
    fn scales_by_output(&self, start: usize, len: usize) -> Tensor<B, 2> {
        let ([tall, _], [_, across]) = (self.blocks(), self.scales.dims());
        let first = start / tall;
        let down = (start + len).div_ceil(tall) - first;
        let scales = self.scales().narrow(0, first, down).reshape([down, 1, across]).expand([down, tall, across]);
        scales.reshape([down * tall, across]).narrow(0, start - first * tall, len)
    }
}

/// Normally distributed elements, drawn in batches of rows.
fn drawn<B: Backend>([outputs, inputs]: [usize; 2], device: &B::Device) -> Tensor<B, 2, Int> {
    let mut elements = Vec::with_capacity(outputs * inputs);
    rows::draw::<B>([outputs, inputs], f64::from(LARGEST) / SPAN, device, |values| {
        elements.extend(values.into_iter().map(|value| value.round().clamp(-LARGEST, LARGEST) as i8));
    });
    Tensor::from_data(TensorData::new(elements, [outputs, inputs]), (device, DType::I8))
}

/// Scales, whose shape comes from the record when one is loaded, as the blocks do.
fn of_any_grid<B: Backend>(scales: Param<Tensor<B, 2>>) -> Param<Tensor<B, 2>> {
    scales.load_mapper(|loaded: Tensor<B, 2>| loaded.cast(FloatDType::F32)).set_require_grad(false)
}
