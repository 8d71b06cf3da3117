//! Checkpoints of encoder-decoders: greedy texts against what `transformers` generated, in `tests/golden/seq2seq`.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Tensor};
use burn_deepspeed::InferenceBackend;
use burn_deepspeed::load::{Checkpoint, CheckpointWriter, ReadTensors, WriteTensors};
use burn_deepspeed_examples::embedder::Embedder;
use burn_deepspeed_examples::seq2seq::{Model, Options, Seq2Seq, Sources, check, generate};
use burn_deepspeed_examples::text::{self, Batch};
use burn_deepspeed_examples::tokenizer;
use serde_json::{Value, json};

use crate::common::{AnyBackend, golden, on_each_cpu_backend};

const FOLDERS: [&str; 5] = ["bart", "mt5", "t5", "t5_gated", "whisper"];

type B = AnyBackend;

fn folder(name: &str) -> PathBuf {
    golden("seq2seq").join(name)
}

fn open<B: InferenceBackend>(folder: &Path) -> Result<Model<B>, String> {
    let opened = Model::<B>::open(folder, &Options::default(), &Default::default());
    let (model, report) = opened.map_err(|error| error.to_string())?;
    assert!(report.missing.is_empty() && report.unexpected.is_empty(), "{}: {report}", folder.display());
    Ok(model)
}

fn refused(folder: &Path) -> String {
    open::<B>(folder).err().unwrap()
}

fn json_of(file: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

/// The rows of tokens that a golden file has, without padding, what the decoder starts with, and what they become.
fn rows(name: &str) -> [Vec<Vec<u32>>; 3] {
    let expected = json_of(&folder(name).join("expected.json"));
    let read = |key: &str| serde_json::from_value::<Vec<Vec<u32>>>(expected[key].clone()).unwrap();
    let lengths = read("attention_mask").into_iter().map(|row| row.iter().sum::<u32>() as usize);
    let sources = read("input_ids").into_iter().zip(lengths).map(|(row, length)| row[..length].to_vec()).collect();
    [sources, read("decoder_ids"), read("generated_ids")]
}

/// A copy of a checkpoint with another `config.json`.
fn changed(name: &str, change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let config = copy.path().join("config.json");
    let mut record = json_of(&config);
    change(&mut record);
    std::fs::write(&config, record.to_string()).unwrap();
    copy
}

/// Writes the tensors of a checkpoint anew under the names that `rename` gives them; one may have several, or none.
fn renamed(name: &str, copy: &Path, rename: impl Fn(&str) -> Vec<String>) {
    let checkpoint = Checkpoint::open(folder(name)).unwrap();
    let mut writer = CheckpointWriter::default();
    for old in checkpoint.names() {
        let shape = checkpoint.shape(old).unwrap().to_vec();
        for new in rename(old) {
            let device = Default::default();
            macro_rules! copied {
                ($dims:literal) => {{
                    let shape: [usize; $dims] = shape.clone().try_into().unwrap();
                    let tensor: Tensor<B, $dims> = checkpoint.tensor(old, shape, DType::F32, &device).unwrap();
                    writer.tensor(&new, tensor).unwrap();
                }};
            }
            match shape.len() {
                1 => copied!(1),
                2 => copied!(2),
                _ => copied!(3),
            }
        }
    }
    writer.save(copy.join("model.safetensors")).unwrap();
}

/// Rows whose sources have different lengths, all at once and with the first tokens of the decoder one at a time.
fn every_encoder_decoder_generates_what_transformers_generates<B: InferenceBackend>() {
    for name in FOLDERS {
        let (folder, model) = (folder(name), open::<B>(&folder(name)).unwrap());
        for chunk in [None, NonZeroUsize::new(1), NonZeroUsize::new(2)] {
            check::run(&model, &folder.join("expected.json"), chunk).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}

/// A row alone has no padding, and no mask.
fn a_row_alone_becomes_what_it_becomes_in_a_batch<B: InferenceBackend>() {
    for name in ["bart", "t5_gated"] {
        let model = open::<B>(&folder(name)).unwrap();
        let [sources, decoder, expected] = rows(name);
        for ((source, start), text) in sources.into_iter().zip(&decoder).zip(&expected) {
            let found = generate(&model, &Sources::Tokens(vec![source]), Some(start), text.len()).unwrap();
            assert_eq!(found, std::slice::from_ref(text), "{name}");
        }
    }
}

on_each_cpu_backend!(
    every_encoder_decoder_generates_what_transformers_generates,
    a_row_alone_becomes_what_it_becomes_in_a_batch,
);

#[test]
fn texts_become_the_tokens_of_the_tokenizer() {
    let tokenizer = tokenizer::open(&golden("encoders/roberta")).unwrap().unwrap();
    let sources = Sources::of_texts(&tokenizer, &["the red cat sat", "a dog"]).unwrap();
    assert_eq!(sources, Sources::Tokens(vec![vec![0, 8, 20, 10, 13, 2], vec![0, 9, 11, 2]]));
    let found = generate(&open::<B>(&folder("t5")).unwrap(), &sources, None, 3).unwrap();
    assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3]);
}

#[test]
fn a_difference_is_found() {
    let model = open::<B>(&folder("t5")).unwrap();
    let copy = tempfile::tempdir().unwrap();
    let file = copy.path().join("expected.json");
    for (change, found) in [
        (("prompt_logits", 1), "the prompt logits differ by"),
        (("generated_ids", 2), "row 2 differs"),
        (("attention_mask", 0), "must mark the padding of `input_ids`, on the right"),
    ] {
        let mut expected = json_of(&folder("t5").join("expected.json"));
        let (key, row) = change;
        let value = &mut expected[key][row][3];
        *value = if key == "prompt_logits" { json!(value.as_f64().unwrap() + 0.01) } else { json!(0) };
        std::fs::write(&file, expected.to_string()).unwrap();
        let error = check::run(&model, &file, None).unwrap_err().to_string();
        assert!(error.contains(found), "{error}");
    }
}

#[test]
fn texts_end_at_the_end_token_and_start_with_that_of_the_configuration() {
    let [sources, _, _] = rows("bart");
    let sources = Sources::Tokens(sources);
    let free = generate(&open::<B>(&folder("bart")).unwrap(), &sources, None, 10).unwrap();
    assert!(free.iter().all(|row| row.len() == 10));
    // Rows end at different tokens; those that ended wait for the others.
    let end = free[1][3];
    let copy = changed("bart", |record| record["eos_token_id"] = json!([end]));
    let model = open::<B>(copy.path()).unwrap();
    assert_eq!(model.config().start_token, Some(2));
    let until = |row: &Vec<u32>| row.iter().copied().take_while(|&id| id != end).collect::<Vec<_>>();
    let ended = generate(&model, &sources, Some(&[2]), 10).unwrap();
    assert_eq!(ended, free.iter().map(until).collect::<Vec<_>>());
    assert!(ended[1].len() <= 3 && ended.iter().any(|row| row.len() > ended[1].len()));
    assert_eq!(generate(&model, &sources, None, 0).unwrap(), vec![Vec::<u32>::new(); 3]);
    let copy = changed("bart", |record| record["decoder_start_token_id"] = Value::Null);
    let error = generate(&open::<B>(copy.path()).unwrap(), &sources, None, 1).unwrap_err().to_string();
    assert!(error.contains("`decoder_start_token_id` is missing"), "{error}");
}

/// Old files repeat the shared embedding, or have it under another name; bare models have no prefix; an output embedding may be its own.
#[test]
fn embeddings_are_found_under_the_names_that_files_have() {
    let shared = "shared.weight";
    let own = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"].map(String::from);
    let names: [(&str, Vec<String>); 5] = [
        ("both stacks", own.to_vec()),
        ("all", [&own[..], &[shared.to_owned(), "lm_head.weight".into()]].concat()),
        ("the encoder alone", own[..1].to_vec()),
        ("the decoder alone", own[1..].to_vec()),
        ("the output alone", vec!["lm_head.weight".into()]),
    ];
    let unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight";
    let bias = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
    for (what, new) in names {
        let copy = changed("t5", |_| ());
        renamed("t5", copy.path(), |name| match name {
            name if name == shared => new.clone(),
            name if name == bias => vec![name.into(), unused.into()],
            other => vec![other.into()],
        });
        let model = open::<B>(copy.path()).unwrap_or_else(|error| panic!("{what}: {error}"));
        check::run(&model, &copy.path().join("expected.json"), None).unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    let copy = changed("t5", |_| ());
    renamed("t5", copy.path(), |name| if name == shared { vec![] } else { vec![name.into()] });
    assert!(refused(copy.path()).contains("`shared.weight`"));

    let copy = changed("bart", |_| ());
    renamed("bart", copy.path(), |name| vec![name.strip_prefix("model.").unwrap_or(name).into()]);
    check::run(&open::<B>(copy.path()).unwrap(), &copy.path().join("expected.json"), None).unwrap();
    let copy = changed("bart", |record| record["tie_word_embeddings"] = json!(false));
    assert!(refused(copy.path()).contains("`lm_head.weight`"));
}

#[test]
fn tensors_that_no_one_reads_are_errors() {
    let copy = changed("whisper", |_| ());
    let bias = "model.encoder.layers.0.self_attn.v_proj.bias";
    renamed("whisper", copy.path(), |name| match name == bias {
        true => vec![name.into(), name.replace("v_proj", "k_proj")],
        false => vec![name.into()],
    });
    assert!(refused(copy.path()).contains("model.encoder.layers.0.self_attn.k_proj.bias"));
    // The table of positions is compared with the configuration.
    let copy = changed("bart", |record| record["max_position_embeddings"] = json!(20));
    let error = refused(copy.path());
    assert!(error.contains("model.encoder.embed_positions.weight") && error.contains("[22, 24]"), "{error}");
    let copy = changed("bart", |record| record["activation_function"] = json!("mish"));
    assert!(refused(copy.path()).contains("`activation_function` is \"mish\""));
    let copy = changed("t5_gated", |record| {
        record["feed_forward_proj"] = json!("gated-mish");
        record["dense_act_fn"] = json!("mish");
    });
    assert!(refused(copy.path()).contains("`feed_forward_proj` is \"mish\""));
}

#[test]
fn sources_that_the_encoder_cannot_take_are_errors() {
    let message = |name: &str, rows: &[&[u32]], capacity: usize| {
        let rows = rows.iter().map(|row| row.to_vec()).collect();
        open::<B>(&folder(name)).unwrap().session(&Sources::Tokens(rows), capacity).err().unwrap().to_string()
    };
    let long: Vec<u32> = vec![7; 20];
    assert!(message("bart", &[&[7], &long], 4).contains("row 1 has 20 tokens, and the model takes 19"));
    assert!(message("bart", &[&[7]], 20).contains("20 tokens were asked for"));
    assert!(message("t5", &[&[7, 61]], 4).contains("token 61 is not in the vocabulary, whose ids go from 0 to 60"));
    assert!(message("t5", &[&[7], &[]], 4).contains("row 1 has no tokens"));
    assert!(message("t5", &[], 4).contains("no rows"));
    assert!(message("whisper", &[&[7]], 4).contains("a whisper reads sound and no tokens"));
    // T5 has no table of positions.
    open::<B>(&folder("t5")).unwrap().session(&Sources::Tokens(vec![long]), 4).unwrap();

    let model = open::<B>(&folder("whisper")).unwrap();
    let copy = tempfile::tempdir().unwrap();
    let file = copy.path().join("features.safetensors");
    let sources = Sources::Features(file.clone());
    let mut writer = CheckpointWriter::default();
    writer.tensor("short", Tensor::<B, 2>::ones([7, 21], &Default::default())).unwrap();
    writer.save(&file).unwrap();
    let error = model.session(&sources, 4).err().unwrap().to_string();
    assert!(error.contains("`short`") && error.contains("[7, 21]") && error.contains("features [7, 22]"), "{error}");
    let error = open::<B>(&folder("bart")).unwrap().session(&sources, 4).err().unwrap().to_string();
    assert!(error.contains("a bart reads tokens"), "{error}");
    // Single tensors and batches are rows, in the order of their names.
    let mut writer = CheckpointWriter::default();
    writer.tensor("a", Tensor::<B, 2>::ones([7, 22], &Default::default())).unwrap();
    writer.tensor("b", Tensor::<B, 3>::ones([2, 7, 22], &Default::default())).unwrap();
    writer.save(&file).unwrap();
    assert_eq!(model.session(&sources, 4).unwrap().rows(), 3);
}

#[test]
fn first_tokens_that_the_decoder_cannot_take_are_errors() {
    let model = open::<B>(&folder("t5")).unwrap();
    let message = |ids: Vec<Vec<i64>>, mask: Vec<Vec<i64>>| {
        let mut session = model.session(&Sources::Tokens(vec![vec![7], vec![8, 9]]), 6).unwrap();
        session.prefill(&Batch { ids, mask }, None).unwrap_err().to_string()
    };
    let one = "need one length of at least 1, without padding";
    assert!(message(vec![vec![0, 1]; 2], vec![vec![0, 1], vec![1, 1]]).contains(one));
    assert!(message(vec![vec![0, 1], vec![0]], vec![vec![1, 1], vec![1]]).contains(one));
    assert!(message(vec![vec![]; 2], vec![vec![]; 2]).contains(one));
    assert!(message(vec![vec![0]], vec![vec![1]]).contains("1 rows for the decoder and 2 sources"));
    assert!(message(vec![vec![61]; 2], vec![vec![1]; 2]).contains("token 61 is not in the vocabulary"));
    assert!(message(vec![vec![5; 7]; 2], vec![vec![1; 7]; 2]).contains("the KV cache holds 0 of 6 tokens"));
}

#[test]
fn other_programs_name_the_one_that_runs_it() {
    let folder = folder("t5");
    let device = Default::default();
    let errors = [
        text::Model::<B>::open(&folder, &text::Options::default(), &device).err().unwrap().to_string(),
        Embedder::<B>::open(&folder, &device).err().unwrap().to_string(),
    ];
    for error in errors {
        assert!(error.contains("an encoder-decoder") && error.contains("`seq2seq`"), "{error}");
    }
    let error = refused(&golden("families/qwen3"));
    assert!(error.contains("the example `generate` runs a decoder"), "{error}");
    let error = refused(&golden("encoders/bert"));
    assert!(error.contains("the example `embed` runs an encoder"), "{error}");
}
