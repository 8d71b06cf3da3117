//! The sinks of a layer.

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, backend::Backend};

use super::param::{given, lazy};
use crate::spec::AttentionSpec;

/// The sinks of the query heads of one rank: a learned score for each, which joins the sum of the softmax and has no value.
///
/// They are f32, whatever the element type of the module: so is the softmax.
#[derive(Module, Debug)]
pub struct Sinks<B: Backend> {
    values: Param<Tensor<B, 1>>,
}

impl<B: Backend> Sinks<B> {
    /// Sinks of 0: each weighs as much as a key with a score of 0. `None` if the layer has none.
    pub fn init(spec: &AttentionSpec, device: &B::Device) -> Option<Self> {
        let shape = [spec.heads()];
        let zeros = move |device: &B::Device| Tensor::zeros(shape, (device, DType::F32));
        spec.sinks.then(|| Self { values: lazy(shape, DType::F32, device, zeros) })
    }

    /// These sinks, `[N]`.
    pub fn new(values: Tensor<B, 1>) -> Self {
        Self { values: given(values.cast(DType::F32)) }
    }

    /// The sinks, `[N]` of f32.
    pub fn values(&self) -> Tensor<B, 1> {
        self.values.val()
    }
}
