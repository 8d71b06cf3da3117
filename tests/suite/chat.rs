//! Chat templates: what `transformers` renders, and where a folder keeps them.

use std::fs::write;

use burn_deepspeed_examples::ModelFiles;
use burn_deepspeed_examples::text::{ChatTemplate, Message};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::common::golden;

#[derive(Deserialize)]
struct File {
    tokens: Value,
    cases: Vec<Case>,
}

/// A conversation, a template, and the text or the error of it.
#[derive(Deserialize)]
struct Case {
    name: String,
    template: String,
    messages: Vec<Turn>,
    text: Option<String>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Turn {
    role: String,
    content: String,
}

/// A folder with this `tokenizer_config.json`.
fn folder(config: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    folder
}

const HELLO: [Message<'_>; 1] = [Message { role: "user", content: "hello" }];

#[test]
fn templates_render_as_in_transformers() {
    let file: File = serde_json::from_str(&std::fs::read_to_string(golden("chat.json")).unwrap()).unwrap();
    assert!(file.cases.len() >= 15);
    for case in file.cases {
        let mut config = file.tokens.clone();
        config["chat_template"] = case.template.into();
        let template = ChatTemplate::open(folder(&config).path()).unwrap();
        let turns = case.messages.iter().map(|turn| Message { role: &turn.role, content: &turn.content });
        let rendered = template.render(&turns.collect::<Vec<_>>());
        match (case.text, case.error) {
            (Some(text), None) => assert_eq!(rendered.unwrap(), text, "{}", case.name),
            (None, Some(expected)) => {
                let error = rendered.unwrap_err().to_string();
                assert!(error.contains(&expected) && error.contains("tokenizer_config.json"), "{}: {error}", case.name);
            }
            _ => panic!("{} has neither a text nor an error", case.name),
        }
    }
}

#[test]
fn the_file_of_the_template_wins_and_lists_have_a_default() {
    let rendered = |folder: &tempfile::TempDir| ChatTemplate::open(folder.path()).unwrap().render(&HELLO).unwrap();
    let list = json!({ "chat_template": [
        { "name": "tool_use", "template": "no" }, { "name": "default", "template": "list {{ messages[0].content }}" }] });
    let folder_of_list = folder(&list);
    assert_eq!(rendered(&folder_of_list), "list hello");
    write(folder_of_list.path().join("chat_template.json"), json!({ "chat_template": "json" }).to_string()).unwrap();
    assert_eq!(rendered(&folder_of_list), "json");
    write(folder_of_list.path().join("chat_template.jinja"), "{{ bos_token }}file").unwrap();
    assert_eq!(rendered(&folder_of_list), "file");
    let year = rendered(&folder(&json!({ "chat_template": "{{ strftime_now('%d %b %Y') }}" })));
    assert!(year.len() == 11 && year[7..].parse::<u16>().is_ok_and(|year| year >= 2026), "{year}");
}

#[test]
fn a_folder_without_a_usable_template_is_an_error_with_a_remedy() {
    let error = |config: Value| {
        let folder = folder(&config);
        match ChatTemplate::open(folder.path()) {
            Ok(template) => template.render(&HELLO).unwrap_err().to_string(),
            Err(error) => error.to_string(),
        }
    };
    let without = error(json!({ "bos_token": "<s>" }));
    assert!(without.contains("has no chat template") && without.contains("without --chat"), "{without}");
    let unnamed = error(json!({ "chat_template": [{ "name": "rag", "template": "" }] }));
    assert!(unnamed.contains("chat_template") && unnamed.contains("\"default\""), "{unnamed}");
    let number = error(json!({ "chat_template": 5 }));
    assert!(number.contains("chat_template") && number.contains("tokenizer_config.json"), "{number}");
    let open_block = error(json!({ "chat_template": "{% for message in messages %}" }));
    assert!(open_block.contains("cannot read the chat template of"), "{open_block}");
    let unknown = error(json!({ "chat_template": "{{ messages[0].content.reversed() }}" }));
    assert!(unknown.contains("fails") && unknown.contains("reversed"), "{unknown}");
    let format = error(json!({ "chat_template": "{{ strftime_now('%') }}" }));
    assert!(format.contains("fails"), "{format}");
}

/// A template writes the special tokens, so the tokenizer adds none.
#[test]
fn a_conversation_is_a_prompt() {
    use burn_deepspeed_examples::text::Source;
    use clap::Parser;

    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        source: Source,
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let tokens = ["<s>", "</s>", "a", "b", "S"];
    let vocab: serde_json::Map<_, _> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).into(), id.into())).collect();
    let special = |id: usize| {
        json!({ "id": id, "content": tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true })
    };
    let file = json!({ "version": "1.0", "added_tokens": [special(0), special(1)], "model": { "type": "BPE", "vocab": vocab, "merges": [] } });
    write(path.join("tokenizer.json"), file.to_string()).unwrap();
    let template = "{{ bos_token }}{% for m in messages %}{{ 'S' if m.role == 'system' }}{{ m.content }}{{ eos_token }}{% endfor %}";
    let config = json!({ "add_bos_token": true, "bos_token": "<s>", "eos_token": "</s>", "chat_template": template });
    write(path.join("tokenizer_config.json"), config.to_string()).unwrap();
    let ids = |arguments: &[&str]| {
        let arguments = Arguments::try_parse_from(["generate", "--prompt", "ab"].iter().chain(arguments));
        let files = ModelFiles::open(path).unwrap();
        arguments.map(|arguments| arguments.source.read(&files).unwrap().ids).map_err(|error| error.to_string())
    };
    assert_eq!(ids(&[]).unwrap(), [0, 2, 3]);
    assert_eq!(ids(&["--chat"]).unwrap(), [0, 2, 3, 1]);
    assert_eq!(ids(&["--chat", "--system", "b"]).unwrap(), [0, 4, 3, 1, 2, 3, 1]);
    assert!(ids(&["--system", "b"]).unwrap_err().contains("--chat"));
}
