//! A float matrix, and how it is stored.

use std::fmt;

use burn::module::{
    AutodiffModule, Content, Devices, HasAutodiffModule, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper,
    ModuleVisitor, Param, ParamId,
};
use burn::record::{PrecisionSettings, Record};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Distribution, Tensor};
use burn_deepspeed_core::layout::Orientation;
use serde::{Deserialize, Serialize};

use super::param::{INITIAL_DEVIATION, given, lazy};
use crate::error::check_shape;

/// The name of the type that visitors see, as of derived modules.
const CONTAINER: &str = "Struct:DenseMatrix";

/// A float matrix, `[in, out]` or `[out, in]`.
///
/// Its record says which, so a module of either orientation can load it: the matrix is transposed if theirs differ.
#[derive(Debug, Clone)]
pub struct DenseMatrix<B: Backend> {
    values: Param<Tensor<B, 2>>,
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
        features(self.values.lazy_shape().dims(), self.orientation)
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

/// Input and output features of a matrix of this shape.
fn features([rows, columns]: [usize; 2], orientation: Orientation) -> [usize; 2] {
    // The shape of a shape: both are swapped, or neither.
    orientation.shape(rows, columns)
}

/// The transpose, copied into contiguous memory, so that products read it row by row. Each product would copy a transposed view.
pub fn transposed<B: Backend>(matrix: Tensor<B, 2>) -> Tensor<B, 2> {
    let (device, dtype) = (matrix.device(), matrix.dtype());
    Tensor::from_data(matrix.transpose().into_data(), (&device, dtype))
}

/// The record of a [`DenseMatrix`].
#[derive(Debug, Clone)]
pub struct DenseMatrixRecord<B: Backend> {
    values: Param<Tensor<B, 2>>,
    orientation: Orientation,
}

/// The serialised form of [`DenseMatrixRecord`], with that of its values.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DenseMatrixItem<V> {
    values: V,
    orientation: Orientation,
}

impl<B: Backend> Record<B> for DenseMatrixRecord<B> {
    type Item<S: PrecisionSettings> = DenseMatrixItem<<Param<Tensor<B, 2>> as Record<B>>::Item<S>>;

    fn into_item<S: PrecisionSettings>(self) -> Self::Item<S> {
        DenseMatrixItem { values: Record::into_item::<S>(self.values), orientation: self.orientation }
    }

    fn from_item<S: PrecisionSettings>(item: Self::Item<S>, device: &B::Device) -> Self {
        Self { values: Record::from_item::<S>(item.values, device), orientation: item.orientation }
    }
}

impl<B: Backend> Module<B> for DenseMatrix<B> {
    type Record = DenseMatrixRecord<B>;

    fn collect_devices(&self, devices: Devices<B>) -> Devices<B> {
        self.values.collect_devices(devices)
    }

    fn fork(self, device: &B::Device) -> Self {
        Self { values: self.values.fork(device), ..self }
    }

    fn to_device(self, device: &B::Device) -> Self {
        Self { values: Module::to_device(self.values, device), ..self }
    }

    fn visit<V: ModuleVisitor<B>>(&self, visitor: &mut V) {
        visitor.enter_module("values", CONTAINER);
        Module::visit(&self.values, visitor);
        visitor.exit_module("values", CONTAINER);
    }

    fn map<M: ModuleMapper<B>>(self, mapper: &mut M) -> Self {
        mapper.enter_module("values", CONTAINER);
        let values = Module::map(self.values, mapper);
        mapper.exit_module("values", CONTAINER);
        Self { values, ..self }
    }

    fn load_record(self, record: Self::Record) -> Self {
        let DenseMatrixRecord { values, orientation } = record;
        let recorded = features(values.lazy_shape().dims(), orientation);
        check_shape("load_record", "matrix of the record, as [in, out]", &self.features(), &recorded);
        let values = match orientation == self.orientation {
            true => values,
            false => Param::initialized(values.id, transposed(values.val())),
        };
        Self { values: self.values.load_record(values), ..self }
    }

    fn into_record(self) -> Self::Record {
        DenseMatrixRecord { values: self.values.into_record(), orientation: self.orientation }
    }
}

impl<B: AutodiffBackend> AutodiffModule<B> for DenseMatrix<B> {
    type InnerModule = DenseMatrix<B::InnerBackend>;

    fn valid(&self) -> Self::InnerModule {
        DenseMatrix { values: self.values.valid(), orientation: self.orientation }
    }

    fn from_inner(module: Self::InnerModule) -> Self {
        Self { values: Param::from_inner(module.values), orientation: module.orientation }
    }
}

impl<B: AutodiffBackend> HasAutodiffModule<B> for DenseMatrix<B::InnerBackend> {
    type TrainModule = DenseMatrix<B>;
}

impl<B: Backend> ModuleDisplayDefault for DenseMatrix<B> {
    fn content(&self, content: Content) -> Option<Content> {
        let content = content.set_top_level_type("DenseMatrix").add("values", &self.values);
        content.add_debug_attribute("orientation", &self.orientation).optional()
    }
}

impl<B: Backend> ModuleDisplay for DenseMatrix<B> {}

impl<B: Backend> fmt::Display for DenseMatrix<B> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&ModuleDisplay::format(self, Default::default()))
    }
}
