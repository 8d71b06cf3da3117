//! The characters of a sum as tokens.

use serde_json::json;
use tokenizers::Tokenizer;

use burn_deepspeed_examples::Failure;

/// Fills the short rows of a batch.
pub const PAD: u32 = 0;
/// Ends a text.
pub const END: u32 = 1;
/// Tokens: padding, the end, ten digits, plus and equals.
pub const VOCAB_SIZE: usize = 14;

/// A tokenizer of the `tokenizers` library, one token per character. A character that is not in a sum is an error: there is
/// no token for unknown characters.
pub fn tokenizer() -> Result<Tokenizer, Failure> {
    let special = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        })
    };
    let words = ["<pad>", "<end>", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "+", "="];
    let vocab: serde_json::Map<_, _> = (0..).zip(words).map(|(id, word): (u32, _)| (word.into(), id.into())).collect();
    let record = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(PAD, "<pad>"), special(END, "<end>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": false},
        "post_processor": null,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    });
    record.to_string().parse()
}
