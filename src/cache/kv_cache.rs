//! The cache of a whole model: rows, their lengths, and what may be done with them.

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

use super::rows::StepRows;
use super::size::{CacheSize, TokenSize};
use super::step::Step;
use super::store::LayerStore;
use crate::error::{AttentionError, ConfigError};
use crate::spec::AttentionSpec;

/// The keys and values of all layers of a model, for one batch.
///
/// Replaces DeepSpeed's process-wide workspace (`WorkspaceOp`, `InferenceContext`). You own the cache: build one per model
/// and batch.
#[derive(Debug)]
pub struct KvCache<B: Backend> {
    stores: Vec<LayerStore<B>>,
    /// For each layer, the store of its keys and values.
    layers: Vec<usize>,
    lengths: Vec<usize>,
    capacity: usize,
    device: B::Device,
}

impl<B: Backend> KvCache<B> {
    /// Allocates the cache of `layers` layers of one size, filled with zeros.
    ///
    /// # Errors
    /// [`ConfigError::UnsupportedDataType`] if the backend does not store the element type.
    pub fn new(spec: &AttentionSpec, layers: usize, batch: usize, device: &B::Device) -> Result<Self, ConfigError> {
        let one = CacheSize::new::<B>(std::slice::from_ref(spec), device)?;
        let (stores, layers) = (one.stores.repeat(layers), (0..layers).collect());
        Ok(Self::of_size(CacheSize { stores, layers, ..one }, batch, device))
    }

    /// Allocates the cache of layers that may differ in key/value heads, head size and element types, filled with zeros. Layer `i` is
    /// that of `specs[i]`. `max_out_tokens` is the same in all of them: rows have one length. A layer whose
    /// [source](crate::config::KvSource) is an earlier layer has no memory of its own.
    ///
    /// ```
    /// use burn_deepspeed::{DataType, DeepSpeedInferenceConfig, KvCache};
    /// use burn_ndarray::NdArray;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let config = DeepSpeedInferenceConfig::new(64, 4).with_dtype(DataType::Fp32).with_max_out_tokens(100);
    /// // every second layer has one key/value head of 32 features in place of four of 16
    /// let wide = config.clone().with_num_kv(Some(1)).with_head_dim(Some(32));
    /// let specs = [config.resolve(0)?, wide.resolve(1)?];
    /// let cache = KvCache::<NdArray>::for_layers(&specs, 1, &Default::default())?;
    /// assert_eq!(cache.memory_bytes(), 100 * 4 * 2 * (4 * 16 + 32));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`new`](Self::new); [`ConfigError::LayerCapacity`] if `max_out_tokens` differs; [`ConfigError::SharedLayer`] if a layer
    /// cannot read the keys of the layer that it names.
    pub fn for_layers(specs: &[AttentionSpec], batch: usize, device: &B::Device) -> Result<Self, ConfigError> {
        Ok(Self::of_size(CacheSize::new::<B>(specs, device)?, batch, device))
    }

    /// The cache of one layer whose activations have elements of `activations`.
    pub(crate) fn of_layer(spec: &AttentionSpec, activations: DType, batch: usize, device: &B::Device) -> Self {
        let stores = vec![TokenSize::of_layer(spec, activations)];
        Self::of_size(CacheSize { stores, layers: vec![0], capacity: spec.max_out_tokens }, batch, device)
    }

    fn of_size(CacheSize { stores, layers, capacity }: CacheSize, batch: usize, device: &B::Device) -> Self {
        let stores = stores.into_iter().map(|size| LayerStore::zeros(size, batch, capacity, device)).collect();
        Self { stores, layers, lengths: vec![0; batch], capacity, device: device.clone() }
    }

    /// The bytes that [`new`](Self::new) allocates for these arguments.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn bytes(spec: &AttentionSpec, layers: usize, batch: usize, device: &B::Device) -> Result<usize, ConfigError> {
        Ok(Self::bytes_for_layers(std::slice::from_ref(spec), batch, device)? * layers)
    }

    /// The bytes that [`for_layers`](Self::for_layers) allocates for these arguments.
    ///
    /// # Errors
    /// Those of [`for_layers`](Self::for_layers).
    pub fn bytes_for_layers(specs: &[AttentionSpec], batch: usize, device: &B::Device) -> Result<usize, ConfigError> {
        Ok(CacheSize::new::<B>(specs, device)?.bytes::<B>(batch))
    }

    /// Number of tokens in each row.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Number of tokens in the longest row.
    pub fn len(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    /// Whether no row holds a token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of rows.
    pub fn batch(&self) -> usize {
        self.lengths.len()
    }

    /// Number of tokens that a row can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Number of layers, those that read the keys of an earlier one included.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Bytes of the keys and values of all layers together.
    pub fn memory_bytes(&self) -> usize {
        self.sizes().map(|size| size.bytes::<B>()).sum::<usize>() * self.batch() * self.capacity
    }

    /// Opens a step of `tokens` new tokens in every row. On a filled cache it continues (chunked prefill, decoding).
    ///
    /// # Errors
    /// [`AttentionError::CacheFull`] if they do not fit; nothing was written.
    pub fn step(&mut self, tokens: usize) -> Result<Step<'_, B>, AttentionError> {
        self.step_ragged(tokens, &vec![tokens; self.lengths.len()])
    }

    /// Opens a step of `width` input columns in which row `b` has only `new[b]` tokens, from the left. The columns after
    /// them are not stored; attention returns finite but meaningless values for them. A row with 0 new tokens is unchanged.
    ///
    /// # Errors
    /// [`AttentionError::CacheFull`], [`AttentionError::RowCount`] or [`AttentionError::StepTooNarrow`]; nothing was
    /// written.
    pub fn step_ragged(&mut self, width: usize, new: &[usize]) -> Result<Step<'_, B>, AttentionError> {
        self.check_rows("the step", new.len())?;
        for (row, (&used, &requested)) in self.lengths.iter().zip(new).enumerate() {
            if requested > width {
                return Err(AttentionError::StepTooNarrow { row, requested, width });
            }
            if used + requested > self.capacity {
                return Err(AttentionError::CacheFull { row, used, requested, capacity: self.capacity });
            }
        }
        let rows = StepRows::new(self.lengths.clone(), new.to_vec(), width);
        Ok(Step::new(&mut self.stores, &self.layers, &mut self.lengths, rows))
    }

    /// Forgets every token. Memory stays.
    pub fn reset(&mut self) {
        self.lengths.fill(0);
    }

    /// Forgets the tokens of one row.
    ///
    /// # Errors
    /// [`AttentionError::NoSuchRow`].
    pub fn reset_row(&mut self, row: usize) -> Result<(), AttentionError> {
        self.check_row(row)?;
        self.lengths[row] = 0;
        Ok(())
    }

    /// Shortens every row to at most `length` tokens; shorter rows are unchanged. 0 forgets everything.
    pub fn truncate(&mut self, length: usize) {
        for used in &mut self.lengths {
            *used = length.min(*used);
        }
    }

    /// Shortens one row to `length` tokens (a rejected draft, an edited prompt).
    ///
    /// # Errors
    /// [`AttentionError::TruncateBeyondEnd`] if the row holds fewer; [`AttentionError::NoSuchRow`].
    pub fn truncate_row(&mut self, row: usize, length: usize) -> Result<(), AttentionError> {
        self.check_row(row)?;
        let used = self.lengths[row];
        if length > used {
            return Err(AttentionError::TruncateBeyondEnd { row, used, length });
        }
        self.lengths[row] = length;
        Ok(())
    }

    /// Replaces row `b` by the former row `rows[b]` (beam search). The list may be longer or shorter than the batch, and may
    /// repeat rows: `&[0, 0, 0]` makes three beams of one prompt.
    ///
    /// # Errors
    /// [`AttentionError::NoSuchRow`], and the cache is unchanged; [`AttentionError::CacheLost`] if an earlier write panicked.
    pub fn reorder(&mut self, rows: &[usize]) -> Result<(), AttentionError> {
        for &row in rows {
            self.check_row(row)?;
        }
        if rows.iter().copied().eq(0..self.batch()) {
            return Ok(());
        }
        let data: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let index = Tensor::<B, 1, Int>::from_data(TensorData::new(data, [rows.len()]), &self.device);
        for store in &mut self.stores {
            let (key, value) = store.take()?;
            store.put((key.select(index.clone()), value.map(|value| value.select(index.clone()))));
        }
        self.lengths = rows.iter().map(|&row| self.lengths[row]).collect();
        Ok(())
    }

    /// Replaces row `row` by row `other_row` of `other`, so that a sequence that was prefilled alone joins a running batch.
    ///
    /// # Errors
    /// [`AttentionError::CacheShape`] or [`AttentionError::NoSuchRow`], and the cache is unchanged;
    /// [`AttentionError::CacheLost`] if an earlier write panicked.
    pub fn replace_row(&mut self, row: usize, other: &Self, other_row: usize) -> Result<(), AttentionError> {
        self.check_row(row)?;
        other.check_row(other_row)?;
        if self.capacity != other.capacity || self.layers != other.layers || !self.sizes().eq(other.sizes()) {
            return Err(AttentionError::CacheShape { expected: self.describe(), actual: other.describe() });
        }
        let length = other.lengths[other_row];
        if length > 0 {
            for (store, source) in self.stores.iter_mut().zip(&other.stores) {
                let (from_key, from_value) = source.held()?;
                let (key, value) = store.take()?;
                let key = key.copy_row(row, from_key, other_row, length);
                let value = value.zip(from_value).map(|(value, from)| value.copy_row(row, from, other_row, length));
                store.put((key, value));
            }
        }
        self.lengths[row] = length;
        Ok(())
    }

    /// The size of each layer with keys and values of its own.
    fn sizes(&self) -> impl Iterator<Item = TokenSize> {
        self.stores.iter().map(|store| store.size)
    }

    /// Runs of layers of one size, in their order.
    fn describe(&self) -> String {
        let capacity = self.capacity;
        let sizes: Vec<_> = self.sizes().collect();
        let run = |run: &[TokenSize]| {
            let TokenSize { kv_heads, head_dim, .. } = run[0];
            let (layers, types) = (run.len(), run[0].types());
            format!("{layers} layers of {kv_heads} heads × {capacity} tokens × {head_dim} features, {types}")
        };
        let shared = match self.layers.len() - sizes.len() {
            0 => String::new(),
            count => format!("; and {count} layers that read the keys of others"),
        };
        match sizes.is_empty() {
            true => "no layers".into(),
            false => sizes.chunk_by(|a, b| a == b).map(run).collect::<Vec<_>>().join("; then ") + &shared,
        }
    }

    fn check_row(&self, row: usize) -> Result<(), AttentionError> {
        let batch = self.batch();
        if row < batch { Ok(()) } else { Err(AttentionError::NoSuchRow { row, batch }) }
    }

    fn check_rows(&self, what: &'static str, given: usize) -> Result<(), AttentionError> {
        let batch = self.batch();
        if given == batch { Ok(()) } else { Err(AttentionError::RowCount { what, given, batch }) }
    }
}

#[cfg(all(test, feature = "ndarray"))]
mod tests {
    use super::*;
    use crate::config::DeepSpeedInferenceConfig;
    use burn_ndarray::NdArray;

    #[test]
    fn after_a_write_that_panicked_the_cache_says_so() -> Result<(), Box<dyn std::error::Error>> {
        let (spec, device) = (DeepSpeedInferenceConfig::new(8, 2).resolve(0)?, Default::default());
        let mut cache = KvCache::<NdArray>::new(&spec, 1, 2, &device)?;
        let mut other = KvCache::<NdArray>::new(&spec, 1, 2, &device)?;
        other.step(1)?.commit();
        assert_eq!(cache.step(1)?.layer(0).check(&spec, DType::F32), Ok(()));
        drop(cache.stores[0].take()?); // as a write does that never gives them back
        assert_eq!(cache.step(1)?.layer(0).check(&spec, DType::F32), Err(AttentionError::CacheLost));
        assert_eq!(cache.reorder(&[1, 0]), Err(AttentionError::CacheLost));
        assert_eq!(cache.replace_row(0, &other, 0), Err(AttentionError::CacheLost));
        Ok(())
    }
}
