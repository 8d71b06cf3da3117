//! The tokenizer of a sentence encoder: its own truncation, and batches of token ids.

use std::path::Path;

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use serde_json::Value;
use tokenizers::{PostProcessor, Tokenizer, TruncationParams};

use crate::Failure;

/// A tokenizer that cuts at the length of the encoder.
///
/// The truncation and padding of `tokenizer.json` are not used: they are whatever the file was saved with, and the pipeline of
/// all-MiniLM-L6-v2 overrides its 128 tokens as well.
pub struct Sentences {
    tokenizer: Tokenizer,
    vocab_size: usize,
}

/// The tokens of a sentence.
pub struct Tokens {
    /// At least one; `[CLS]` and `[SEP]` included.
    pub ids: Vec<u32>,
    /// How many were left out, because the sentence is longer than the limit.
    pub cut: usize,
}

/// A batch as an encoder takes it, `[B, T]`, with padding on the right.
pub struct Batch<B: Backend> {
    /// Token ids.
    pub ids: Tensor<B, 2, Int>,
    /// 1 = a real token.
    pub padding: Tensor<B, 2, Int>,
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
        tokenizer.with_padding(None);
        Ok(Self { tokenizer, vocab_size })
    }

    /// Splits sentences into tokens.
    pub fn split(&self, sentences: &[&str]) -> Result<Vec<Tokens>, Failure> {
        let encodings = self.tokenizer.encode_batch(sentences.to_vec(), true)?;
        let tokens: Vec<Tokens> = encodings
            .iter()
            .map(|encoding| {
                // Each overflowing piece has its own [CLS] and [SEP], which were never in the sentence.
                let pieces = encoding.get_overflowing().iter().flat_map(|piece| piece.get_special_tokens_mask());
                Tokens { ids: encoding.get_ids().to_vec(), cut: pieces.filter(|&&special| special == 0).count() }
            })
            .collect();
        if let Some(empty) = tokens.iter().position(|tokens| tokens.ids.is_empty()) {
            return Err(format!(
                "the sentence \"{}\" has no tokens; leave it out, or use a tokenizer.json that adds [CLS] and [SEP]",
                sentences[empty]
            )
            .into());
        }
        let mut ids = tokens.iter().flat_map(|tokens| &tokens.ids);
        if let Some(id) = ids.find(|&&id| id as usize >= self.vocab_size) {
            return Err(format!(
                "token {id} is not in the vocabulary of {} ids; use the tokenizer.json that belongs to the checkpoint",
                self.vocab_size
            )
            .into());
        }
        Ok(tokens)
    }
}

impl<B: Backend> Batch<B> {
    /// Pads sentences to the longest.
    pub fn new(sentences: &[&Tokens], device: &B::Device) -> Self {
        let width = sentences.iter().map(|sentence| sentence.ids.len()).max().unwrap_or(0);
        let shape = [sentences.len(), width];
        let padded = |real: fn(u32) -> i64| {
            let rows = sentences.iter().flat_map(|sentence| {
                let ids = sentence.ids.iter().map(|&id| real(id));
                // Padding is token 0. Its vectors are never read.
                ids.chain(std::iter::repeat_n(0, width - sentence.ids.len()))
            });
            Tensor::from_data(TensorData::new(rows.collect::<Vec<_>>(), shape), device)
        };
        Self { ids: padded(i64::from), padding: padded(|_| 1) }
    }
}

fn max_seq_length(folder: &Path) -> Result<Option<usize>, Failure> {
    let settings = super::json(&folder.join("sentence_bert_config.json"))?;
    Ok(settings.and_then(|settings| settings.get("max_seq_length").and_then(Value::as_u64)).map(|limit| limit as usize))
}
