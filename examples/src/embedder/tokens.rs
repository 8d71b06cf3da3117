//! The tokenizer of an encoder of texts: its prompt, its truncation and padding, and rows of token ids.

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use burn_deepspeed::fields::Fields;
use burn_deepspeed::{AttentionMask, ConfigError};
use serde_json::{Value, json};
use tokenizers::normalizers::{Lowercase, Sequence};
use tokenizers::{NormalizerWrapper, PostProcessor, Tokenizer, TruncationParams};

use super::plan::Plan;
use crate::{Failure, ModelFiles, tokenizer};

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
    padding: Padding,
}

/// The tokens of a sentence.
pub struct Tokens {
    /// At least one; `[CLS]` and `[SEP]` included.
    pub ids: Vec<u32>,
    /// How many were left out, because the sentence is longer than the limit.
    pub cut: usize,
}

/// Rows of token ids, all of one length of at least 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRows {
    /// The ids, those of padding included.
    pub ids: Vec<Vec<u32>>,
    /// Whether each is a real token; others are hidden. `None` hides none.
    pub real: Option<Vec<Vec<bool>>>,
}

/// How texts are padded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Padding {
    /// To the longest text of a batch, with token 0. It is hidden, and its states are never read.
    Batch,
    /// To the longest that the model takes, with this token. Real tokens see it unless it is `hidden`.
    Longest { token: u32, width: usize, hidden: bool },
}

impl Sentences {
    /// Reads `tokenizer.json`, and `sentence_bert_config.json` for the longest sentence where the folder has one; else that is the
    /// `model_max_length` of `tokenizer_config.json`. It is never above what the model takes. `None` if there is no tokenizer.
    ///
    /// # Errors
    /// An error that names the file and the key.
    pub fn open(
        files: &ModelFiles,
        plan: &Plan<'_>,
        prompt: String,
        allowed: &[String],
    ) -> Result<Option<Self>, Failure> {
        let (max_positions, vocab_size) = (plan.longest(), plan.config.vocab_size);
        let Some(mut tokenizer) = tokenizer::of(files)? else { return Ok(None) };
        let folder = files.path();
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
        let padding = match plan.paths.padding_to_longest(&plan.config.fields()?)? {
            Some(default) => {
                let tokenizer::Padding { token, hidden } = tokenizer::padding(folder, &tokenizer)?;
                let token = token.map_or_else(|| u32::try_from(default), Ok);
                let token =
                    token.map_err(|_| format!("`pad_token_id` is {default}, which is not the id of a token"))?;
                if token as usize >= vocab_size {
                    return Err(outside(token, vocab_size));
                }
                Padding::Longest { token, width: limit, hidden }
            }
            None => Padding::Batch,
        };
        tokenizer.with_truncation(Some(TruncationParams { max_length: limit, ..Default::default() }))?;
        Ok(Some(Self { tokenizer, vocab_size, prompt, prompt_tokens, padding }))
    }

    /// Sentences as one batch.
    pub fn rows(&self, sentences: &[&Tokens]) -> TokenRows {
        let (token, width, hidden) = match self.padding {
            Padding::Batch => (0, sentences.iter().map(|sentence| sentence.ids.len()).max().unwrap_or(0), true),
            Padding::Longest { token, width, hidden } => (token, width, hidden),
        };
        let rest = |sentence: &&Tokens| width - sentence.ids.len().min(width);
        let padded = |sentence: &&Tokens| {
            sentence.ids.iter().copied().chain(std::iter::repeat_n(token, rest(sentence))).collect()
        };
        let real = |sentence: &&Tokens| {
            std::iter::repeat_n(true, sentence.ids.len()).chain(std::iter::repeat_n(false, rest(sentence))).collect()
        };
        TokenRows {
            ids: sentences.iter().map(padded).collect(),
            real: hidden.then(|| sentences.iter().map(real).collect()),
        }
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
        if let Some(&id) = ids.find(|&&id| id as usize >= self.vocab_size) {
            return Err(outside(id, self.vocab_size));
        }
        Ok(tokens)
    }
}

impl TokenRows {
    /// Rows and their length.
    pub fn dims(&self) -> [usize; 2] {
        [self.ids.len(), self.ids.first().map_or(0, Vec::len)]
    }

    /// An error unless the rows have one length of at least 1, up to `longest`, and ids below `vocab_size`.
    pub fn check(&self, longest: usize, vocab_size: usize) -> Result<(), Failure> {
        let [rows, width] = self.dims();
        let lengths = self.ids.iter().map(Vec::len).chain(self.real.iter().flatten().map(Vec::len));
        let marked = self.real.as_ref().map_or(rows, Vec::len);
        if width == 0 || marked != rows || lengths.into_iter().any(|length| length != width) {
            return Err("rows of tokens and their mask need one length of at least 1; pad the shorter ones".into());
        }
        if width > longest {
            return Err(format!("a row has {width} tokens, and the model takes {longest}; shorten it").into());
        }
        match self.ids.iter().flatten().find(|&&id| id as usize >= vocab_size) {
            Some(&id) => Err(outside(id, vocab_size)),
            None => Ok(()),
        }
    }

    /// The ids, `[B, T]`.
    pub fn ids<B: Backend>(&self, device: &B::Device) -> Tensor<B, 2, Int> {
        let ids: Vec<i64> = self.ids.iter().flatten().map(|&id| i64::from(id)).collect();
        Tensor::from_data(TensorData::new(ids, self.dims()), device)
    }

    /// The mask that hides padding.
    pub fn mask<B: Backend>(&self, device: &B::Device) -> AttentionMask<B> {
        let Some(real) = &self.real else { return AttentionMask::none() };
        let real: Vec<i64> = real.iter().flatten().map(|&real| i64::from(real)).collect();
        AttentionMask::from_padding(Tensor::from_data(TensorData::new(real, self.dims()), device))
    }
}

/// The error for a token that the model does not have.
fn outside(id: u32, vocab_size: usize) -> Failure {
    let remedy = "use the tokenizer.json that belongs to the checkpoint";
    format!("token {id} is not in the vocabulary of {vocab_size} ids; {remedy}").into()
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
