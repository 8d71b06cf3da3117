//! How tokenizers of bytes cut a text into words, by the names that GGUF files give them.

use serde_json::{Value, json};

use crate::Failure;

/// What a name means.
pub(super) struct PreTokenizer {
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    /// Whether a word that is a token is not merged from its pieces.
    pub(super) whole_words: bool,
    /// Whether the first token is added, if the file does not say.
    pub(super) bos: bool,
}

/// Words of Llama 3: up to three digits, letters with one sign before them, signs with the lines after them.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Words of Qwen 2: the same with single digits.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The tokenizer of a name.
///
/// # Errors
/// For a name that is not known.
pub(super) fn of_name(name: Option<&str>) -> Result<PreTokenizer, Failure> {
    let bytes = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
    let of = |steps: Vec<Value>| PreTokenizer {
        normalizer: Value::Null,
        pre_tokenizer: json!({ "type": "Sequence", "pretokenizers": steps }),
        whole_words: false,
        bos: false,
    };
    let split = |words: &str| {
        of(vec![
            json!({ "type": "Split", "pattern": { "Regex": words }, "behavior": "Isolated", "invert": false }),
            bytes(false),
        ])
    };
    Ok(match name.unwrap_or_default() {
        "gpt-2" | "olmo" | "phi-2" => of(vec![bytes(true)]),
        "smollm" | "starcoder" | "refact" => {
            of(vec![json!({ "type": "Digits", "individual_digits": true }), bytes(true)])
        }
        "llama3" | "llama-v3" | "llama-bpe" => PreTokenizer { whole_words: true, bos: true, ..split(LLAMA3) },
        "dbrx" | "smaug-bpe" | "glm4" => split(LLAMA3),
        "qwen2" => PreTokenizer { normalizer: json!({ "type": "NFC" }), ..split(QWEN2) },
        "deepseek-r1-qwen" => split(QWEN2),
        other => {
            return Err(format!(
                "`tokenizer.ggml.pre` is \"{other}\", which is unknown; known are \"gpt-2\", \"olmo\", \"phi-2\", \"smollm\", \"starcoder\", \
                 \"refact\", \"llama-bpe\", \"dbrx\", \"smaug-bpe\", \"glm4\", \"qwen2\" and \"deepseek-r1-qwen\": give --prompt-ids in place of text"
            )
            .into());
        }
    })
}
