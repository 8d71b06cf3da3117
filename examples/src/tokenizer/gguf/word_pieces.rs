//! BERT's tokenizer in a GGUF file: the pieces of words, <https://arxiv.org/abs/1810.04805>.
//!
//! The file marks the beginning of a word with "▁", where BERT marks the other pieces with "##".

use serde_json::{Value, json};

use super::{CONTROL, Keys, vocabulary};
use crate::Failure;
use crate::tokenizer::{Template, pieces};

/// Tokens that llama.cpp takes where the file does not say: those of the first BERT.
const CLS: i64 = 101;
const SEP: i64 = 102;
const UNKNOWN: i64 = 100;

/// Most characters of a word; a longer one is unknown.
const LONGEST: usize = 100;

/// The tokens as BERT spells them. `kinds` are their types, if the file has them.
pub(super) fn words(tokens: &[String], kinds: &[i64]) -> Vec<String> {
    tokens.iter().enumerate().map(|(at, token)| spelled(token, kinds.get(at))).collect()
}

fn spelled(token: &str, kind: Option<&i64>) -> String {
    match token.strip_prefix('▁') {
        _ if kind == Some(&CONTROL) => token.into(),
        Some(word) if !word.is_empty() => word.into(),
        // Older files have no mark before `[unused1]` and the like.
        _ if token.starts_with('[') && token.ends_with(']') => token.into(),
        _ => format!("##{token}"),
    }
}

/// The record without its added tokens.
pub(super) fn record(keys: &Keys<'_>, words: &[String]) -> Result<Value, Failure> {
    let lower = keys.flag("ggml.normalizer.lowercase")?.unwrap_or(true);
    let vocabulary = vocabulary(words);
    if vocabulary.len() < words.len() {
        return Err("two tokens of `tokenizer.ggml.tokens` are the same piece of a word".into());
    }
    let unknown = word(keys, &["ggml.unknown_token_id"], UNKNOWN)?.0;
    Ok(json!({
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "lowercase": lower,
            "strip_accents": keys.flag("ggml.normalizer.strip_accents")?.unwrap_or(lower),
        },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": {
            "type": "WordPiece", "unk_token": unknown, "continuing_subword_prefix": "##",
            "max_input_chars_per_word": LONGEST, "vocab": vocabulary,
        },
    }))
}

/// `[CLS]` and `[SEP]` around a text. llama.cpp adds both, whatever the keys `add_…_token` say.
pub(super) fn template(keys: &Keys<'_>) -> Result<Template, Failure> {
    let cls = word(keys, &["ggml.bos_token_id", "ggml.cls_token_id"], CLS)?;
    let sep = word(keys, &["ggml.seperator_token_id"], SEP)?;
    Ok(pieces(Some(cls), Some(sep)))
}

/// The token whose id the first of these keys states, as BERT spells it.
fn word(keys: &Keys<'_>, names: &[&str], default: i64) -> Result<(String, u32), Failure> {
    let mut stated = (names[0], default);
    for name in names.iter().rev() {
        stated = keys.integer(name)?.map_or(stated, |&id| (name, id));
    }
    let (token, id) = keys.token_of(stated.0, stated.1)?;
    let kinds = keys.kinds(keys.texts("ggml.tokens")?.unwrap_or_default().len())?;
    Ok((spelled(&token, kinds.get(id as usize)), id))
}
