//! The tokenizer of a sentence encoder: its own truncation and padding, and batches of token ids.

use std::path::Path;

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use serde_json::Value;
use tokenizers::{PaddingDirection, PaddingParams, PaddingStrategy, PostProcessor, Tokenizer, TruncationParams};

use super::Failure;

/// A tokenizer that cuts at the length of the encoder and pads to the longest sentence of a batch.
///
/// What `tokenizer.json` says about both is not used: it is what the file happened to be saved with, and
/// all-MiniLM-L6-v2's own pipeline overrides its 128 tokens as well.
pub struct Sentences {
    tokenizer: Tokenizer,
    vocab_size: usize,
}

/// A batch as an encoder takes it, `[B, T]`, with padding on the right.
pub struct Batch<B: Backend> {
    /// Token ids.
    pub ids: Tensor<B, 2, Int>,
    /// 1 = a real token.
    pub padding: Tensor<B, 2, Int>,
    /// What became of each sentence.
    pub lengths: Vec<Length>,
}

/// The length of a sentence, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Length {
    /// Embedded, `[CLS]` and `[SEP]` included.
    pub tokens: usize,
    /// Left out, because the sentence is longer than the limit.
    pub cut_tokens: usize,
}

impl Sentences {
    /// Reads `tokenizer.json`, and `sentence_bert_config.json` for the longest sentence where the folder has one; else
    /// that is `max_positions`.
    pub fn open(folder: &Path, max_positions: usize, vocab_size: usize) -> Result<Self, Failure> {
        let file = folder.join("tokenizer.json");
        if !file.exists() {
            return Err(format!("{} is missing; save the model's fast tokenizer there", file.display()).into());
        }
        let mut tokenizer = Tokenizer::from_file(&file)?;
        let limit = max_seq_length(folder)?.map_or(max_positions, |limit| limit.min(max_positions));
        let special = tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        if limit <= special {
            return Err(format!(
                "the longest sentence has {limit} tokens, but the tokenizer adds {special} itself; \
                 set `max_seq_length` in sentence_bert_config.json to more than that"
            )
            .into());
        }
        tokenizer.with_truncation(Some(TruncationParams { max_length: limit, ..Default::default() }))?;
        let padding = tokenizer.get_padding().cloned().unwrap_or_default();
        tokenizer.with_padding(Some(PaddingParams {
            strategy: PaddingStrategy::BatchLongest,
            direction: PaddingDirection::Right,
            pad_to_multiple_of: None,
            ..padding
        }));
        Ok(Self { tokenizer, vocab_size })
    }

    /// Splits the sentences of one batch into tokens.
    pub fn batch<B: Backend>(&self, sentences: &[&str], device: &B::Device) -> Result<Batch<B>, Failure> {
        let encodings = self.tokenizer.encode_batch(sentences.to_vec(), true)?;
        let width = encodings.first().map_or(0, |encoding| encoding.len());
        let mut ids = Vec::with_capacity(encodings.len() * width);
        let mut padding = Vec::with_capacity(encodings.len() * width);
        let mut lengths = Vec::with_capacity(encodings.len());
        for encoding in &encodings {
            ids.extend(encoding.get_ids().iter().map(|&id| i64::from(id)));
            padding.extend(encoding.get_attention_mask().iter().map(|&real| i64::from(real)));
            // Each overflowing piece has a [CLS], a [SEP] and padding of its own, which were never in the sentence.
            let pieces = encoding.get_overflowing().iter().flat_map(|piece| piece.get_special_tokens_mask());
            lengths.push(Length {
                tokens: encoding.get_attention_mask().iter().filter(|&&real| real == 1).count(),
                cut_tokens: pieces.filter(|&&special| special == 0).count(),
            });
        }
        if let Some(empty) = lengths.iter().position(|length| length.tokens == 0) {
            return Err(format!(
                "the sentence \"{}\" has no tokens; leave it out, or use a tokenizer.json that adds [CLS] and [SEP]",
                sentences[empty]
            )
            .into());
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            return Err(format!(
                "token {id} is not in the vocabulary of {} ids; use the tokenizer.json that belongs to the checkpoint",
                self.vocab_size
            )
            .into());
        }
        let shape = [encodings.len(), width];
        Ok(Batch {
            ids: Tensor::from_data(TensorData::new(ids, shape), device),
            padding: Tensor::from_data(TensorData::new(padding, shape), device),
            lengths,
        })
    }
}

fn max_seq_length(folder: &Path) -> Result<Option<usize>, Failure> {
    let settings = super::json(&folder.join("sentence_bert_config.json"))?;
    Ok(settings.and_then(|settings| settings.get("max_seq_length").and_then(Value::as_u64)).map(|limit| limit as usize))
}
