//! The keys and values of the tokens seen so far, preallocated and written in place.
//!
//! A [`KvCache`] belongs to the caller. Each forward pass of a model opens one [`Step`], hands every layer its
//! [`LayerCache`], and commits; a step that is dropped without commit leaves no trace. Rows have lengths of their own, so
//! sequences can join and leave a batch (continuous batching).
//!
//! ```
//! use burn::tensor::Tensor;
//! use burn_deepspeed::{AttentionInit, AttentionMask, DataType, DeepSpeedInferenceConfig};
//! use burn_ndarray::NdArray;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Default::default();
//! let config = DeepSpeedInferenceConfig::new(64, 4)
//!     .with_dtype(DataType::Fp32)
//!     .with_num_hidden_layers(Some(2))
//!     .with_max_out_tokens(16);
//! let layers = [config.init_self_attention::<NdArray>(0, &device)?, config.init_self_attention(1, &device)?];
//! let mut cache = config.init_cache::<NdArray>(1, &device)?;
//!
//! for tokens in [5, 1, 3] {
//!     let mut x = Tensor::zeros([1, tokens, 64], &device);
//!     let mut step = cache.step(tokens)?; // an error here if the tokens do not fit, before any work
//!     for (index, layer) in layers.iter().enumerate() {
//!         x = layer.forward(x, AttentionMask::none(), step.layer(index))?;
//!     }
//!     step.commit();
//! }
//! assert_eq!(cache.lengths(), [9]);
//! # Ok(()) }
//! ```

mod step;
mod stored;

use std::ops::Range;

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

pub use crate::element::CacheTypes;
use crate::element::{OfBackend, cache_dtypes, element_type};
use crate::error::{AttentionError, ConfigError};
use crate::spec::AttentionSpec;
#[cfg(feature = "cubecl")]
pub(crate) use step::bounds_on_device;
pub use step::{LayerCache, Step, StepRows};
pub use stored::Stored;

/// The keys and values of all layers of a model, for one batch.
///
/// Replaces DeepSpeed's process-wide workspace (`WorkspaceOp`, `InferenceContext`). It is a plain value: two models,
/// or two batches of one model, have a cache each.
#[derive(Debug)]
pub struct KvCache<B: Backend> {
    layers: Vec<Store<B>>,
    lengths: Vec<usize>,
    size: CacheSize,
    device: B::Device,
}

/// `None` only while an append moves the tensors, so that it is the sole owner.
#[derive(Debug)]
struct Store<B: Backend> {
    key: Option<Stored<B>>,
    value: Option<Stored<B>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CacheSize {
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    /// Of the keys and of the values.
    dtypes: [DType; 2],
}

impl CacheSize {
    fn new<B: Backend>(spec: &AttentionSpec, device: &B::Device) -> Result<Self, ConfigError> {
        let activations = spec.dtype.of_backend::<B>(device)?;
        Ok(Self {
            kv_heads: spec.kv_heads(),
            head_dim: spec.head_dim,
            capacity: spec.max_out_tokens,
            dtypes: cache_dtypes::<B>(spec.kv_cache_dtype, activations, device)?,
        })
    }

    /// Bytes of the keys and values of one token in one layer.
    fn token_bytes<B: Backend>(&self) -> usize {
        let side = |dtype| Stored::<B>::token_bytes(self.head_dim, dtype);
        self.kv_heads * self.dtypes.into_iter().map(side).sum::<usize>()
    }

    fn types(&self) -> CacheTypes {
        let [key, value] = self.dtypes.map(element_type);
        CacheTypes { key, value }
    }
}

impl<B: Backend> KvCache<B> {
    /// Allocates the cache, filled with zeros.
    ///
    /// # Errors
    /// [`ConfigError::UnsupportedDataType`] if the backend does not store the element type.
    pub fn new(spec: &AttentionSpec, layers: usize, batch: usize, device: &B::Device) -> Result<Self, ConfigError> {
        let size = CacheSize::new::<B>(spec, device)?;
        let shape = [batch, size.kv_heads, size.capacity, size.head_dim];
        let empty = |dtype| Some(Stored::zeros(shape, dtype, device));
        let layers = (0..layers).map(|_| Store { key: empty(size.dtypes[0]), value: empty(size.dtypes[1]) }).collect();
        Ok(Self { layers, lengths: vec![0; batch], size, device: device.clone() })
    }

    /// The bytes that [`new`](Self::new) allocates for these arguments.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn bytes(spec: &AttentionSpec, layers: usize, batch: usize, device: &B::Device) -> Result<usize, ConfigError> {
        let size = CacheSize::new::<B>(spec, device)?;
        Ok(size.token_bytes::<B>() * layers * batch * size.capacity)
    }

    /// Tokens that each row holds.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Tokens of the longest row.
    pub fn len(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    /// Whether no row holds a token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows.
    pub fn batch(&self) -> usize {
        self.lengths.len()
    }

    /// Tokens that a row can hold.
    pub fn capacity(&self) -> usize {
        self.size.capacity
    }

    /// Layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Bytes of the keys and values of all layers.
    pub fn memory_bytes(&self) -> usize {
        self.size.token_bytes::<B>() * self.layers.len() * self.batch() * self.size.capacity
    }

    /// Opens a step of `tokens` new tokens in every row. On a filled cache it continues (chunked prefill, decoding).
    ///
    /// # Errors
    /// [`AttentionError::CacheFull`] if they do not fit; nothing was written.
    pub fn step(&mut self, tokens: usize) -> Result<Step<'_, B>, AttentionError> {
        self.step_ragged(tokens, &vec![tokens; self.lengths.len()])
    }

    /// Opens a step of `width` input columns in which row `b` has only `new[b]` tokens, from the left. The columns behind
    /// them are not stored, and what attention returns for them is finite and without meaning. A row with 0 rests.
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
            if used + requested > self.size.capacity {
                return Err(AttentionError::CacheFull { row, used, requested, capacity: self.size.capacity });
            }
        }
        let rows = StepRows::new(self.lengths.clone(), new.to_vec(), width);
        Ok(Step::new(self, rows))
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

    /// Shortens every row to at most `length` tokens; rows that are shorter stay. 0 forgets everything.
    pub fn truncate(&mut self, length: usize) {
        for used in &mut self.lengths {
            *used = length.min(*used);
        }
    }

    /// Shortens one row to `length` tokens (a rejected draft, an edited prompt).
    ///
    /// # Errors
    /// [`AttentionError::TruncateBeyondEnd`] if it holds fewer, [`AttentionError::NoSuchRow`].
    pub fn truncate_row(&mut self, row: usize, length: usize) -> Result<(), AttentionError> {
        self.check_row(row)?;
        let used = self.lengths[row];
        if length > used {
            return Err(AttentionError::TruncateBeyondEnd { row, used, length });
        }
        self.lengths[row] = length;
        Ok(())
    }

    /// Row `b` becomes what row `rows[b]` was (beam search). The list may be longer or shorter than the batch, and may
    /// repeat rows: `&[0, 0, 0]` makes three beams of one prompt.
    ///
    /// # Errors
    /// [`AttentionError::NoSuchRow`]; the cache is as it was.
    pub fn reorder(&mut self, rows: &[usize]) -> Result<(), AttentionError> {
        for &row in rows {
            self.check_row(row)?;
        }
        if rows.iter().copied().eq(0..self.batch()) {
            return Ok(());
        }
        let data: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let index = Tensor::<B, 1, Int>::from_data(TensorData::new(data, [rows.len()]), &self.device);
        for store in &mut self.layers {
            for side in [&mut store.key, &mut store.value] {
                *side = side.take().map(|stored| stored.select(index.clone()));
            }
        }
        self.lengths = rows.iter().map(|&row| self.lengths[row]).collect();
        Ok(())
    }

    /// Replaces row `row` by row `other_row` of `other`: a new sequence, prefilled by itself, joins a running batch.
    ///
    /// # Errors
    /// [`AttentionError::CacheShape`] or [`AttentionError::NoSuchRow`]; the cache is as it was.
    pub fn replace_row(&mut self, row: usize, other: &Self, other_row: usize) -> Result<(), AttentionError> {
        self.check_row(row)?;
        other.check_row(other_row)?;
        if self.size != other.size || self.layers.len() != other.layers.len() {
            return Err(AttentionError::CacheShape { expected: self.describe(), actual: other.describe() });
        }
        let length = other.lengths[other_row];
        if length > 0 {
            for (store, source) in self.layers.iter_mut().zip(&other.layers) {
                for (side, from) in [(&mut store.key, &source.key), (&mut store.value, &source.value)] {
                    let Some(from) = from else { continue };
                    *side = side.take().map(|stored| stored.copy_row(row, from, other_row, length));
                }
            }
        }
        self.lengths[row] = length;
        Ok(())
    }

    fn describe(&self) -> String {
        let CacheSize { kv_heads, head_dim, capacity, .. } = self.size;
        let layers = self.layers.len();
        let types = self.size.types();
        format!("{layers} layers of {kv_heads} heads × {capacity} tokens × {head_dim} features, {types}")
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

/// How tokens are written into a part of a tensor: `(tensor, part, tokens) -> tensor`.
pub(crate) type Assign<B> = fn(Tensor<B, 4>, [Range<usize>; 4], Tensor<B, 4>) -> Tensor<B, 4>;

/// Burn's own assignment, which is in place on a tensor that nobody else holds (but for `burn-flex` 0.21, which copies).
pub(crate) fn slice_assign<B: Backend>(
    tensor: Tensor<B, 4>,
    at: [Range<usize>; 4],
    tokens: Tensor<B, 4>,
) -> Tensor<B, 4> {
    tensor.slice_assign(at, tokens)
}
