//! How a sentence encoder is opened.

/// How a sentence encoder is opened; [`default`](Self::default) takes everything from the checkpoint.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Keys of the checkpoint's JSON files that the caller knows to change nothing. Default: none.
    pub allowed_keys: Vec<String>,
    /// Name of the prompt before each sentence, one of `config_sentence_transformers.json`. Default: its `default_prompt_name`.
    pub prompt_name: Option<String>,
}
