//! The tensors of one layer, and who owns them.

use std::mem;

use burn::tensor::backend::Backend;

use super::size::TokenSize;
use super::stored::Stored;
use crate::error::AttentionError;

/// The keys and values of one layer.
#[derive(Debug)]
pub(super) struct LayerStore<B: Backend> {
    pub(super) size: TokenSize,
    /// Whether the current step has written its keys and values.
    pub(super) written: bool,
    tensors: Tensors<B>,
}

#[derive(Debug)]
enum Tensors<B: Backend> {
    /// The cache owns them.
    Held {
        /// The keys.
        key: Stored<B>,
        /// The values; `None` if they are the first features of the keys.
        value: Option<Stored<B>>,
    },
    /// A write owns them and holds the only reference, so that the backend writes in place. A layer stays in this state only
    /// if the write panicked.
    Moved,
}

impl<B: Backend> LayerStore<B> {
    /// Allocates the tensors of a layer for rows of `capacity` tokens, filled with zeros.
    pub(super) fn zeros(size: TokenSize, batch: usize, capacity: usize, device: &B::Device) -> Self {
        let shape = [batch, size.kv_heads, capacity, size.head_dim];
        let stored = |dtype| Stored::zeros(shape, dtype, device);
        let [key, value] = size.dtypes;
        let (key, value) = (stored(key), size.latent.is_none().then(|| stored(value)));
        Self { size, written: false, tensors: Tensors::Held { key, value } }
    }

    /// Keys, and values that are stored apart.
    ///
    /// # Errors
    /// [`AttentionError::CacheLost`] if an earlier write panicked.
    pub(super) fn held(&self) -> Result<(&Stored<B>, Option<&Stored<B>>), AttentionError> {
        match &self.tensors {
            Tensors::Held { key, value } => Ok((key, value.as_ref())),
            Tensors::Moved => Err(AttentionError::CacheLost),
        }
    }

    /// Moves keys and values out. The caller gives them back with [`put`](Self::put).
    ///
    /// # Errors
    /// [`AttentionError::CacheLost`] if an earlier write panicked.
    pub(super) fn take(&mut self) -> Result<(Stored<B>, Option<Stored<B>>), AttentionError> {
        match mem::replace(&mut self.tensors, Tensors::Moved) {
            Tensors::Held { key, value } => Ok((key, value)),
            Tensors::Moved => Err(AttentionError::CacheLost),
        }
    }

    /// Gives back what [`take`](Self::take) moved out, with the keys and values of the step.
    pub(super) fn put_written(&mut self, tensors: (Stored<B>, Option<Stored<B>>)) {
        self.put(tensors);
        self.written = true;
    }

    /// Gives back what [`take`](Self::take) moved out.
    pub(super) fn put(&mut self, (key, value): (Stored<B>, Option<Stored<B>>)) {
        self.tensors = Tensors::Held { key, value };
    }
}
