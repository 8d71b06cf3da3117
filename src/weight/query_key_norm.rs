//! The weights of the norm of queries and keys.

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, backend::Backend};

use super::param::{given, lazy};
use crate::spec::AttentionSpec;

/// The weights of the norm of queries and keys ([`QkNorm`](crate::QkNorm)) on one rank.
///
/// They are f32, whatever the element type of the module: the norm is computed in f32, and a checkpoint of a half type loses
/// nothing.
#[derive(Module, Debug)]
pub struct QueryKeyNorm<B: Backend> {
    query: Param<Tensor<B, 2>>,
    key: Option<Param<Tensor<B, 2>>>,
}

impl<B: Backend> QueryKeyNorm<B> {
    /// Weights that change nothing: ones, or zeros where 1 is added to them. `None` if the layer has no norm of queries and keys, or
    /// one without weights.
    pub fn init(spec: &AttentionSpec, device: &B::Device) -> Option<Self> {
        let norm = spec.qk_norm?;
        let neutral = if norm.plus_one { 0.0 } else { 1.0 };
        let rows = |heads| norm.weights.rows(heads);
        let weights = |rows| {
            let shape = [rows, spec.head_dim];
            lazy(shape, DType::F32, device, move |device| Tensor::full(shape, neutral, (device, DType::F32)))
        };
        let (query, key) = (rows(spec.heads())?, rows(spec.kv_heads())?);
        Some(Self { query: weights(query), key: spec.kv_source.is_own().then(|| weights(key)) })
    }

    /// These weights.
    ///
    /// # Shapes
    /// - query: `[1, H]` if the heads share them, else `[N, H]`
    /// - key: `[1, H]` if the heads share them, else `[K, H]`; `None` for a layer without keys of its own
    pub fn new(query: Tensor<B, 2>, key: Option<Tensor<B, 2>>) -> Self {
        Self { query: given(query.cast(DType::F32)), key: key.map(|key| given(key.cast(DType::F32))) }
    }

    /// The weights of queries, `[1 or N, H]`.
    pub fn query(&self) -> Tensor<B, 2> {
        self.query.val()
    }

    /// The weights of keys, `[1 or K, H]`; `None` for a layer without keys of its own.
    pub fn key(&self) -> Option<Tensor<B, 2>> {
        self.key.as_ref().map(Param::val)
    }

    /// The shapes of the weights of queries and of keys.
    pub fn shapes(&self) -> ([usize; 2], Option<[usize; 2]>) {
        let shape = |weights: &Param<Tensor<B, 2>>| weights.lazy_shape().dims();
        (shape(&self.query), self.key.as_ref().map(shape))
    }
}
