//! One forward pass over a cache, and the part of it that a layer sees.

#[cfg(feature = "cubecl")]
use burn::tensor::{DType, Int, TensorData};
use burn::tensor::{Tensor, backend::Backend};

use super::{Assign, CacheSize, CacheTypes, KvCache, Store, Stored, slice_assign};
use crate::error::{AttentionError, check_shape};
#[cfg(feature = "cubecl")]
use crate::parallel::HeadShard;
use crate::position::Positions;
#[cfg(feature = "cubecl")]
use crate::position::alibi;
use crate::position::rotary::{Rotary, RotaryTable};

/// Where the new tokens of a step go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRows {
    starts: Vec<usize>,
    new: Vec<usize>,
    width: usize,
}

impl StepRows {
    pub(super) fn new(starts: Vec<usize>, new: Vec<usize>, width: usize) -> Self {
        Self { starts, new, width }
    }

    /// The slot of each row's first new token.
    pub fn starts(&self) -> &[usize] {
        &self.starts
    }

    /// New tokens of each row.
    pub fn new_tokens(&self) -> &[usize] {
        &self.new
    }

    /// T: columns of the step's input.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Tokens of each row once the step is done.
    pub fn ends(&self) -> Vec<usize> {
        self.starts.iter().zip(&self.new).map(|(start, new)| start + new).collect()
    }

    /// S: keys of the longest row once the step is done.
    pub fn keys(&self) -> usize {
        self.ends().into_iter().max().unwrap_or(0)
    }

    /// The common start, if every row starts there and fills the width.
    fn uniform_start(&self) -> Option<usize> {
        let first = *self.starts.first()?;
        let even = self.starts.iter().all(|&start| start == first) && self.new.iter().all(|&new| new == self.width);
        even.then_some(first)
    }
}

/// One forward pass over all layers. Dropped without [`commit`](Self::commit), its tokens were never there.
#[derive(Debug)]
#[must_use = "a step that is dropped leaves no tokens; `commit` keeps them"]
pub struct Step<'a, B: Backend> {
    cache: &'a mut KvCache<B>,
    rows: StepRows,
    positions: Positions,
    tables: StepTables<B>,
}

impl<'a, B: Backend> Step<'a, B> {
    pub(super) fn new(cache: &'a mut KvCache<B>, rows: StepRows) -> Self {
        let positions = Positions::sequential(&rows.starts, rows.width);
        Self { cache, rows, positions, tables: StepTables::default() }
    }

    /// Position ids of the new tokens, for rotary encodings of left-padded rows. Without them a row counts on from the
    /// tokens that it holds, padding included.
    ///
    /// # Errors
    /// [`AttentionError::Positions`] if there is not one for each row and new token.
    pub fn with_positions(mut self, positions: Positions) -> Result<Self, AttentionError> {
        let (batch, width) = (self.cache.batch(), self.rows.width);
        if (positions.batch(), positions.tokens()) != (batch, width) {
            let problem = format!(
                "are {} × {} and the step has {batch} rows of {width} new tokens; give one for each",
                positions.batch(),
                positions.tokens()
            );
            return Err(AttentionError::Positions { problem });
        }
        self.positions = positions;
        Ok(self)
    }

    /// The cache of layer `index`, for its forward pass.
    ///
    /// # Panics
    /// If the cache has no such layer.
    pub fn layer(&mut self, index: usize) -> LayerCache<'_, B> {
        let layers = self.cache.layers.len();
        assert!(index < layers, "Step::layer: layer {index} of a cache with {layers} layers; build it with more");
        LayerCache {
            store: &mut self.cache.layers[index],
            size: self.cache.size,
            rows: &self.rows,
            positions: &self.positions,
            tables: &mut self.tables,
        }
    }

    /// Keys that the longest row will hold: S, the columns that a mask over keys must have.
    pub fn keys(&self) -> usize {
        self.rows.keys()
    }

    /// Keeps the new tokens.
    pub fn commit(self) {
        self.cache.lengths = self.rows.ends();
    }
}

/// What every layer of a step needs on the device, put there once.
#[derive(Debug)]
struct StepTables<B: Backend> {
    rotary: Vec<(Rotary, RotaryTable<B>)>,
    #[cfg(feature = "cubecl")]
    bounds: Option<Tensor<B, 2, Int>>,
    #[cfg(feature = "cubecl")]
    slopes: Option<(HeadShard, Tensor<B, 1>)>,
}

impl<B: Backend> Default for StepTables<B> {
    fn default() -> Self {
        Self {
            rotary: Vec::new(),
            #[cfg(feature = "cubecl")]
            bounds: None,
            #[cfg(feature = "cubecl")]
            slopes: None,
        }
    }
}

impl<B: Backend> StepTables<B> {
    fn rotary(&mut self, rotary: &Rotary, positions: &Positions, device: &B::Device) -> RotaryTable<B> {
        if let Some((_, table)) = self.rotary.iter().find(|(known, _)| known == rotary) {
            return table.clone();
        }
        let table = RotaryTable::new(rotary, positions, device);
        self.rotary.push((rotary.clone(), table.clone()));
        table
    }
}

/// The cache of one layer during a step.
#[derive(Debug)]
pub struct LayerCache<'a, B: Backend> {
    store: &'a mut Store<B>,
    size: CacheSize,
    rows: &'a StepRows,
    positions: &'a Positions,
    tables: &'a mut StepTables<B>,
}

impl<B: Backend> LayerCache<'_, B> {
    /// Where the new tokens go.
    pub fn rows(&self) -> &StepRows {
        self.rows
    }

    /// Positions of the new tokens.
    pub fn positions(&self) -> &Positions {
        self.positions
    }

    /// Element types of keys and values.
    pub fn types(&self) -> CacheTypes {
        self.size.types()
    }

    /// Cosine and sine of the new tokens, computed once a step.
    pub fn rotary_table(&mut self, rotary: &Rotary, device: &B::Device) -> RotaryTable<B> {
        self.tables.rotary(rotary, self.positions, device)
    }

    /// Writes the new keys and values behind those that the rows hold, in place. Calling it again in the same step
    /// writes the same slots.
    ///
    /// # Shapes
    /// - key, value: `[B, K, T, H]`
    pub fn append(&mut self, key: Tensor<B, 4>, value: Tensor<B, 4>) {
        self.append_with(key, value, slice_assign);
    }

    /// [`append`](Self::append) with a backend's own way to write into a tensor that nobody else holds.
    pub(crate) fn append_with(&mut self, key: Tensor<B, 4>, value: Tensor<B, 4>, assign: Assign<B>) {
        let (heads, head_dim) = (self.size.kv_heads, self.size.head_dim);
        let expected = [self.rows.starts.len(), heads, self.rows.width, head_dim];
        for (side, new, name) in [(&mut self.store.key, key, "key"), (&mut self.store.value, value, "value")] {
            check_shape("LayerCache::append", name, &expected, &new.dims());
            let mut write = |at, tokens| *side = side.take().map(|stored: Stored<B>| stored.write(at, tokens, assign));
            if let Some(start) = self.rows.uniform_start() {
                let at = [0..expected[0], 0..heads, start..start + self.rows.width, 0..head_dim];
                write(at, new);
                continue;
            }
            for (row, (&start, &count)) in self.rows.starts.iter().zip(&self.rows.new).enumerate() {
                if count > 0 {
                    let tokens = new.clone().slice([row..row + 1, 0..heads, 0..count, 0..head_dim]);
                    write([row..row + 1, 0..heads, start..start + count, 0..head_dim], tokens);
                }
            }
        }
    }

    /// The keys and values of all rows up to the longest, the new ones included: `[B, K, S, H]` each, in floats; those of int8
    /// in f32. Slots behind the end of a shorter row hold anything.
    pub fn visible(&self) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let keys = self.rows.keys();
        let (key, value) = self.storage();
        (key.dense(keys), value.dense(keys))
    }

    /// Lends the whole preallocated keys and values to a kernel that reads them in place.
    pub fn storage(&self) -> (&Stored<B>, &Stored<B>) {
        match (&self.store.key, &self.store.value) {
            (Some(key), Some(value)) => (key, value),
            _ => unreachable!("the cache of a layer is only empty while it is written"),
        }
    }
}

/// First new slot and end of each row as a tensor, `[B, 2]` of i32.
#[cfg(feature = "cubecl")]
pub(crate) fn bounds_on_device<B: Backend>(starts: &[usize], ends: &[usize], device: &B::Device) -> Tensor<B, 2, Int> {
    let pairs = starts.iter().zip(ends).flat_map(|(&start, &end)| [start as i32, end as i32]);
    let data = TensorData::new(pairs.collect::<Vec<_>>(), [starts.len(), 2]);
    Tensor::from_data(data, (device, DType::I32))
}

/// What kernels need that write into the cache themselves.
#[cfg(any(feature = "cubecl", feature = "ndarray", feature = "flex"))]
impl<B: Backend> LayerCache<'_, B> {
    /// Takes keys and values out, so that a kernel that writes into them holds the only reference.
    pub(crate) fn take_storage(&mut self) -> (Stored<B>, Stored<B>) {
        match (self.store.key.take(), self.store.value.take()) {
            (Some(key), Some(value)) => (key, value),
            _ => unreachable!("the cache of a layer is only empty while it is written"),
        }
    }

    /// Puts back what [`take_storage`](Self::take_storage) took.
    pub(crate) fn put_storage(&mut self, key: Stored<B>, value: Stored<B>) {
        (self.store.key, self.store.value) = (Some(key), Some(value));
    }
}

/// What kernels on a device need beside the tensors of a layer.
#[cfg(feature = "cubecl")]
impl<B: Backend> LayerCache<'_, B> {
    /// First new slot and end of each row, `[B, 2]`, put on the device once a step; `None` if all rows are alike.
    pub(crate) fn bounds(&mut self, device: &B::Device) -> Option<Tensor<B, 2, Int>> {
        if self.rows.uniform_start().is_some() {
            return None;
        }
        let rows = self.rows;
        let bounds = self.tables.bounds.get_or_insert_with(|| bounds_on_device(&rows.starts, &rows.ends(), device));
        Some(bounds.clone())
    }

    /// The ALiBi slopes of a rank, put on the device once a step.
    pub(crate) fn slopes(&mut self, shard: &HeadShard, device: &B::Device) -> Tensor<B, 1> {
        match &self.tables.slopes {
            Some((known, slopes)) if known == shard => slopes.clone(),
            _ => {
                let slopes = alibi::on_device(alibi::shard_slopes(shard), device);
                self.tables.slopes = Some((*shard, slopes.clone()));
                slopes
            }
        }
    }
}
