//! What an encoder reads.

use std::path::PathBuf;

use burn_deepspeed::load::{EncoderDecoderConfig, FeatureShape};
use tokenizers::Tokenizer;

use crate::Failure;

/// What an encoder reads, a row for each text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sources {
    /// Rows of token ids, which may have different lengths.
    Tokens(Vec<Vec<u32>>),
    /// A safetensors file of features of sound: each tensor is one `[bins, frames]`, or a batch of them.
    Features(PathBuf),
}

impl Sources {
    /// Texts as rows of tokens, with what the tokenizer adds to them.
    ///
    /// # Errors
    /// If the tokenizer cannot read a text.
    pub fn of_texts(tokenizer: &Tokenizer, texts: &[impl AsRef<str>]) -> Result<Self, Failure> {
        let ids = |text: &str| {
            let encoding = tokenizer.encode(text, true);
            Ok(encoding.map_err(|cause| format!("the tokenizer cannot read {text:?}: {cause}"))?.get_ids().to_vec())
        };
        Ok(Self::Tokens(texts.iter().map(|text| ids(text.as_ref())).collect::<Result<_, Failure>>()?))
    }

    /// An error unless the encoder takes these rows of tokens.
    pub(super) fn check_tokens(rows: &[Vec<u32>], config: &EncoderDecoderConfig) -> Result<(), Failure> {
        if let Some(FeatureShape { bins, frames }) = config.features {
            return Err(format!(
                "a {} reads sound and no tokens; give a safetensors file with features [{bins}, {frames}]",
                config.family.name()
            )
            .into());
        }
        if rows.is_empty() {
            return Err("no rows of tokens; give at least one".into());
        }
        for (row, ids) in rows.iter().enumerate() {
            if ids.is_empty() {
                return Err(format!("row {row} has no tokens; give at least one").into());
            }
            if let Some(most) = config.encoder.positions.filter(|&most| ids.len() > most) {
                let tokens = ids.len();
                return Err(format!("row {row} has {tokens} tokens, and the model takes {most}; shorten it").into());
            }
            check_ids(ids.iter().map(|&id| id.into()), config.vocab_size)?;
        }
        Ok(())
    }
}

/// An error for an id that is not in the vocabulary.
pub(super) fn check_ids(ids: impl IntoIterator<Item = i64>, vocab_size: usize) -> Result<(), Failure> {
    match ids.into_iter().find(|&id| usize::try_from(id).map_or(true, |id| id >= vocab_size)) {
        Some(id) => {
            Err(format!("token {id} is not in the vocabulary, whose ids go from 0 to {}", vocab_size - 1).into())
        }
        None => Ok(()),
    }
}
