//! A decoder in the middle of its texts.

use std::num::NonZeroUsize;

use burn::tensor::backend::Backend;
use burn_deepspeed::{CrossCache, InferenceBackend, KvCache};

use super::Model;
use super::sources::check_ids;
use crate::Failure;
use crate::text::{Batch, TextSession};

/// A decoder in the middle of its texts.
pub trait Seq2SeqSession: TextSession {
    /// Number of sources, each of which has a row.
    fn rows(&self) -> usize;
}

/// A model with the contexts of its sources and its cache.
pub struct Session<'a, B: Backend> {
    pub(super) model: &'a Model<B>,
    pub(super) contexts: CrossCache<B>,
    pub(super) cache: KvCache<B>,
}

impl<B: InferenceBackend> Session<'_, B> {
    /// Feeds tokens; returns the logits of the last, row by row.
    fn step(&mut self, ids: &[Vec<i64>]) -> Result<Vec<Vec<f32>>, Failure> {
        if ids.len() != self.contexts.batch() {
            let rows = self.contexts.batch();
            return Err(format!("{} rows for the decoder and {rows} sources; give a row for each", ids.len()).into());
        }
        check_ids(ids.iter().flatten().copied(), self.model.config.vocab_size)?;
        let logits = self.model.decoder.forward(ids, &mut self.cache, &self.contexts)?;
        let logits: Vec<f32> = logits.into_data().iter().collect();
        Ok(logits.chunks(self.model.config.vocab_size).map(<[f32]>::to_vec).collect())
    }
}

impl<B: InferenceBackend> TextSession for Session<'_, B> {
    fn prefill(&mut self, batch: &Batch, chunk: Option<NonZeroUsize>) -> Result<Vec<Vec<f32>>, Failure> {
        let width = batch.width();
        let real = batch.mask.iter().flatten().all(|&real| real != 0);
        if width == 0 || !real || batch.ids.iter().any(|row| row.len() != width) {
            return Err("the rows that the decoder starts with need one length of at least 1, without padding".into());
        }
        let piece = chunk.map_or(width, NonZeroUsize::get);
        let mut logits = Vec::new();
        for start in (0..width).step_by(piece) {
            let end = (start + piece).min(width);
            let ids: Vec<Vec<i64>> = batch.ids.iter().map(|row| row[start..end].to_vec()).collect();
            logits = self.step(&ids)?;
        }
        Ok(logits)
    }

    fn decode(&mut self, tokens: &[u32]) -> Result<Vec<Vec<f32>>, Failure> {
        let ids: Vec<Vec<i64>> = tokens.iter().map(|&token| vec![token.into()]).collect();
        self.step(&ids)
    }
}

impl<B: InferenceBackend> Seq2SeqSession for Session<'_, B> {
    fn rows(&self) -> usize {
        self.contexts.batch()
    }
}
