//! How an encoder is opened.

use burn_deepspeed::config::{ActivationRounding, MatrixFormat};

/// How an encoder is opened; [`default`](Self::default) takes everything from the checkpoint.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Keys of the checkpoint's JSON files, or of its GGUF file, that the caller knows to change nothing. Default: none.
    pub allowed_keys: Vec<String>,
    /// Name of the prompt before each sentence, one of `config_sentence_transformers.json`. Default: its `default_prompt_name`.
    pub prompt_name: Option<String>,
    /// Whether the encoder of images is opened, of a checkpoint that has one of texts, too. Default: that of texts.
    pub images: bool,
    /// How matrices and the embedding of tokens are kept. Default: in f32.
    pub matrices: MatrixFormat,
    /// Whether the inputs of projections are rounded. Default: never.
    pub rounding: ActivationRounding,
}
