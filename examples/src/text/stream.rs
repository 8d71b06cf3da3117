//! Text that comes while it is generated.

use tokenizers::tokenizer::DecodeStreamError;
use tokenizers::{
    DecodeStream, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer,
};

use crate::Failure;

/// Turns tokens into text, one after the other. A token that ends inside of a character waits for the next one, and special tokens are
/// left out.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    stream:
        DecodeStream<'a, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>,
    ids: Vec<u32>,
    /// All text that was returned.
    text: String,
    /// Whether a token changed text before it. From then on all text waits for the end.
    waits: bool,
}

impl<'a> TextStream<'a> {
    /// A text without tokens.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        let stream = tokenizer.decode_stream(true);
        Self { tokenizer, stream, ids: Vec::new(), text: String::new(), waits: false }
    }

    /// The text that these tokens add; empty while a character is incomplete.
    ///
    /// # Errors
    /// If the tokenizer cannot decode them.
    pub fn push(&mut self, ids: &[u32]) -> Result<String, Failure> {
        let mut added = String::new();
        for &id in ids {
            self.ids.push(id);
            if self.waits {
                continue;
            }
            match self.stream.step(id) {
                Ok(piece) => added += &piece.unwrap_or_default(),
                Err(cause) if cause.is::<DecodeStreamError>() => self.waits = true,
                Err(cause) => return Err(cause),
            }
        }
        self.text += &added;
        Ok(added)
    }

    /// The text that still waits. With the pieces before it, it is what the tokenizer makes of all tokens. Where a token changed text that
    /// was returned, it is all text again, on a new line.
    ///
    /// # Errors
    /// If the tokenizer cannot decode the tokens.
    pub fn finish(self) -> Result<String, Failure> {
        let whole = self.tokenizer.decode(&self.ids, true)?;
        Ok(match whole.strip_prefix(&self.text) {
            Some(rest) => rest.into(),
            None => format!("\n{whole}"),
        })
    }
}
