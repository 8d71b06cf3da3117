//! A matrix in int8 with scales, a quarter of f32 in memory and on disk.

use std::num::NonZeroUsize;

use burn::module::{
    AutodiffModule, Content, Devices, HasAutodiffModule, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper,
    ModuleVisitor, Param, ParamId,
};
use burn::record::{PrecisionSettings, Record};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, FloatDType, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::config::DataType;
use crate::error::{ConfigError, WeightError, check_shape};

/// Largest element: the range is symmetric, so -128 is not used.
const LARGEST: f32 = 127.0;

/// Which weights share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Int8Blocks {
    /// Those of an output feature.
    #[default]
    PerOutput,
    /// Those of so many output features one behind the other: DeepSpeed's groups.
    Outputs(NonZeroUsize),
    /// So many of an output feature, one behind the other: finer than one scale for each, and more to read.
    Inputs(NonZeroUsize),
}

impl Int8Blocks {
    /// Outputs and inputs of a block, in a matrix of so many inputs.
    pub(super) fn sizes(self, inputs: usize) -> [usize; 2] {
        match self {
            Self::PerOutput => [1, inputs.max(1)],
            Self::Outputs(outputs) => [outputs.get(), inputs.max(1)],
            Self::Inputs(inputs) => [1, inputs.get()],
        }
    }
}

/// A matrix `[out, in]` of whole numbers from -127 to 127, each times the scale of its block.
#[derive(Module, Debug)]
pub struct Int8Matrix<B: Backend> {
    elements: Elements<B>,
    scales: Param<Tensor<B, 2>>,
    #[module(skip)]
    blocks: [usize; 2],
    #[module(skip)]
    dtype: DType,
}

impl<B: Backend> Int8Matrix<B> {
    /// The nearest to a dense matrix, `[out, in]`: scales are the largest magnitude of a block over 127, elements are rounded
    /// to the nearest, halves to the even one. So no element is off by more than half a scale.
    ///
    /// # Errors
    /// [`WeightError::NotFinite`]; [`ConfigError::UnsupportedDataType`] where the backend computes with no int8.
    pub fn quantize(matrix: Tensor<B, 2>, blocks: Int8Blocks) -> Result<Self, WeightError> {
        let [_, inputs] = matrix.dims();
        Self::quantize_in(matrix, blocks.sizes(inputs))
    }

    pub(super) fn quantize_in(matrix: Tensor<B, 2>, own: [usize; 2]) -> Result<Self, WeightError> {
        let ([outputs, inputs], dtype, device) = (matrix.dims(), matrix.dtype(), matrix.device());
        if !B::supports_dtype(&device, DType::I8) {
            let remedy = "keep the weights dense, or build with the Cargo feature `vulkan` in place of `wgpu`";
            return Err(
                ConfigError::UnsupportedDataType { backend: B::name(&device), dtype: DataType::Int8, remedy }.into()
            );
        }
        let values: Vec<f32> = matrix.cast(FloatDType::F32).into_data().iter().collect();
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(WeightError::NotFinite { output: at / inputs, input: at % inputs });
        }
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
                    0.0 => 0, // and so is the value
                    scale => (value / scale).round_ties_even().clamp(-LARGEST, LARGEST) as i8,
                };
                elements.extend(block.iter().map(nearest));
            }
        }
        let shape = [outputs.div_ceil(own[0]), across];
        let elements = Tensor::from_data(TensorData::new(elements, [outputs, inputs]), (&device, DType::I8));
        let scales = Tensor::from_data(TensorData::new(scales, shape), (&device, DType::F32));
        Ok(Self::new(elements, scales, own, dtype))
    }

    fn new(elements: Tensor<B, 2, Int>, scales: Tensor<B, 2>, blocks: [usize; 2], dtype: DType) -> Self {
        let elements = Elements(Param::initialized(ParamId::new(), elements));
        Self { elements, scales: super::given(scales).set_require_grad(false), blocks, dtype }
    }

    /// The whole numbers, `[out, in]`, of type [`DType::I8`].
    pub fn elements(&self) -> Tensor<B, 2, Int> {
        self.elements.0.val()
    }

    /// The scales, in f32: output `o` and input `i` have `[o / blocks[0], i / blocks[1]]`.
    pub fn scales(&self) -> Tensor<B, 2> {
        self.scales.val()
    }

    /// Outputs and inputs of a block.
    pub fn blocks(&self) -> [usize; 2] {
        self.blocks
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.elements.0.dims()
    }

    /// Bytes of elements and scales.
    pub fn bytes(&self) -> usize {
        let [outputs, inputs] = self.shape();
        outputs * inputs + self.scales.dims().iter().product::<usize>() * size_of::<f32>()
    }

    pub(super) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(super) fn device(&self) -> B::Device {
        self.elements.0.val().device()
    }

    /// The dense matrix, `[out, in]`, in the element type that it had.
    pub fn dense(&self) -> Tensor<B, 2> {
        let ([outputs, inputs], [tall, wide]) = (self.shape(), self.blocks);
        let [down, across] = self.scales.dims();
        let scales = self.scales().reshape([down, 1, across, 1]).expand([down, tall, across, wide]);
        let scales = scales.reshape([down * tall, across * wide]).slice([0..outputs, 0..inputs]);
        (self.elements().float().cast(FloatDType::F32) * scales).cast(self.dtype)
    }

    /// The outputs `start..start + len`.
    pub(super) fn outputs(&self, start: usize, len: usize) -> Self {
        let [tall, wide] = self.blocks;
        let [down, across] = self.scales.dims();
        let by_output = self.scales().reshape([down, 1, across]).expand([down, tall, across]);
        let scales = by_output.reshape([down * tall, across]).narrow(0, start, len);
        Self::new(self.elements().narrow(0, start, len), scales, [1, wide], self.dtype)
    }
}

/// Elements of int8. The recorders of Burn 0.21 widen whole numbers to 64 bits; the record of these keeps the bytes.
#[derive(Debug, Clone)]
struct Elements<B: Backend>(Param<Tensor<B, 2, Int>>);

/// The record of [`Elements`].
#[derive(Debug, Clone)]
pub struct ElementsRecord<B: Backend>(Param<Tensor<B, 2, Int>>);

/// What is written of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ElementsItem {
    id: String,
    data: TensorData,
}

impl<B: Backend> Record<B> for ElementsRecord<B> {
    type Item<S: PrecisionSettings> = ElementsItem;

    fn into_item<S: PrecisionSettings>(self) -> Self::Item<S> {
        ElementsItem { id: self.0.id.serialize(), data: self.0.val().into_data() }
    }

    fn from_item<S: PrecisionSettings>(item: Self::Item<S>, device: &B::Device) -> Self {
        let tensor = Tensor::from_data(item.data, (device, DType::I8));
        Self(Param::initialized(ParamId::deserialize(&item.id), tensor))
    }
}

impl<B: Backend> Module<B> for Elements<B> {
    type Record = ElementsRecord<B>;

    fn collect_devices(&self, devices: Devices<B>) -> Devices<B> {
        self.0.collect_devices(devices)
    }

    fn fork(self, device: &B::Device) -> Self {
        Self(self.0.fork(device))
    }

    fn to_device(self, device: &B::Device) -> Self {
        Self(Module::to_device(self.0, device))
    }

    fn visit<V: ModuleVisitor<B>>(&self, visitor: &mut V) {
        Module::visit(&self.0, visitor);
    }

    fn map<M: ModuleMapper<B>>(self, mapper: &mut M) -> Self {
        Self(Module::map(self.0, mapper))
    }

    fn load_record(self, record: Self::Record) -> Self {
        check_shape("load_record", "parameter of the record", &self.0.dims(), &record.0.dims());
        Self(record.0)
    }

    fn into_record(self) -> Self::Record {
        ElementsRecord(self.0)
    }
}

impl<B: AutodiffBackend> AutodiffModule<B> for Elements<B> {
    type InnerModule = Elements<B::InnerBackend>;

    fn valid(&self) -> Self::InnerModule {
        Elements(self.0.valid())
    }

    fn from_inner(module: Self::InnerModule) -> Self {
        Self(Param::from_inner(module.0))
    }
}

impl<B: AutodiffBackend> HasAutodiffModule<B> for Elements<B::InnerBackend> {
    type TrainModule = Elements<B>;
}

impl<B: Backend> ModuleDisplayDefault for Elements<B> {
    fn content(&self, content: Content) -> Option<Content> {
        self.0.content(content)
    }
}

impl<B: Backend> ModuleDisplay for Elements<B> {}
