//! The contexts of all layers of a decoder.

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

use super::context::{ContextKeys, LayerContext};
use super::cross::DeepSpeedCrossAttention;
use crate::error::AttentionError;
use crate::ops::InferenceBackend;
use crate::pages::use_huge_pages;

/// The contexts of all layers of a decoder, for one batch: the keys and values of an encoder's output, computed once, for every step of
/// the decoder. It is the counterpart of [`KvCache`](crate::KvCache) for [`DeepSpeedCrossAttention`], and you own it.
///
/// Rows may have contexts of different lengths. What lies behind the end of a row never affects a result, not even a NaN.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_deepspeed::{AttentionInit, AttentionMask, CrossCache, DataType, DeepSpeedInferenceConfig};
/// use burn_ndarray::NdArray;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = Default::default();
/// let config = DeepSpeedInferenceConfig::new(64, 4).with_dtype(DataType::Fp32);
/// let layers = [config.init_cross_attention::<NdArray>(48, 0, &device)?, config.init_cross_attention(48, 1, &device)?];
///
/// let encoded = Tensor::ones([2, 7, 48], &device); // two rows, of 7 tokens and of 5
/// let mut contexts = CrossCache::new(&layers, encoded, &[7, 5])?;
/// contexts.reorder(&[0, 0, 0, 1, 1, 1])?; // three beams of each
/// let mut x = Tensor::ones([6, 1, 64], &device);
/// for (index, layer) in layers.iter().enumerate() {
///     x = layer.forward(x, AttentionMask::none(), contexts.layer(index)?)?;
/// }
/// assert_eq!(x.dims(), [6, 1, 64]);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct CrossCache<B: Backend> {
    layers: Vec<ContextKeys<B>>,
    lengths: Vec<usize>,
    tokens: usize,
}

impl<B: InferenceBackend> CrossCache<B> {
    /// Projects a context to the keys and values of these layers, in their order. `lengths` has the number of tokens of each row, which are
    /// on the left.
    ///
    /// # Shapes
    /// - context: `[B, S, context features]`; S may be 0
    ///
    /// # Errors
    /// [`AttentionError::RowCount`], [`AttentionError::ContextLength`] or [`AttentionError::ContextWidth`]; nothing was computed.
    pub fn new<'a>(
        layers: impl IntoIterator<Item = &'a DeepSpeedCrossAttention<B>>,
        context: Tensor<B, 3>,
        lengths: &[usize],
    ) -> Result<Self, AttentionError> {
        let [batch, tokens, actual] = context.dims();
        if lengths.len() != batch {
            return Err(AttentionError::RowCount { what: "the list of lengths", given: lengths.len(), batch });
        }
        if let Some((row, &length)) = lengths.iter().enumerate().find(|(_, length)| **length > tokens) {
            return Err(AttentionError::ContextLength { row, length, tokens });
        }
        let layers: Vec<_> = layers.into_iter().collect();
        for layer in &layers {
            let (expected, layer) = (layer.context_dim(), layer.spec().layer_id);
            if expected != actual {
                return Err(AttentionError::ContextWidth { layer, expected, actual });
            }
        }
        let layers: Vec<_> = layers.iter().map(|layer| layer.context_keys(context.clone())).collect();
        for keys in &layers {
            use_huge_pages(&keys.key);
            use_huge_pages(&keys.value);
        }
        Ok(Self { layers, lengths: lengths.to_vec(), tokens })
    }
}

impl<B: Backend> CrossCache<B> {
    /// The context of layer `layer`.
    ///
    /// # Errors
    /// [`AttentionError::NoSuchLayer`].
    pub fn layer(&self, layer: usize) -> Result<LayerContext<'_, B>, AttentionError> {
        let layers = self.layers.len();
        let keys = self.layers.get(layer).ok_or(AttentionError::NoSuchLayer { layer, layers })?;
        Ok(LayerContext { keys, lengths: &self.lengths })
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Number of rows.
    pub fn batch(&self) -> usize {
        self.lengths.len()
    }

    /// Number of tokens of each row.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// S: tokens that each row has room for, padding included.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Bytes of the keys and values of all layers together.
    pub fn memory_bytes(&self) -> usize {
        let bytes = |tensor: &Tensor<B, 4>| tensor.shape().num_elements() * tensor.dtype().size();
        self.layers.iter().map(|keys| bytes(&keys.key) + bytes(&keys.value)).sum()
    }

    /// Replaces row `b` by the former row `rows[b]`; see [`KvCache::reorder`](crate::KvCache::reorder).
    ///
    /// # Errors
    /// [`AttentionError::NoSuchRow`], and the contexts are unchanged.
    pub fn reorder(&mut self, rows: &[usize]) -> Result<(), AttentionError> {
        rows.iter().try_for_each(|&row| self.check_row(row))?;
        if rows.iter().copied().eq(0..self.batch()) {
            return Ok(());
        }
        if let Some(first) = self.layers.first() {
            let data: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
            let index = Tensor::<B, 1, Int>::from_data(TensorData::new(data, [rows.len()]), &first.key.device());
            self.layers.iter_mut().for_each(|keys| *keys = keys.select(&index));
        }
        self.lengths = rows.iter().map(|&row| self.lengths[row]).collect();
        Ok(())
    }

    /// Forgets the context of every row: cross attention then adds only the bias of the output projection. Memory stays.
    pub fn reset(&mut self) {
        self.lengths.fill(0);
    }

    /// Forgets the context of one row.
    ///
    /// # Errors
    /// [`AttentionError::NoSuchRow`].
    pub fn reset_row(&mut self, row: usize) -> Result<(), AttentionError> {
        self.check_row(row)?;
        self.lengths[row] = 0;
        Ok(())
    }

    fn check_row(&self, row: usize) -> Result<(), AttentionError> {
        let batch = self.batch();
        if row < batch { Ok(()) } else { Err(AttentionError::NoSuchRow { row, batch }) }
    }
}
