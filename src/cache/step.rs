//! One forward pass over a cache.

use burn::tensor::backend::Backend;

use super::layer::LayerCache;
use super::rows::StepRows;
use super::store::LayerStore;
use super::tables::StepTables;
use crate::error::AttentionError;
use crate::position::Positions;

/// One forward pass over all layers. Drop it without calling [`commit`](Self::commit) to discard its tokens.
#[derive(Debug)]
#[must_use = "dropping a step discards its tokens; `commit` keeps them"]
pub struct Step<'a, B: Backend> {
    stores: &'a mut [LayerStore<B>],
    layers: &'a [usize],
    lengths: &'a mut [usize],
    rows: StepRows,
    positions: Positions,
    tables: StepTables<B>,
}

impl<'a, B: Backend> Step<'a, B> {
    pub(super) fn new(
        stores: &'a mut [LayerStore<B>],
        layers: &'a [usize],
        lengths: &'a mut [usize],
        rows: StepRows,
    ) -> Self {
        let positions = Positions::sequential(rows.starts(), rows.width());
        stores.iter_mut().for_each(|store| store.written = false);
        Self { stores, layers, lengths, rows, positions, tables: StepTables::default() }
    }

    /// Position ids of the new tokens, for rotary encodings of left-padded rows and for factors of queries. By default, positions continue from the number
    /// of tokens that the row holds, padding included.
    ///
    /// # Errors
    /// [`AttentionError::Positions`] unless there is one for each row and new token.
    pub fn with_positions(mut self, positions: Positions) -> Result<Self, AttentionError> {
        let (batch, width) = (self.rows.batch(), self.rows.width());
        if (positions.ids().len(), positions.tokens()) != (batch * width, width) {
            let problem = format!(
                "are {} × {} and the step has {batch} rows of {width} new tokens; give one for each",
                positions.batch(),
                positions.tokens()
            );
            return Err(AttentionError::Positions { problem });
        }
        self.positions = match self.positions.given_length().filter(|_| positions.given_length().is_none()) {
            Some(length) => positions.with_length(length),
            None => positions,
        };
        Ok(self)
    }

    /// Tokens of the longest sequence, those of later steps included, for rotary frequencies that depend on it (dynamic scaling,
    /// LongRoPE). Set it where a prompt is fed in pieces: each is then rotated as the whole prompt is. By default it is the largest
    /// position of the step plus 1; less than that changes nothing. See [`Positions::with_length`].
    pub fn with_sequence_length(self, tokens: usize) -> Self {
        Self { positions: self.positions.with_length(tokens), ..self }
    }

    /// The cache of layer `index`, for its forward pass. For a layer that reads the keys of an earlier one it is the cache of that layer.
    ///
    /// # Panics
    /// If the cache has no such layer.
    pub fn layer(&mut self, index: usize) -> LayerCache<'_, B> {
        let layers = self.layers.len();
        assert!(index < layers, "Step::layer: layer {index} of a cache with {layers} layers; build it with more");
        LayerCache {
            store: &mut self.stores[self.layers[index]],
            rows: &self.rows,
            positions: &self.positions,
            tables: &mut self.tables,
        }
    }

    /// S: number of keys of the longest row after the step, which is the number of columns of a mask over keys.
    pub fn keys(&self) -> usize {
        self.rows.keys()
    }

    /// Keeps the new tokens.
    pub fn commit(self) {
        self.lengths.copy_from_slice(&self.rows.ends());
    }
}
