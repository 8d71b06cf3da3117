//! Elements of 8 bits, and what the host knows of them.

use std::fmt::Debug;

use burn::module::{
    AutodiffModule, Content, Devices, HasAutodiffModule, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper,
    ModuleVisitor, Param, ParamId,
};
use burn::record::{PrecisionSettings, Record};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_deepspeed_core::block::RowFormats;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::check_shape;
use crate::pages::ints_use_huge_pages;

/// What the host knows of elements: how they make a matrix.
pub trait Form: Debug + Clone + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Panics unless elements of a record make the same matrix as those of the module.
    fn check(own: (&Self, &[usize]), recorded: (&Self, &[usize]));
}

/// Outputs and inputs of a block that shares a scale.
impl Form for [usize; 2] {
    fn check((_, own): (&Self, &[usize]), (_, recorded): (&Self, &[usize])) {
        check_shape("load_record", "parameter of the record", own, recorded);
    }
}

/// A record may have other formats than the module.
impl Form for RowFormats {
    fn check((own, _): (&Self, &[usize]), (recorded, bytes): (&Self, &[usize])) {
        let shape = |formats: &Self| [formats.outputs(), formats.inputs()];
        check_shape("load_record", "parameter of the record", &shape(own), &shape(recorded));
        check_shape("load_record", "blocks of the record", &[recorded.bytes_in_memory().unwrap_or(usize::MAX)], bytes);
    }
}

/// Elements of 8 bits. They are a separate module because the recorders of Burn 0.21 widen integers to 64 bits; this record
/// keeps the bytes.
#[derive(Debug, Clone)]
pub(super) struct Elements<B: Backend, const D: usize, F> {
    values: Param<Tensor<B, D, Int>>,
    form: F,
}

impl<B: Backend, const D: usize, F> Elements<B, D, F> {
    /// Elements of these values.
    pub fn given(values: Tensor<B, D, Int>, form: F) -> Self {
        ints_use_huge_pages(&values);
        Self { values: Param::initialized(ParamId::new(), values), form }
    }

    /// Elements that are made when they are first read.
    pub fn lazy(
        shape: [usize; D],
        device: &B::Device,
        form: F,
        init: impl Fn(&B::Device) -> Tensor<B, D, Int> + Send + Sync + 'static,
    ) -> Self {
        let ready = move |device: &B::Device, _| {
            let values = init(device);
            ints_use_huge_pages(&values);
            values
        };
        Self { values: Param::uninitialized(ParamId::new(), ready, device.clone(), false, shape.into()), form }
    }

    /// A tensor of type [`DType::I8`].
    pub fn values(&self) -> Tensor<B, D, Int> {
        self.values.val()
    }

    pub fn form(&self) -> &F {
        &self.form
    }

    /// The shape of the tensor, whether or not it is allocated yet.
    pub fn shape(&self) -> [usize; D] {
        self.values.lazy_shape().dims()
    }

    pub fn device(&self) -> B::Device {
        self.values.lazy_device()
    }
}

/// The record of [`Elements`].
#[derive(Debug, Clone)]
pub struct ElementsRecord<B: Backend, const D: usize, F> {
    values: Param<Tensor<B, D, Int>>,
    form: F,
}

/// The serialised form of [`ElementsRecord`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ElementsItem<F> {
    id: String,
    data: TensorData,
    #[serde(rename = "blocks")]
    form: F,
}

impl<B: Backend, const D: usize, F: Form> Record<B> for ElementsRecord<B, D, F> {
    type Item<S: PrecisionSettings> = ElementsItem<F>;

    fn into_item<S: PrecisionSettings>(self) -> Self::Item<S> {
        let Self { values, form } = self;
        ElementsItem { id: values.id.serialize(), data: values.val().into_data(), form }
    }

    fn from_item<S: PrecisionSettings>(item: Self::Item<S>, device: &B::Device) -> Self {
        let tensor = Tensor::from_data(item.data, (device, DType::I8));
        Self { values: Param::initialized(ParamId::deserialize(&item.id), tensor), form: item.form }
    }
}

impl<B: Backend, const D: usize, F: Form> Module<B> for Elements<B, D, F> {
    type Record = ElementsRecord<B, D, F>;

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
        Module::visit(&self.values, visitor);
    }

    fn map<M: ModuleMapper<B>>(self, mapper: &mut M) -> Self {
        Self { values: Module::map(self.values, mapper), ..self }
    }

    fn load_record(self, record: Self::Record) -> Self {
        F::check((&self.form, &self.shape()), (&record.form, &record.values.dims()));
        ints_use_huge_pages(&record.values.val());
        Self { values: record.values, form: record.form }
    }

    fn into_record(self) -> Self::Record {
        ElementsRecord { values: self.values, form: self.form }
    }
}

impl<B: AutodiffBackend, const D: usize, F: Form> AutodiffModule<B> for Elements<B, D, F> {
    type InnerModule = Elements<B::InnerBackend, D, F>;

    fn valid(&self) -> Self::InnerModule {
        Elements { values: self.values.valid(), form: self.form.clone() }
    }

    fn from_inner(module: Self::InnerModule) -> Self {
        Self { values: Param::from_inner(module.values), form: module.form }
    }
}

impl<B: AutodiffBackend, const D: usize, F: Form> HasAutodiffModule<B> for Elements<B::InnerBackend, D, F> {
    type TrainModule = Elements<B, D, F>;
}

impl<B: Backend, const D: usize, F: Form> ModuleDisplayDefault for Elements<B, D, F> {
    fn content(&self, content: Content) -> Option<Content> {
        self.values.content(content)
    }
}

impl<B: Backend, const D: usize, F: Form> ModuleDisplay for Elements<B, D, F> {}
