//! Left-padded batches, and a model with its cache that runs them.

use std::num::NonZeroUsize;

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use burn_deepspeed::load::HuggingFaceConfig;
use burn_deepspeed::{InferenceBackend, KvCache, Positions};

use super::Failure;
use super::decoder::Decoder;

/// Prompts of equal width; padding stands on the left and is 0 in the mask.
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

    /// Columns.
    pub fn width(&self) -> usize {
        self.ids.first().map_or(0, Vec::len)
    }
}

/// A model in the middle of a text.
pub struct Session<'a, B: Backend> {
    model: &'a Decoder<B>,
    cache: KvCache<B>,
    mask: Vec<Vec<i64>>,
    vocab_size: usize,
    device: B::Device,
}

impl<'a, B: InferenceBackend> Session<'a, B> {
    /// Room for the batch and so many new tokens.
    pub fn new(
        model: &'a Decoder<B>,
        config: &HuggingFaceConfig,
        batch: &Batch,
        new_tokens: usize,
        device: &B::Device,
    ) -> Result<Self, Failure> {
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
        let attention = config.clone().with_max_out_tokens(capacity).attention_config(0);
        Ok(Self {
            model,
            cache: attention.init_cache(batch.ids.len(), device)?,
            mask: vec![Vec::new(); batch.ids.len()],
            vocab_size: config.vocab_size,
            device: device.clone(),
        })
    }

    /// Feeds the prompts, at once or in pieces; returns the logits of their last token, row by row.
    pub fn prefill(&mut self, batch: &Batch, chunk: Option<NonZeroUsize>) -> Result<Vec<Vec<f32>>, Failure> {
        let piece = chunk.map_or(batch.width().max(1), NonZeroUsize::get);
        let mut logits = Vec::new();
        for start in (0..batch.width()).step_by(piece) {
            let end = (start + piece).min(batch.width());
            let cut =
                |rows: &[Vec<i64>]| -> Vec<Vec<i64>> { rows.iter().map(|row| row[start..end].to_vec()).collect() };
            logits = self.step(&cut(&batch.ids), &cut(&batch.mask))?;
        }
        Ok(logits)
    }

    /// Feeds one token a row; returns the logits that follow it.
    pub fn decode(&mut self, tokens: &[u32]) -> Result<Vec<Vec<f32>>, Failure> {
        let ids: Vec<Vec<i64>> = tokens.iter().map(|&token| vec![token.into()]).collect();
        self.step(&ids, &vec![vec![1]; tokens.len()])
    }

    fn step(&mut self, ids: &[Vec<i64>], mask: &[Vec<i64>]) -> Result<Vec<Vec<f32>>, Failure> {
        let tokens = ids[0].len();
        for (all, new) in self.mask.iter_mut().zip(mask) {
            all.extend(new);
        }
        let padding = matrix::<B>(&self.mask, &self.device);
        let positions = Positions::from_padding_mask(padding.clone(), tokens);
        let mut step = self.cache.step(tokens)?.with_positions(positions.clone())?;
        let logits = self.model.forward(matrix(ids, &self.device), padding, &positions, &mut step)?;
        step.commit();
        let last: Vec<f32> = logits.narrow(1, tokens - 1, 1).into_data().iter().collect();
        Ok(last.chunks(self.vocab_size).map(<[f32]>::to_vec).collect())
    }
}

fn matrix<B: Backend>(rows: &[Vec<i64>], device: &B::Device) -> Tensor<B, 2, Int> {
    let shape = [rows.len(), rows[0].len()];
    Tensor::from_data(TensorData::new(rows.concat(), shape), device)
}
