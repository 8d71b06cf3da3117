//! Tokenizers of GGUF files against those of `transformers` and of the models.

use burn_deepspeed::load::ConfigOptions;
use burn_deepspeed_examples::text::ChatTemplate;
use burn_deepspeed_examples::{ModelFiles, tokenizer};
use serde::Deserialize;

use crate::common::golden;

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

#[test]
fn texts_have_the_ids_of_the_model() {
    let folder = golden("gguf_tokenizers");
    let cases = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let cases: std::collections::BTreeMap<String, Vec<Case>> = serde_json::from_str(&cases).unwrap();
    assert_eq!(cases.len(), 7);
    let mut failed = Vec::new();
    for (name, cases) in cases {
        let tokenizer = tokenizer::open(&folder.join(format!("{name}.gguf"))).unwrap().unwrap();
        for Case { text, ids, decoded } in cases {
            let found = tokenizer.encode(text.as_str(), true).unwrap().get_ids().to_vec();
            if found != ids {
                failed.push(format!("{name}, {text:?}: {found:?}, expected {ids:?}"));
            }
            let found = tokenizer.decode(&ids, true).unwrap();
            if found != decoded {
                failed.push(format!("{name}, {text:?}: {found:?}, expected {decoded:?}"));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Opens a file of `tests/golden` in which `from` is `to`, of the same length.
#[track_caller]
fn refused(file: &str, from: &str, to: &str) -> String {
    let mut bytes = std::fs::read(golden(file)).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
    bytes.splice(at..at + from.len(), to.bytes());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.gguf");
    std::fs::write(&path, bytes).unwrap();
    tokenizer::open(&path).err().unwrap().to_string()
}

#[test]
fn what_is_not_understood_is_an_error() {
    for (from, to, expected) in [
        ("smollm", "smell7", "`tokenizer.ggml.pre` is \"smell7\", which is unknown"),
        ("gpt2", "rwkv", "`tokenizer.ggml.model` is \"rwkv\", which is not read"),
        ("ggml.merges", "ggml.merge5", "`tokenizer.ggml.merge5` is not understood"),
        ("ggml.tokens", "ggml.scores", "has no `tokenizer.ggml.tokens`"),
    ] {
        let error = refused("gguf_tokenizers/smollm.gguf", from, to);
        assert!(error.contains(expected), "{error}, expected {expected}");
    }
    let error = refused("gguf_encoders/bert/model.gguf", "▁dog", "▁cat");
    assert!(error.contains("are the same piece of a word"), "{error}");
}

#[test]
fn a_model_without_a_tokenizer_needs_ids() {
    assert!(tokenizer::open(&golden("gguf/llama/model.gguf")).unwrap().is_none());
    let named = tokenizer::named_tokens(&ModelFiles::open(&golden("gguf_tokenizers/llama.gguf")).unwrap()).unwrap();
    let named: Vec<_> = named.iter().map(|(key, token)| (*key, token.as_str())).collect();
    assert_eq!(named, [("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")]);
}

#[test]
fn words_of_bert_are_spelled_as_bert_spells_them() {
    for name in ["bert", "bert_cased"] {
        let tokenizer = tokenizer::open(&golden("gguf_encoders").join(name)).unwrap().unwrap();
        for (token, id) in [("[PAD]", 0), ("[unused0]", 1), ("the", 6), ("##s", 27), ("#", 26)] {
            assert_eq!(tokenizer.token_to_id(token), Some(id), "{token} of {name}");
        }
        let ids = tokenizer.encode("cats [MASK]", true).unwrap().get_ids().to_vec();
        assert_eq!(ids, [3, 8, 27, 5, 4], "{name}");
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "cats");
    }
}

#[test]
fn the_header_is_read_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::copy(golden("gguf_encoders/bert/model.gguf"), &path).unwrap();
    let files = ModelFiles::open(folder.path()).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(files.path(), path);
    assert_eq!(files.config(&ConfigOptions::default()).unwrap().vocab_size, 81);
    assert_eq!(tokenizer::of(&files).unwrap().unwrap().token_to_id("[CLS]"), Some(3));
    assert_eq!(tokenizer::named_tokens(&files).unwrap()["pad_token"], "[PAD]");
    let error = ChatTemplate::of(&files).err().unwrap().to_string();
    assert!(error.contains("has no chat template"), "{error}");
    // Weights are read from the file.
    let error = files.checkpoint().err().unwrap().to_string();
    assert!(error.contains(&path.display().to_string()), "{error}");
}
