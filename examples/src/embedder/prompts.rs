//! The prompts of `config_sentence_transformers.json`: texts before each sentence.

use std::path::Path;

use burn_deepspeed::ConfigError;
use burn_deepspeed::fields::Fields;
use serde_json::Value;

use super::options::Options;
use crate::Failure;

/// Keys that change nothing: versions, and the function that compares two vectors.
const HARMLESS: &[&str] = &["__version__", "similarity_fn_name"];

/// The text before each sentence of the model in `folder`; empty for most.
pub fn read(folder: &Path, options: &Options) -> Result<String, Failure> {
    let file = folder.join("config_sentence_transformers.json");
    let record = super::json(&file)?.unwrap_or_else(|| Value::Object(Default::default()));
    prompt(&record, options).map_err(|error| error.in_file(&file).into())
}

fn prompt(record: &Value, options: &Options) -> Result<String, ConfigError> {
    let fields = Fields::new(record)?.allowing(&options.allowed_keys);
    let known = [HARMLESS, &["default_prompt_name", "model_type", "prompts"]].concat();
    fields.check_keys(&known, "a sentence encoder")?;
    if fields.text(&["model_type"])?.is_some_and(|kind| kind != "SentenceTransformer") {
        return Err(fields.unsupported("model_type", "\"SentenceTransformer\", which gives one vector for a text"));
    }
    let prompts = fields.record("prompts")?;
    let names: Vec<&str> = prompts.iter().flat_map(Fields::keys).collect();
    let text = |name: &str| prompts.as_ref().map_or(Ok(None), |prompts| prompts.text(&[name]));
    let unknown = |key: &str, name: &str| ConfigError::Unsupported {
        key: key.into(),
        value: format!("\"{name}\""),
        supported: match names.is_empty() {
            true => "nothing: the checkpoint has no prompts".into(),
            false => names.join(", "),
        },
    };
    match (&options.prompt_name, fields.text(&["default_prompt_name"])?) {
        (Some(name), _) => Ok(text(name)?.ok_or_else(|| unknown("--prompt-name", name))?.into()),
        (None, Some(name)) => Ok(text(name)?.ok_or_else(|| unknown("default_prompt_name", name))?.into()),
        (None, None) => Ok(String::new()),
    }
}
