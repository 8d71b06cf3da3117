//! The part of a step that one layer reads and writes.

#[cfg(feature = "cubecl")]
use burn::tensor::Int;
use burn::tensor::{DType, Tensor, backend::Backend};

use super::rows::StepRows;
use super::size::TokenSize;
use super::store::LayerStore;
use super::stored::{Assign, Stored, slice_assign};
use super::tables::StepTables;
#[cfg(feature = "cubecl")]
use super::tables::bounds_on_device;
use crate::element::CacheTypes;
use crate::error::{AttentionError, check_shape};
#[cfg(feature = "cubecl")]
use crate::position::alibi;
use crate::position::rotary::{Rotary, RotaryTable};
use crate::position::{Positions, QueryFactor};
use crate::spec::{AttentionSpec, KvSource};

/// The cache of one layer during a step.
#[derive(Debug)]
pub struct LayerCache<'a, B: Backend> {
    pub(super) store: &'a mut LayerStore<B>,
    pub(super) rows: &'a StepRows,
    pub(super) positions: &'a Positions,
    pub(super) tables: &'a mut StepTables<B>,
}

impl<B: Backend> LayerCache<'_, B> {
    /// Which slots the new tokens take.
    pub fn rows(&self) -> &StepRows {
        self.rows
    }

    /// Positions of the new tokens.
    pub fn positions(&self) -> &Positions {
        self.positions
    }

    /// Element types of keys and values.
    pub fn types(&self) -> CacheTypes {
        self.store.size.types()
    }

    /// Checks that a layer can use this cache. The modules call it before they compute or write anything.
    ///
    /// `activations` is the element type of the layer's activations, which the cache uses unless `kv_cache_dtype` sets another.
    ///
    /// # Errors
    /// [`AttentionError::CacheMismatch`] if heads, head size or element types differ; [`AttentionError::CacheLost`] if an
    /// earlier write panicked.
    pub fn check(&self, spec: &AttentionSpec, activations: DType) -> Result<(), AttentionError> {
        self.store.size.check(spec, activations)?;
        self.store.held().map(|_| ())
    }

    /// An error if the layer reads the keys of an earlier one, and that has not run in this step.
    pub(crate) fn check_written(&self, spec: &AttentionSpec) -> Result<(), AttentionError> {
        match spec.kv_source {
            KvSource::Layer(source) if !self.store.written => {
                Err(AttentionError::LayerNotRun { layer: spec.layer_id, keys_of: source })
            }
            _ => Ok(()),
        }
    }

    /// Cosine and sine of the new tokens, computed once per step.
    pub fn rotary_table(&mut self, rotary: &Rotary, device: &B::Device) -> RotaryTable<B> {
        self.tables.rotary(rotary, self.positions, device)
    }

    /// Factors of the new queries by their position, `[B, T]` of f32, computed once per step.
    pub fn query_factors(&mut self, factor: QueryFactor, device: &B::Device) -> Tensor<B, 2> {
        self.tables.factors(factor, self.positions, device)
    }

    /// Writes the new keys and values after those that the rows hold, in place. Calling it again in the same step
    /// writes the same slots.
    ///
    /// # Shapes
    /// - key, value: `[B, K, T, H]`
    ///
    /// # Panics
    /// If a shape is wrong, or values are the first features of the keys, before anything is written; if an earlier write panicked.
    pub fn append(&mut self, key: Tensor<B, 4>, value: Tensor<B, 4>) {
        self.append_with(key, value, slice_assign);
    }

    /// [`append`](Self::append) with a backend's own function for writing into a tensor without other references.
    pub(crate) fn append_with(&mut self, key: Tensor<B, 4>, value: Tensor<B, 4>, assign: Assign<B>) {
        let TokenSize { kv_heads, head_dim, .. } = self.store.size;
        let expected = [self.rows.batch(), kv_heads, self.rows.width(), head_dim];
        check_shape("LayerCache::append", "key", &expected, &key.dims());
        check_shape("LayerCache::append", "value", &expected, &value.dims());
        let (keys, values) = self.take_storage();
        let rows = self.rows;
        self.put_storage(append(keys, key, rows, assign), append(values, value, rows, assign));
    }

    /// Writes new keys whose first features are the values, as [`append_with`](Self::append_with).
    ///
    /// # Shapes
    /// - new: `[B, 1, T, L + R]`
    pub(crate) fn append_latents(&mut self, new: Tensor<B, 4>, assign: Assign<B>) {
        let TokenSize { kv_heads, head_dim, latent, .. } = self.store.size;
        assert!(latent.is_some(), "LayerCache::append_latents: the cache stores values apart from keys");
        let expected = [self.rows.batch(), kv_heads, self.rows.width(), head_dim];
        check_shape("LayerCache::append_latents", "new", &expected, &new.dims());
        let (stored, _) = self.store.take().unwrap_or_else(|error| panic!("LayerCache::append_latents: {error}"));
        self.store.put_written((append(stored, new, self.rows, assign), None));
    }

    /// The keys and values of all rows up to the longest, the new ones included: `[B, K, S, H]` each, as floats; int8 is
    /// dequantised to f32. Values that are the first features of the keys are `[B, 1, S, L]`. The contents after the end of a shorter row are unspecified.
    ///
    /// # Panics
    /// If an earlier write panicked.
    pub fn visible(&self) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let keys = self.rows.keys();
        let (key, value) = self.storage();
        match self.store.size.latent {
            Some(features) => {
                let key = key.dense(keys);
                (key.clone(), key.narrow(3, 0, features))
            }
            None => (key.dense(keys), value.dense(keys)),
        }
    }

    /// The whole preallocated keys and values, for a kernel that reads them in place. Both are the keys where values are the first
    /// features of the keys.
    ///
    /// # Panics
    /// If an earlier write panicked.
    pub fn storage(&self) -> (&Stored<B>, &Stored<B>) {
        let (key, value) = self.store.held().unwrap_or_else(|error| panic!("LayerCache::storage: {error}"));
        (key, value.unwrap_or(key))
    }

    /// Moves keys and values out, so that a kernel that writes into them holds the only reference.
    pub(crate) fn take_storage(&mut self) -> (Stored<B>, Stored<B>) {
        assert!(self.store.size.latent.is_none(), "LayerCache::append: values are the first features of the keys");
        let (key, value) = self.store.take().unwrap_or_else(|error| panic!("LayerCache::append: {error}"));
        (key, value.unwrap_or_else(|| panic!("LayerCache::append: the cache has no values")))
    }

    /// Gives back what [`take_storage`](Self::take_storage) moved out.
    pub(crate) fn put_storage(&mut self, key: Stored<B>, value: Stored<B>) {
        self.store.put_written((key, Some(value)));
    }
}

/// Writes the new tokens of every row.
fn append<B: Backend>(stored: Stored<B>, new: Tensor<B, 4>, rows: &StepRows, assign: Assign<B>) -> Stored<B> {
    let [batch, heads, width, head_dim] = new.dims();
    if let Some(start) = rows.uniform_start() {
        return stored.write([0..batch, 0..heads, start..start + width, 0..head_dim], new, assign);
    }
    let counts = rows.starts().iter().zip(rows.new_tokens()).enumerate();
    counts.filter(|(_, (_, count))| **count > 0).fold(stored, |stored, (row, (&start, &count))| {
        let tokens = new.clone().slice([row..row + 1, 0..heads, 0..count, 0..head_dim]);
        stored.write([row..row + 1, 0..heads, start..start + count, 0..head_dim], tokens, assign)
    })
}

/// What kernels on a device need in addition to the tensors of a layer.
#[cfg(feature = "cubecl")]
impl<B: Backend> LayerCache<'_, B> {
    /// First new slot and end of each row, `[B, 2]`, copied to the device once per step; `None` if all rows have the same bounds.
    pub(crate) fn bounds(&mut self, device: &B::Device) -> Option<Tensor<B, 2, Int>> {
        if self.rows.uniform_start().is_some() {
            return None;
        }
        let rows = self.rows;
        let bounds = self.tables.bounds.get_or_insert_with(|| bounds_on_device(rows.starts(), &rows.ends(), device));
        Some(bounds.clone())
    }

    /// ALiBi slopes on the device, copied there once per step.
    pub(crate) fn slopes(&mut self, slopes: Vec<f32>, device: &B::Device) -> Tensor<B, 1> {
        match &self.tables.slopes {
            Some((known, tensor)) if *known == slopes => tensor.clone(),
            _ => {
                let tensor = alibi::on_device(slopes.clone(), device);
                self.tables.slopes = Some((slopes, tensor.clone()));
                tensor
            }
        }
    }
}
