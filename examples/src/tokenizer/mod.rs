//! The tokenizer of a checkpoint: the one place where a `tokenizer.json`, or that of a GGUF file, is opened.
//!
//! Padding and truncation are left out. They are whatever state the file was saved in, and would pad a prompt or cut it.

mod gguf;
mod pre_tokenizers;

use std::collections::BTreeMap;
use std::path::Path;

use burn_deepspeed::ConfigError;
use burn_deepspeed::config::read_json;
use burn_deepspeed::fields::Fields;
use serde_json::Value;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{NormalizerWrapper, Tokenizer};

use crate::{Failure, ModelFiles};

/// Opens the tokenizer of a folder or of a GGUF file; `None` if it has none.
///
/// What `tokenizer_config.json` says wins over `tokenizer.json`, as in `transformers`:
///
/// - `add_bos_token` and `add_eos_token`, if one of them is there, take the place of the post-processor.
/// - `do_lower_case`, `strip_accents` and `tokenize_chinese_chars` are those of BERT's normalizer.
///
/// # Errors
/// If a file is damaged, or names a token that the tokenizer does not have.
pub fn open(path: &Path) -> Result<Option<Tokenizer>, Failure> {
    of(&ModelFiles::open(path)?)
}

/// The same for files that were opened.
///
/// # Errors
/// Those of [`open`].
pub fn of(files: &ModelFiles) -> Result<Option<Tokenizer>, Failure> {
    let folder = match files {
        ModelFiles::Folder(folder) => folder,
        ModelFiles::Gguf(file) => {
            let Some(mut tokenizer) = gguf::open(file)? else { return Ok(None) };
            post_process(&mut tokenizer, gguf::template(file)?)?;
            return Ok(Some(tokenizer));
        }
    };
    let file = folder.join("tokenizer.json");
    if !file.exists() {
        return Ok(None);
    }
    let mut tokenizer =
        Tokenizer::from_file(&file).map_err(|cause| format!("cannot read {}: {cause}", file.display()))?;
    tokenizer.with_truncation(None)?;
    tokenizer.with_padding(None);
    let file = folder.join("tokenizer_config.json");
    if file.exists() {
        let record = read_json(&file)?;
        normalize(&record, &mut tokenizer).map_err(|error| error.in_file(&file))?;
        let template = template(&record, &tokenizer).map_err(|error| error.in_file(&file))?;
        if let Some(template) = template {
            post_process(&mut tokenizer, template)?;
        }
    }
    Ok(Some(tokenizer))
}

/// Sets what is added before and after a text.
fn post_process(tokenizer: &mut Tokenizer, (template, tokens): Template) -> Result<(), Failure> {
    let template = TemplateProcessing::builder().try_single(template)?.special_tokens(tokens).build();
    tokenizer.with_post_processor(Some(template.map_err(|cause| cause.to_string())?));
    Ok(())
}

/// The longest text that `tokenizer_config.json` states, in tokens; `None` if it states none that fits memory.
///
/// # Errors
/// If the file is damaged.
pub fn model_max_length(folder: &Path) -> Result<Option<usize>, Failure> {
    let file = folder.join("tokenizer_config.json");
    if !file.exists() {
        return Ok(None);
    }
    let record = read_json(&file)?;
    let length = Fields::new(&record).and_then(|fields| fields.number(&["model_max_length"]));
    let length = length.map_err(|error| error.in_file(&file))?;
    // "No limit" is written as 10^30.
    Ok(length.filter(|&length| length < 1e15).map(|length| length as usize))
}

/// The special tokens that `tokenizer_config.json`, or a GGUF file, names, with their keys.
///
/// # Errors
/// If the file is damaged.
pub fn named_tokens(files: &ModelFiles) -> Result<BTreeMap<&'static str, String>, Failure> {
    const KEYS: [&str; 7] =
        ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
    let folder = match files {
        ModelFiles::Folder(folder) => folder,
        ModelFiles::Gguf(gguf) => return gguf::named_tokens(gguf),
    };
    let file = folder.join("tokenizer_config.json");
    if !file.exists() {
        return Ok(BTreeMap::new());
    }
    let record = read_json(&file)?;
    let named = Fields::new(&record).and_then(|fields| {
        let token = |key| Ok(token_text(&fields, key)?.map(|text| (key, text.to_owned())));
        KEYS.into_iter().filter_map(|key| token(key).transpose()).collect()
    });
    Ok(named.map_err(|error| error.in_file(&file))?)
}

/// How `tokenizer_config.json` says that texts are padded.
pub struct Padding {
    /// The token of padding; `None` if it names none.
    pub token: Option<u32>,
    /// Whether padding is hidden: unless `model_input_names` leaves out `attention_mask`.
    pub hidden: bool,
}

/// Reads how texts are padded.
///
/// # Errors
/// If the file is damaged, or names a token that the tokenizer does not have.
pub fn padding(folder: &Path, tokenizer: &Tokenizer) -> Result<Padding, Failure> {
    const INPUTS: &str = "model_input_names";
    let file = folder.join("tokenizer_config.json");
    if !file.exists() {
        return Ok(Padding { token: None, hidden: true });
    }
    let record = read_json(&file)?;
    let read = || {
        let fields = Fields::new(&record)?;
        let token = special_token(&fields, "pad_token", tokenizer)?.map(|(_, id)| id);
        let inputs = fields.list(INPUTS)?;
        let names = inputs.map(|names| names.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        match names {
            Some(None) => Err(fields.wrong(INPUTS, "a list of names")),
            names => {
                Ok(Padding { token, hidden: names.flatten().is_none_or(|names| names.contains(&"attention_mask")) })
            }
        }
    };
    read().map_err(|error: ConfigError| error.in_file(&file).into())
}

/// Changes BERT's normalizer, if the tokenizer has it, to what `tokenizer_config.json` says.
fn normalize(record: &Value, tokenizer: &mut Tokenizer) -> Result<(), ConfigError> {
    let fields = Fields::new(record)?;
    let (lower, chinese) = (fields.flag(&["do_lower_case"])?, fields.flag(&["tokenize_chinese_chars"])?);
    let accents = match fields.is_null("strip_accents") {
        true => Some(None), // they are stripped where text becomes lower case
        false => fields.flag(&["strip_accents"])?.map(Some),
    };
    let Some(NormalizerWrapper::BertNormalizer(own)) = tokenizer.get_normalizer() else { return Ok(()) };
    let changed = BertNormalizer::new(
        own.clean_text,
        chinese.unwrap_or(own.handle_chinese_chars),
        accents.unwrap_or(own.strip_accents),
        lower.unwrap_or(own.lowercase),
    );
    tokenizer.with_normalizer(Some(changed));
    Ok(())
}

/// The pieces of a text, and the ids of the tokens among them.
type Template = (Vec<String>, Vec<(String, u32)>);

/// What is added before and after a text, if `tokenizer_config.json` says so.
fn template(record: &Value, tokenizer: &Tokenizer) -> Result<Option<Template>, ConfigError> {
    let fields = Fields::new(record)?;
    let (bos, eos) = (fields.flag(&["add_bos_token"])?, fields.flag(&["add_eos_token"])?);
    if bos.is_none() && eos.is_none() {
        return Ok(None);
    }
    // Without a token there is nothing to add.
    let token = |wanted: Option<bool>, key: &'static str| match wanted {
        Some(true) => special_token(&fields, key, tokenizer),
        _ => Ok(None),
    };
    Ok(Some(pieces(token(bos, "bos_token")?, token(eos, "eos_token")?)))
}

/// A text between two tokens.
fn pieces(bos: Option<(String, u32)>, eos: Option<(String, u32)>) -> Template {
    let piece = |token: &Option<(String, u32)>| token.as_ref().map(|(text, _)| text.clone());
    let pieces = [piece(&bos), Some("$A".into()), piece(&eos)].into_iter().flatten().collect();
    (pieces, bos.into_iter().chain(eos).collect())
}

/// A token that `tokenizer_config.json` names, and its id.
fn special_token(
    fields: &Fields<'_>,
    key: &'static str,
    tokenizer: &Tokenizer,
) -> Result<Option<(String, u32)>, ConfigError> {
    let Some(text) = token_text(fields, key)? else { return Ok(None) };
    match tokenizer.token_to_id(text) {
        Some(id) => Ok(Some((text.into(), id))),
        None => Err(fields.unsupported(key, "a token of tokenizer.json")),
    }
}

/// The text of a token that `tokenizer_config.json` names, as a text or as a record with its `content`.
fn token_text<'a>(fields: &Fields<'a>, key: &'static str) -> Result<Option<&'a str>, ConfigError> {
    match fields.value(key) {
        None => Ok(None),
        Some(Value::Object(_)) => fields.record(key)?.map_or(Ok(None), |record| record.text(&["content"])),
        Some(_) => fields.text(&[key]),
    }
}
