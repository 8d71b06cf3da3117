//! Left-padded prompts, and a model with its cache that continues them.

use std::num::NonZeroUsize;

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use burn_deepspeed::{FromTensor, InferenceBackend, KvCache, Positions};

use super::Model;
use super::model::specs;
use crate::Failure;

/// Prompts of equal width; padding is on the left, where the mask is 0.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Token ids, row by row.
    pub ids: Vec<Vec<i64>>,
    /// 1 = a real token.
    pub mask: Vec<Vec<i64>>,
}

impl Batch {
    /// One prompt.
    pub fn single(ids: &[u32]) -> Self {
        Self { ids: vec![ids.iter().map(|&id| id.into()).collect()], mask: vec![vec![1; ids.len()]] }
    }

    /// Prompts of unequal length, with padding before the short ones.
    pub fn left_padded(prompts: &[Vec<u32>]) -> Self {
        let width = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let padded = |prompt: &[u32], real: fn(u32) -> i64| -> Vec<i64> {
            let padding = std::iter::repeat_n(0, width - prompt.len());
            padding.chain(prompt.iter().map(|&id| real(id))).collect()
        };
        Self {
            ids: prompts.iter().map(|prompt| padded(prompt, i64::from)).collect(),
            mask: prompts.iter().map(|prompt| padded(prompt, |_| 1)).collect(),
        }
    }

    /// Number of columns.
    pub fn width(&self) -> usize {
        self.ids.first().map_or(0, Vec::len)
    }
}

/// A model in the middle of a text.
pub trait TextSession {
    /// Feeds the prompts, all at once or in pieces of `chunk` tokens; returns the logits of their last token, row by row.
    fn prefill(&mut self, batch: &Batch, chunk: Option<NonZeroUsize>) -> Result<Vec<Vec<f32>>, Failure>;

    /// Feeds one token per row; returns the logits of the token that follows it.
    fn decode(&mut self, tokens: &[u32]) -> Result<Vec<Vec<f32>>, Failure>;
}

/// A model with its cache.
pub struct Session<'a, B: Backend> {
    model: &'a Model<B>,
    cache: KvCache<B>,
    /// All tokens so far, and which are real.
    ids: Vec<Vec<i64>>,
    mask: Vec<Vec<i64>>,
}

impl<'a, B: InferenceBackend> Session<'a, B> {
    /// An empty cache with room for the prompts and `new_tokens` more.
    pub(super) fn new(model: &'a Model<B>, batch: &Batch, new_tokens: usize) -> Result<Self, Failure> {
        let config = &model.config;
        let capacity = batch.width() + new_tokens;
        if let Some(most) = config.learned_positions().filter(|&most| capacity > most) {
            return Err(format!(
                "the prompt is {} tokens long and {new_tokens} more were asked for, but the model knows {most} positions; \
                 shorten the prompt or set --max-new-tokens to at most {}",
                batch.width(),
                most.saturating_sub(batch.width())
            )
            .into());
        }
        if let Some(id) = batch.ids.iter().flatten().find(|&&id| id < 0 || id as usize >= config.vocab_size) {
            return Err(format!(
                "token {id} is not in the vocabulary, whose ids go from 0 to {}",
                config.vocab_size - 1
            )
            .into());
        }
        let fitting = config.clone().with_attention(|attention| attention.with_max_out_tokens(capacity));
        let cache = KvCache::for_layers(&specs(&fitting)?, batch.ids.len(), &model.device)?;
        let none = vec![Vec::new(); batch.ids.len()];
        Ok(Self { model, cache, ids: none.clone(), mask: none })
    }

    /// Feeds tokens of sequences of up to `length` tokens.
    fn step(&mut self, ids: &[Vec<i64>], mask: &[Vec<i64>], length: usize) -> Result<Vec<Vec<f32>>, Failure> {
        let tokens = ids[0].len();
        for (all, new) in self.ids.iter_mut().zip(ids).chain(self.mask.iter_mut().zip(mask)) {
            all.extend(new);
        }
        let device = &self.model.device;
        let padding = matrix::<B>(&self.mask, device);
        let positions = Positions::from_padding_mask(padding.clone(), tokens);
        let mut step = self.cache.step(tokens)?.with_positions(positions.clone())?.with_sequence_length(length);
        let logits = self.model.decoder.forward(matrix(ids, device), padding, &positions, &mut step)?;
        step.commit();
        let logits = logits.into_data().convert::<f32>();
        let last = logits.as_slice::<f32>().map_err(|error| format!("logits as f32: {error:?}"))?;
        Ok(last.chunks(self.model.config.vocab_size).map(<[f32]>::to_vec).collect())
    }
}

impl<B: InferenceBackend> TextSession for Session<'_, B> {
    fn prefill(&mut self, batch: &Batch, chunk: Option<NonZeroUsize>) -> Result<Vec<Vec<f32>>, Failure> {
        let piece = chunk.map_or(batch.width().max(1), NonZeroUsize::get);
        // Pieces of a prompt have the rotary frequencies of the whole.
        let length = batch.mask.iter().map(|row| row.iter().filter(|&&real| real != 0).count()).max().unwrap_or(0);
        let mut logits = Vec::new();
        for start in (0..batch.width()).step_by(piece) {
            let end = (start + piece).min(batch.width());
            let cut =
                |rows: &[Vec<i64>]| -> Vec<Vec<i64>> { rows.iter().map(|row| row[start..end].to_vec()).collect() };
            logits = self.step(&cut(&batch.ids), &cut(&batch.mask), length)?;
        }
        Ok(logits)
    }

    fn decode(&mut self, tokens: &[u32]) -> Result<Vec<Vec<f32>>, Failure> {
        let mut ids: Vec<Vec<i64>> = tokens.iter().map(|&token| vec![token.into()]).collect();
        let mut mask = vec![vec![1]; tokens.len()];
        let before = self.cache.len();
        if self.model.config.drops_cache(before, before + 1) {
            self.cache.reset();
            for (all, new) in [(&mut self.ids, &mut ids), (&mut self.mask, &mut mask)] {
                for (all, new) in all.iter_mut().zip(new) {
                    new.splice(0..0, all.drain(..));
                }
            }
        }
        // The positions of the tokens say the length.
        self.step(&ids, &mask, 0)
    }
}

fn matrix<B: Backend>(rows: &[Vec<i64>], device: &B::Device) -> Tensor<B, 2, Int> {
    let shape = [rows.len(), rows[0].len()];
    Tensor::from_data(TensorData::new(rows.concat(), shape), device)
}
