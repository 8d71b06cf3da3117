//! The tokenizer of a sentence encoder: its prompt, its truncation, and batches of token ids.

use std::path::Path;

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use burn_deepspeed::ConfigError;
use burn_deepspeed::fields::Fields;
use serde_json::{Value, json};
use tokenizers::normalizers::{Lowercase, Sequence};
use tokenizers::{NormalizerWrapper, PostProcessor, Tokenizer, TruncationParams};

use crate::{Failure, tokenizer};

/// A tokenizer that cuts at the length of the encoder.
///
/// The truncation and padding of `tokenizer.json` are not used; see [`tokenizer`]. The pipeline of all-MiniLM-L6-v2 overrides its
/// 128 tokens as well.
pub struct Sentences {
    tokenizer: Tokenizer,
    vocab_size: usize,
    /// The text before each sentence; empty for most models.
    prompt: String,
    prompt_tokens: usize,
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
    /// Reads `tokenizer.json`, and `sentence_bert_config.json` for the longest sentence where the folder has one; else that is the
    /// `model_max_length` of `tokenizer_config.json`. It is never above `max_positions`.
    ///
    /// # Errors
    /// An error that names the file and the key.
    pub fn open(
        folder: &Path,
        (max_positions, vocab_size): (usize, usize),
        prompt: String,
        allowed: &[String],
    ) -> Result<Self, Failure> {
        let missing =
            || format!("{} is missing; save the model's fast tokenizer there", folder.join("tokenizer.json").display());
        let mut tokenizer = tokenizer::open(folder)?.ok_or_else(missing)?;
        let file = folder.join("sentence_bert_config.json");
        let record = super::json(&file)?.unwrap_or_else(|| json!({}));
        let settings = Settings::read(&record, allowed).map_err(|error| error.in_file(&file))?;
        if settings.lower_case {
            let own = tokenizer.get_normalizer().cloned();
            let all = std::iter::once(NormalizerWrapper::Lowercase(Lowercase)).chain(own);
            tokenizer.with_normalizer(Some(Sequence::new(all.collect())));
        }
        let limit = settings.longest.map_or_else(|| tokenizer::model_max_length(folder), |limit| Ok(Some(limit)))?;
        let limit = limit.map_or(max_positions, |limit| limit.min(max_positions));
        let special = tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        if limit <= special {
            return Err(format!(
                "the longest sentence has {limit} tokens, but the tokenizer adds {special} itself; \
                 set `max_seq_length` in sentence_bert_config.json to more than that"
            )
            .into());
        }
        let prompt_tokens = prompt_tokens(&tokenizer, &prompt)?;
        tokenizer.with_truncation(Some(TruncationParams { max_length: limit, ..Default::default() }))?;
        Ok(Self { tokenizer, vocab_size, prompt, prompt_tokens })
    }

    /// Tokens of each text that belong to the prompt, with what the tokenizer adds before it.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// Splits sentences into tokens.
    pub fn split(&self, sentences: &[&str]) -> Result<Vec<Tokens>, Failure> {
        let texts: Vec<String> = sentences.iter().map(|sentence| format!("{}{sentence}", self.prompt)).collect();
        let encodings = self.tokenizer.encode_batch(texts, true)?;
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

/// The tokens of a prompt alone, without a special token at its end; 0 without a prompt.
fn prompt_tokens(tokenizer: &Tokenizer, prompt: &str) -> Result<usize, Failure> {
    if prompt.is_empty() {
        return Ok(0);
    }
    let encoding = tokenizer.encode(prompt, true)?;
    let ends_special = encoding.get_special_tokens_mask().last() == Some(&1);
    Ok(encoding.get_ids().len() - usize::from(ends_special))
}

/// What `sentence_bert_config.json` says.
struct Settings {
    longest: Option<usize>,
    lower_case: bool,
}

impl Settings {
    /// Keys that are supported with the value that an encoder of texts has.
    const READ: [&str; 5] =
        ["do_lower_case", "max_seq_length", "modality_config", "module_output_name", "transformer_task"];
    /// How attention is computed, which does not change its result.
    const HARMLESS: [&str; 1] = ["unpad_inputs"];

    fn read(record: &Value, allowed: &[String]) -> Result<Self, ConfigError> {
        let fields = Fields::new(record)?.allowing(allowed);
        fields.check_keys(&[&Self::READ[..], &Self::HARMLESS].concat(), "a sentence encoder")?;
        for (key, only) in [("transformer_task", "feature-extraction"), ("module_output_name", "token_embeddings")] {
            if fields.text(&[key])?.is_some_and(|value| value != only) {
                return Err(fields.unsupported(key, &format!("\"{only}\"")));
            }
        }
        let text = json!({ "text": { "method": "forward", "method_output_name": "last_hidden_state" } });
        if fields.value("modality_config").is_some_and(|value| *value != text) {
            return Err(fields.unsupported("modality_config", &text.to_string()));
        }
        Ok(Self {
            longest: fields.size(&["max_seq_length"])?,
            lower_case: fields.flag(&["do_lower_case"])?.unwrap_or(false),
        })
    }
}
