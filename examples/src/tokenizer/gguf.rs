//! The tokenizer of a GGUF file: the record of a `tokenizer.json` without pairs of bytes, whose model is built from the file's arrays. To write it as
//! JSON and read that would take seconds with Gemma's 262144 tokens.

mod word_pieces;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;

use burn_deepspeed::load::{Gguf, Metadata};
use serde_json::{Map, Value, json};
use tokenizers::models::bpe::{BPE, BpeBuilder, Merges, Vocab};
use tokenizers::{AddedToken, Tokenizer};

use super::Template;
use super::pre_tokenizers::{PreTokenizer, of_name};
use crate::Failure;

/// Keys below `tokenizer.` that are read, and those that only other programs need.
const KNOWN: &[&str] = &[
    "chat_template",
    "chat_templates",
    "ggml.add_bos_token",
    "ggml.add_eos_token",
    "ggml.add_sep_token",
    "ggml.add_space_prefix",
    "ggml.bos_token_id",
    "ggml.cls_token_id",
    "ggml.eom_token_id",
    "ggml.eos_token_id",
    "ggml.eot_token_id",
    "ggml.fim_mid_token_id",
    "ggml.fim_pad_token_id",
    "ggml.fim_pre_token_id",
    "ggml.fim_rep_token_id",
    "ggml.fim_sep_token_id",
    "ggml.fim_suf_token_id",
    "ggml.fsep_token_id",
    "ggml.mask_token_id",
    "ggml.merges",
    "ggml.middle_token_id",
    "ggml.model",
    "ggml.normalizer.lowercase",
    "ggml.normalizer.strip_accents",
    "ggml.padding_token_id",
    "ggml.pre",
    "ggml.prefix_token_id",
    "ggml.scores",
    "ggml.seperator_token_id",
    "ggml.suffix_token_id",
    "ggml.token_type",
    "ggml.token_type_count",
    "ggml.tokens",
    "ggml.unknown_token_id",
    "huggingface.json",
];

/// The model of tokens that [`word_pieces`] makes.
const BERT: &str = "bert";

/// Types of tokens: those that are matched before the text is split.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// The tokenizer of a file; `None` if it has none.
///
/// # Errors
/// If a key is not understood, or the vocabulary is damaged.
pub(super) fn open(gguf: &Gguf) -> Result<Option<Tokenizer>, Failure> {
    let keys = Keys(gguf);
    let Some(model) = keys.text("ggml.model")? else { return Ok(None) };
    keys.check()?;
    if model != BERT && keys.flag("ggml.add_sep_token")? == Some(true) {
        return Err("`tokenizer.ggml.add_sep_token` is true, which is not supported; supported: false".into());
    }
    let tokens = keys.texts("ggml.tokens")?.ok_or("the GGUF file has no `tokenizer.ggml.tokens`")?;
    let failed = |cause: &dyn Display| format!("cannot build the tokenizer of {}: {cause}", gguf.path().display());
    let of_record = |record| serde_json::from_value(record).map_err(|cause| failed(&cause));
    let of_pairs = |(record, pairs): (Value, BpeBuilder)| -> Result<Tokenizer, Failure> {
        let mut tokenizer: Tokenizer = of_record(record)?;
        tokenizer.with_model(pairs.build().map_err(|cause| failed(&cause))?);
        Ok(tokenizer)
    };
    let words;
    let (mut tokenizer, tokens) = match model {
        "gpt2" => (of_pairs(of_bytes(&keys, tokens)?)?, tokens),
        "llama" => (of_pairs(of_sentences(&keys, tokens)?)?, tokens),
        BERT => {
            words = word_pieces::words(tokens, keys.kinds(tokens.len())?);
            (of_record(word_pieces::record(&keys, &words)?)?, words.as_slice())
        }
        other => {
            let message = format!(
                "`tokenizer.ggml.model` is \"{other}\", which is not read; \"gpt2\", \"llama\" and \"bert\" are"
            );
            return Err(message.into());
        }
    };
    let added = added(&keys, tokens)?;
    if added.iter().any(|token| tokenizer.token_to_id(&token.content).is_none()) {
        return Err(failed(&"a token that is matched before the text is split has no id").into());
    }
    tokenizer.add_tokens(&added);
    Ok(Some(tokenizer))
}

/// What is added before and after a text.
///
/// # Errors
/// If the file says that a token is added and does not name it.
pub(super) fn template(gguf: &Gguf) -> Result<Template, Failure> {
    let keys = Keys(gguf);
    if keys.text("ggml.model")? == Some(BERT) {
        return word_pieces::template(&keys);
    }
    let default = match keys.text("ggml.model")? {
        Some("gpt2") => of_name(keys.text("ggml.pre")?)?.bos,
        _ => true,
    };
    let token = |wanted: bool, key: &str| -> Result<Option<(String, u32)>, Failure> {
        if !wanted {
            return Ok(None);
        }
        let token = keys.token(key)?;
        token.map(Some).ok_or_else(|| format!("the GGUF file adds a token that `tokenizer.{key}` does not name").into())
    };
    let bos = token(keys.flag("ggml.add_bos_token")?.unwrap_or(default), "ggml.bos_token_id")?;
    let eos = token(keys.flag("ggml.add_eos_token")?.unwrap_or(false), "ggml.eos_token_id")?;
    Ok(super::pieces(bos, eos))
}

/// The special tokens, under the names that a chat template knows.
pub(super) fn named_tokens(gguf: &Gguf) -> Result<BTreeMap<&'static str, String>, Failure> {
    const NAMES: [(&str, &str); 4] = [
        ("bos_token", "ggml.bos_token_id"),
        ("eos_token", "ggml.eos_token_id"),
        ("unk_token", "ggml.unknown_token_id"),
        ("pad_token", "ggml.padding_token_id"),
    ];
    let named = NAMES.into_iter().map(|(name, key)| Ok(Keys(gguf).token(key)?.map(|(text, _)| (name, text))));
    named.filter_map(Result::transpose).collect()
}

/// A tokenizer of bytes, each written as a printable character: GPT-2's and its relatives'.
fn of_bytes(keys: &Keys<'_>, tokens: &[String]) -> Result<(Value, BpeBuilder), Failure> {
    let PreTokenizer { normalizer, pre_tokenizer, whole_words, .. } = of_name(keys.text("ggml.pre")?)?;
    let merges = keys.texts("ggml.merges")?.ok_or("the GGUF file has no `tokenizer.ggml.merges`")?;
    let merges = merges.iter().map(|merge| match merge.split_once(' ') {
        Some((left, right)) if !right.contains(' ') => Ok((left.to_owned(), right.to_owned())),
        _ => Err(format!("`tokenizer.ggml.merges` has \"{merge}\", which is not two pieces").into()),
    });
    let merges = merges.collect::<Result<Merges, Failure>>()?;
    let pairs = BPE::builder().vocab_and_merges(ids(tokens), merges).ignore_merges(whole_words);
    let record = json!({
        "version": "1.0",
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false },
        "model": { "type": "BPE", "vocab": {}, "merges": [] },
    });
    Ok((record, pairs))
}

/// A tokenizer of SentencePiece whose pieces are merged by their scores. What no piece covers becomes bytes.
fn of_sentences(keys: &Keys<'_>, tokens: &[String]) -> Result<(Value, BpeBuilder), Failure> {
    let prefix = keys.flag("ggml.add_space_prefix")?.unwrap_or(true);
    let spelled = |token: &String| if keys.is_blank(token) { token.replace(' ', "▁") } else { token.clone() };
    let tokens: Vec<String> = tokens.iter().map(spelled).collect();
    // Gemma merges in the order of the vocabulary.
    let scores = match keys.is_gemma() {
        true => (0..tokens.len()).map(|at| -(at as f64)).collect(),
        false => keys.floats("ggml.scores")?.ok_or("the GGUF file has no `tokenizer.ggml.scores`")?.to_vec(),
    };
    if scores.len() != tokens.len() {
        return Err(format!("the GGUF file has {} tokens and {} scores", tokens.len(), scores.len()).into());
    }
    let spaces = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let normalizers = if prefix { vec![json!({ "type": "Prepend", "prepend": "▁" }), spaces] } else { vec![spaces] };
    let strip = prefix.then(|| json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    let decoders = [
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    let mut pairs = BPE::builder().vocab_and_merges(ids(&tokens), merges(&tokens, &scores));
    if let Some((unknown, _)) = keys.token("ggml.unknown_token_id")? {
        pairs = pairs.unk_token(unknown);
    }
    let record = json!({
        "version": "1.0",
        "normalizer": { "type": "Sequence", "normalizers": normalizers },
        "decoder": { "type": "Sequence", "decoders": decoders.into_iter().chain(strip).collect::<Vec<_>>() },
        "model": { "type": "BPE", "vocab": {}, "merges": [] },
    });
    Ok((record, pairs.byte_fallback(true).fuse_unk(true)))
}

/// The merges that make each token of two others, those of the highest score first.
fn merges(tokens: &[String], scores: &[f64]) -> Merges {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let mut merges = Vec::new();
    for (token, score) in tokens.iter().zip(scores) {
        let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        for (left, right) in cuts {
            if let (Some(one), Some(two)) = (ids.get(left), ids.get(right)) {
                merges.push((score, [*one, *two]));
            }
        }
    }
    merges.sort_unstable_by(|(score, ids), (other, others)| other.total_cmp(score).then(ids.cmp(others)));
    merges.into_iter().map(|(_, [one, two])| (tokens[one].clone(), tokens[two].clone())).collect()
}

fn ids(tokens: &[String]) -> Vocab {
    tokens.iter().zip(0..).map(|(token, id)| (token.clone(), id)).collect()
}

fn vocabulary(tokens: &[String]) -> Map<String, Value> {
    tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect()
}

/// The tokens that are matched before the text is split.
fn added(keys: &Keys<'_>, tokens: &[String]) -> Result<Vec<AddedToken>, Failure> {
    let kinds = keys.kinds(tokens.len())?;
    let is_whole = |token, kind| [CONTROL, USER_DEFINED].contains(kind) && !keys.is_blank(token);
    let whole = tokens.iter().zip(kinds).filter(|(token, kind)| is_whole(token, kind));
    Ok(whole.map(|(token, kind)| AddedToken::from(token.clone(), *kind == CONTROL).normalized(false)).collect())
}

/// The keys below `tokenizer.`.
struct Keys<'a>(&'a Gguf);

macro_rules! getters {
    ($($name:ident $variant:ident $type:ty: $expected:literal),*) => {$(
        fn $name(&self, key: &str) -> Result<Option<&'a $type>, Failure> {
            match self.0.value(&format!("tokenizer.{key}")) {
                None => Ok(None),
                Some(Metadata::$variant(value)) => Ok(Some(value)),
                Some(other) => Err(format!("`tokenizer.{key}` is {other}, and {} is expected", $expected).into()),
            }
        }
    )*};
}

impl<'a> Keys<'a> {
    getters!(
        text Text str: "a text",
        texts Texts [String]: "an array of texts",
        integers Integers [i64]: "an array of integers",
        floats Floats [f64]: "an array of floats",
        integer Integer i64: "an integer",
        truth Bool bool: "true or false"
    );

    /// The types of the tokens; empty if the file does not say.
    fn kinds(&self, tokens: usize) -> Result<&'a [i64], Failure> {
        let kinds = self.integers("ggml.token_type")?.unwrap_or_default();
        match kinds.is_empty() || kinds.len() == tokens {
            true => Ok(kinds),
            false => Err(format!("the GGUF file has {tokens} tokens and the types of {}", kinds.len()).into()),
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, Failure> {
        Ok(self.truth(key)?.copied())
    }

    fn is_gemma(&self) -> bool {
        matches!(self.0.value("general.architecture"), Some(Metadata::Text(name)) if name.starts_with("gemma"))
    }

    /// Whether a token is spelled with spaces, which Gemma does where a piece is several of them.
    fn is_blank(&self, token: &str) -> bool {
        self.is_gemma() && !token.is_empty() && token.chars().all(|sign| sign == ' ')
    }

    /// The token whose id a key states.
    fn token(&self, key: &str) -> Result<Option<(String, u32)>, Failure> {
        self.integer(key)?.map(|&id| self.token_of(key, id)).transpose()
    }

    /// The token `id`, which a key states.
    fn token_of(&self, key: &str, id: i64) -> Result<(String, u32), Failure> {
        let tokens = self.texts("ggml.tokens")?.unwrap_or_default();
        let token = usize::try_from(id).ok().and_then(|at| tokens.get(at)).zip(u32::try_from(id).ok());
        let (text, id) =
            token.ok_or_else(|| format!("`tokenizer.{key}` is {id}, and there are {} tokens", tokens.len()))?;
        Ok((text.clone(), id))
    }

    /// An error for a key that is not known: it may change the tokens.
    fn check(&self) -> Result<(), Failure> {
        let own = self.0.metadata().filter_map(|(key, _)| key.strip_prefix("tokenizer."));
        let is_known = |key: &&str| KNOWN.contains(key) || key.starts_with("chat_template.");
        match own.into_iter().find(|key| !is_known(key)) {
            None => Ok(()),
            Some(key) => Err(format!("`tokenizer.{key}` is not understood, and may change the tokens").into()),
        }
    }
}
