//! Tokenizers of GGUF files against those of `transformers` and of the models.

use burn_deepspeed_examples::tokenizer;
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
