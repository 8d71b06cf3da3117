//! What a caller says about a `config.json`.

use super::pair::Side;
use crate::config::DataType;

/// How a `config.json` is read; [`default`](Self::default) takes everything from the file and allows no unknown key.
///
/// ```
/// use burn_deepspeed_core::checkpoint::{ConfigOptions, HuggingFaceConfig};
/// use burn_deepspeed_core::config::DataType;
///
/// let record = serde_json::json!({
///     "model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2, "dtype": "float64", "my_note": "trained in May"
/// });
/// assert!(HuggingFaceConfig::from_json(record.clone()).is_err());
/// let options = ConfigOptions::default().with_dtype(DataType::Fp32).with_allowed_keys(["my_note"]);
/// assert!(HuggingFaceConfig::read(record, &options).is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ConfigOptions {
    /// Element type in place of the file's, which is then not read. Default: the file's, and fp32 if it states none.
    pub dtype: Option<DataType>,
    /// Keys that the caller knows to change nothing: they may be unknown, or have a value that is not supported. The key of a
    /// record is `record.key`. Default: none.
    pub allowed_keys: Vec<String>,
    /// Which encoder of a file that describes two, such as that of a whole CLIP. Default: none, which is an error for such a file.
    /// Other files do not need it.
    pub side: Option<Side>,
    /// Whether the language model of a model that also reads images is read alone: the record `text_config`, and the tensors of the
    /// language model. A file without images is read as it is. Default: false.
    pub text_only: bool,
}

impl ConfigOptions {
    /// Sets [`dtype`](Self::dtype).
    pub fn with_dtype(self, dtype: DataType) -> Self {
        Self { dtype: Some(dtype), ..self }
    }

    /// Sets [`side`](Self::side).
    pub fn with_side(self, side: Side) -> Self {
        Self { side: Some(side), ..self }
    }

    /// Sets [`text_only`](Self::text_only).
    pub fn with_text_only(self, text_only: bool) -> Self {
        Self { text_only, ..self }
    }

    /// Adds to [`allowed_keys`](Self::allowed_keys).
    pub fn with_allowed_keys(mut self, keys: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.allowed_keys.extend(keys.into_iter().map(Into::into));
        self
    }
}
