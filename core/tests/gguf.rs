//! GGUF files: headers, damaged ones too, and reads by range.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use burn_deepspeed_core::block::BlockFormat;
use burn_deepspeed_core::checkpoint::{Checkpoint, ConfigOptions, Floats, Gguf, HuggingFaceConfig, Metadata};
use burn_deepspeed_core::element::ElementType;
use burn_deepspeed_core::error::WeightError;
use serde_json::json;

/// Writes a GGUF file.
#[derive(Clone)]
struct Writer {
    version: u32,
    entries: Vec<(String, Vec<u8>)>,
    /// Name, dimensions from the contiguous one, type, offset.
    tensors: Vec<(String, Vec<u64>, u32, u64)>,
    data: Vec<u8>,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn typed(kind: u32, value: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes(), value].concat()
}

fn array(kind: u32, count: u64, values: &[u8]) -> Vec<u8> {
    typed(9, &[&kind.to_le_bytes()[..], &count.to_le_bytes(), values].concat())
}

impl Writer {
    fn new() -> Self {
        Self { version: 3, entries: Vec::new(), tensors: Vec::new(), data: Vec::new() }
    }

    fn with(mut self, key: &str, value: Vec<u8>) -> Self {
        self.entries.push((key.into(), value));
        self
    }

    fn integer(self, key: &str, value: u32) -> Self {
        self.with(key, typed(4, &value.to_le_bytes()))
    }

    fn float(self, key: &str, value: f32) -> Self {
        self.with(key, typed(6, &value.to_le_bytes()))
    }

    fn architecture(self, name: &str) -> Self {
        self.with("general.architecture", typed(8, &text(name)))
    }

    /// A tensor behind the others.
    fn tensor(mut self, name: &str, dimensions: &[u64], kind: u32, bytes: &[u8]) -> Self {
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.tensors.push((name.into(), dimensions.into(), kind, self.data.len() as u64));
        self.data.extend(bytes);
        self
    }

    fn floats(self, name: &str, dimensions: &[u64]) -> Self {
        let count = dimensions.iter().product::<u64>();
        let bytes: Vec<u8> = (0..count).flat_map(|at| (at as f32).to_le_bytes()).collect();
        self.tensor(name, dimensions, 0, &bytes)
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            bytes.extend(text(key));
            bytes.extend(value);
        }
        for (name, dimensions, kind, offset) in &self.tensors {
            bytes.extend(text(name));
            bytes.extend((dimensions.len() as u32).to_le_bytes());
            dimensions.iter().for_each(|size| bytes.extend(size.to_le_bytes()));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.data);
        bytes
    }

    fn save(&self) -> (tempfile::TempDir, PathBuf) {
        file(&self.bytes())
    }

    #[track_caller]
    fn refused(&self, expected: &str) {
        refused(&self.bytes(), expected);
    }
}

fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

#[track_caller]
fn refused(bytes: &[u8], expected: &str) {
    let (_folder, path) = file(bytes);
    let error = Gguf::open(path).unwrap_err();
    assert!(matches!(error, WeightError::File { .. }), "{error}");
    assert!(error.to_string().contains(expected), "{error}, expected {expected}");
}

/// A LLaMA of one layer: 2 query heads over 1 key/value head of 4 features, 8 features, 6 in the MLP, 5 tokens.
fn llama() -> Writer {
    let sizes = [
        ("block_count", 1),
        ("context_length", 32),
        ("embedding_length", 8),
        ("feed_forward_length", 6),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
    ];
    let writer = Writer::new().architecture("llama").float("llama.attention.layer_norm_rms_epsilon", 1e-5);
    let writer = sizes.iter().fold(writer, |writer, (key, size)| writer.integer(&format!("llama.{key}"), *size));
    writer
        .floats("token_embd.weight", &[8, 5])
        .floats("output_norm.weight", &[8])
        .floats("blk.0.attn_norm.weight", &[8])
        .floats("blk.0.attn_q.weight", &[8, 8])
        .floats("blk.0.attn_k.weight", &[8, 4])
        .floats("blk.0.attn_v.weight", &[8, 4])
        .floats("blk.0.attn_output.weight", &[8, 8])
        .floats("blk.0.ffn_norm.weight", &[8])
        .floats("blk.0.ffn_gate.weight", &[8, 6])
        .floats("blk.0.ffn_up.weight", &[8, 6])
        .floats("blk.0.ffn_down.weight", &[6, 8])
}

#[test]
fn values_of_every_type_are_read() {
    let values: [(u32, &[u8], Metadata); 12] = [
        (0, &[200], Metadata::Integer(200)),
        (1, &[0xfe], Metadata::Integer(-2)),
        (2, &[1, 2], Metadata::Integer(513)),
        (3, &[0xff, 0xff], Metadata::Integer(-1)),
        (4, &[0, 0, 0, 0x80], Metadata::Integer(1 << 31)),
        (5, &[0, 0, 0, 0x80], Metadata::Integer(-(1 << 31))),
        (6, &1.5f32.to_le_bytes(), Metadata::Float(1.5)),
        (7, &[1], Metadata::Bool(true)),
        (8, &text("größe"), Metadata::Text("größe".into())),
        (10, &7u64.to_le_bytes(), Metadata::Integer(7)),
        (11, &(-7i64).to_le_bytes(), Metadata::Integer(-7)),
        (12, &(-0.25f64).to_le_bytes(), Metadata::Float(-0.25)),
    ];
    let mut writer = Writer::new();
    for (kind, bytes, _) in &values {
        writer = writer.with(&format!("one.{kind}"), typed(*kind, bytes));
        writer = writer.with(&format!("two.{kind}"), array(*kind, 2, &[*bytes, bytes].concat()));
    }
    let (_folder, path) = writer.with("none", array(8, 0, &[])).save();
    let gguf = Gguf::open(path).unwrap();
    for (kind, _, value) in values {
        assert_eq!(gguf.value(&format!("one.{kind}")), Some(&value));
        let two = match value {
            Metadata::Integer(value) => Metadata::Integers(vec![value; 2]),
            Metadata::Float(value) => Metadata::Floats(vec![value; 2]),
            Metadata::Bool(value) => Metadata::Bools(vec![value; 2]),
            Metadata::Text(value) => Metadata::Texts(vec![value; 2]),
            other => panic!("{other:?}"),
        };
        assert_eq!(gguf.value(&format!("two.{kind}")), Some(&two));
    }
    assert_eq!(gguf.value("none"), Some(&Metadata::Texts(Vec::new())));
    assert_eq!(gguf.metadata().count(), 25);
}

#[test]
fn a_file_that_was_cut_anywhere_is_an_error() {
    let bytes = llama().with("list", array(8, 2, &[text("a"), text("bc")].concat())).bytes();
    for length in 0..bytes.len() {
        let (_folder, path) = file(&bytes[..length]);
        assert!(matches!(Gguf::open(path), Err(WeightError::File { .. })), "cut at byte {length}");
    }
    let (_folder, path) = file(&bytes);
    assert!(Gguf::open(path).is_ok());
}

#[test]
fn other_versions_and_orders_are_an_error() {
    refused(b"GGML\0\0\0\0", "does not begin with `GGUF`");
    for (version, expected) in [(1, "version 1"), (3u32.swap_bytes(), "big-endian"), (4, "versions 2 and 3")] {
        Writer { version, ..llama() }.refused(expected);
    }
    let (_folder, path) = Writer { version: 2, ..llama() }.save();
    assert!(Gguf::open(path).is_ok());
}

#[test]
fn a_header_with_any_byte_changed_is_read_or_refused() {
    let whole = llama().with("list", array(8, 2, &[text("a"), text("bc")].concat())).bytes();
    let header = whole.len() - llama().data.len();
    let (_folder, path) = file(&whole);
    let mut refused = 0;
    for at in 0..header {
        for value in [0, 1, whole[at] ^ 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            std::fs::write(&path, bytes).unwrap();
            // Neither panics, whatever the file states.
            let config = HuggingFaceConfig::from_json_file(&path);
            let checkpoint = Checkpoint::open(&path);
            let fits = config.ok().zip(checkpoint.ok()).is_some_and(|(config, file)| config.check(&file).is_ok());
            refused += usize::from(!fits);
        }
    }
    assert!(refused > header, "{refused} of {header} bytes");
}

#[test]
fn what_is_damaged_in_a_header_is_an_error() {
    let huge = u64::MAX / 16;
    let mut counts = llama().bytes();
    counts[8..16].copy_from_slice(&huge.to_le_bytes());
    refused(&counts, "tensors at byte");
    let mut counts = llama().bytes();
    counts[16..24].copy_from_slice(&huge.to_le_bytes());
    refused(&counts, "entries of metadata at byte");
    let with = |value: Vec<u8>| Writer::new().with("key", value);
    with(array(4, huge, &[])).refused("values of an array");
    with(array(8, huge, &[])).refused("values of an array");
    with(typed(8, &huge.to_le_bytes())).refused("bytes of a text");
    with(typed(8, &[&2u64.to_le_bytes()[..], &[0xc3, 0x28]].concat())).refused("not UTF-8");
    with(typed(13, &[0; 8])).refused("type 13");
    with(array(13, 0, &[0; 8])).refused("elements of type 13");
    with(array(9, 1, &[0; 32])).refused("holds arrays");
    with(typed(7, &[2])).refused("a boolean before byte");
    with(typed(10, &u64::MAX.to_le_bytes())).refused("above i64::MAX");
    Writer::new().integer("a", 1).integer("a", 1).refused("two values of `a`");
    for alignment in [0, 24] {
        llama().integer("general.alignment", alignment).refused("must be a power of two");
    }
}

#[test]
fn a_directory_that_does_not_fit_is_an_error() {
    let one = |dimensions: &[u64], kind: u32| Writer::new().tensor("x", dimensions, kind, &[0; 64]);
    one(&[1; 5], 0).refused("has 5 axes");
    one(&[u64::MAX, 2], 0).refused("more elements than memory has bytes");
    one(&[1 << 40], 0).refused("it is not complete");
    one(&[33], 8).refused("rows of 33 elements, and blocks of Q8_0 have 32");
    one(&[32], 4).refused("has type 4, which is unknown");
    one(&[256], 23).refused("has type IQ4_XS, which is not read");
    llama().floats("output_norm.weight", &[2]).refused("two tensors `output_norm.weight`");
    let mut writer = llama();
    writer.tensors[1].3 += 8;
    writer.refused("no multiple of 32");
    let mut writer = llama();
    writer.tensors[1].3 = 32;
    writer.refused("inside of another tensor");
}

#[test]
fn tensors_are_aligned_as_the_file_says() {
    let mut writer = Writer::new().integer("general.alignment", 64).floats("a", &[3, 2]);
    let header = writer.bytes().len() - 24;
    writer.data.splice(0..0, vec![0; header.next_multiple_of(64) - header]);
    let (_folder, path) = writer.save();
    assert_eq!(Gguf::open(path).unwrap().shape("a"), Some(&[2, 3][..]));
}

#[test]
fn tensors_have_the_names_and_rows_of_the_family() {
    let (_folder, path) = llama().save();
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.shape("model.layers.0.self_attn.k_proj.weight"), Some(&[4, 8][..]));
    assert_eq!(checkpoint.shape("model.layers.0.mlp.down_proj.weight"), Some(&[8, 6][..]));
    let column = |name: &str, rows: usize| {
        let read = checkpoint.floats(name, &[rows, 8], &[0..rows, 3..4], ElementType::F32).unwrap();
        let Floats::F32(values) = read else { panic!("{read:?}") };
        values.iter().map(|value| (*value as usize - 3) / 8).collect::<Vec<_>>()
    };
    // A head of 4 features is 0, 2, 1, 3 in the file.
    assert_eq!(column("model.layers.0.self_attn.q_proj.weight", 8), [0, 2, 1, 3, 4, 6, 5, 7]);
    assert_eq!(column("model.layers.0.self_attn.k_proj.weight", 4), [0, 2, 1, 3]);
    assert_eq!(column("model.layers.0.self_attn.v_proj.weight", 4), [0, 1, 2, 3]);
    let config = HuggingFaceConfig::from_json_file(&path).unwrap();
    config.check(&checkpoint).unwrap();
    assert_eq!((config.family.name(), config.layers, config.vocab_size), ("llama", 1, 5));
    assert!(config.tie_word_embeddings);
}

#[test]
fn blocks_are_read_from_any_element_to_any_other() {
    // 3 rows of 64 elements of Q8_0, whose scales differ.
    let blocks: Vec<u8> = (0..6u8)
        .flat_map(|block| {
            let scale = half::f16::from_f32(0.5 + f32::from(block)).to_le_bytes();
            scale.into_iter().chain((0..32).map(move |at| at * 7 + block))
        })
        .collect();
    let mut all = vec![0.0; 192];
    BlockFormat::Q8_0.dequantise(&blocks, &mut all);
    let mut writer = llama();
    writer.tensors.retain(|tensor| tensor.0 != "token_embd.weight");
    let (_folder, path) = writer.tensor("token_embd.weight", &[64, 3], 8, &blocks).save();
    let checkpoint = Checkpoint::open(path).unwrap();
    let name = "model.embed_tokens.weight";
    for (start, end) in [(0, 64), (0, 1), (31, 33), (5, 40), (33, 64), (63, 64), (7, 7)] {
        for rows in [0..3, 1..2] {
            let expected: Vec<f32> =
                rows.clone().flat_map(|row| all[row * 64 + start..row * 64 + end].to_vec()).collect();
            let read = checkpoint.floats(name, &[3, 64], &[rows, start..end], ElementType::F32).unwrap();
            assert_eq!(read, Floats::F32(expected), "columns {start} to {end}");
        }
    }
    let half = checkpoint.floats(name, &[3, 64], &[0..3, 0..64], ElementType::BF16).unwrap();
    assert_eq!(half, Floats::BF16(all.iter().map(|value| half::bf16::from_f32(*value)).collect()));
    let converted = checkpoint.report().converted;
    assert!(
        converted.iter().all(|one| one.name == name && one.from == "Q8_0") && !converted.is_empty(),
        "{converted:?}"
    );
    assert!(checkpoint.integers(name, &[3, 64]).unwrap_err().to_string().contains("Q8_0"));
}

#[test]
fn what_the_architecture_does_not_have_is_an_error() {
    let open = |writer: Writer| {
        let (_folder, path) = writer.save();
        Checkpoint::open(path).unwrap_err().to_string()
    };
    let config = |writer: Writer| {
        let (_folder, path) = writer.save();
        HuggingFaceConfig::from_json_file(path).unwrap_err().to_string()
    };
    let without = |key: &str| {
        let mut writer = llama();
        writer.entries.retain(|(own, _)| own != key);
        writer
    };
    let other = without("general.architecture").architecture("mamba");
    for error in [open(other.clone()), config(other)] {
        assert!(error.contains("`general.architecture` is \"mamba\"") && error.contains("\"llama\""), "{error}");
    }
    let error = open(llama().floats("blk.0.attn_sinks.weight", &[2]));
    assert!(error.contains("`blk.0.attn_sinks.weight` is no tensor of the architecture `llama`"), "{error}");
    let error = open(llama().floats("blk.00.attn_q.weight", &[8, 8]));
    assert!(error.contains("is the second tensor that is `model.layers.0.self_attn.q_proj.weight`"), "{error}");
    for (writer, expected) in [
        (llama().integer("llama.attention.sliding_window", 7), "`llama.attention.sliding_window`"),
        (llama().integer("llama.rope.dimension_count", 2), "`llama.rope.dimension_count` is 2"),
        (llama().integer("llama.vocab_size", 6), "`llama.vocab_size` is 6"),
        (llama().integer("llama.expert_count", 8), "`llama.expert_count` is 8"),
        (llama().integer("llama.rope.freq_base", 7).with("llama.rope.scaling.type", typed(8, &text("su"))), "is su"),
        (llama().float("llama.rope.freq_base", f32::NAN), "a finite number is expected"),
        (llama().with("llama.attention.causal", typed(7, &[0])), "`llama.attention.causal` is false"),
        (llama().with("general.type", typed(8, &text("adapter"))), "\"adapter\""),
        (without("llama.block_count"), "`block_count`"),
        (without("llama.block_count").float("llama.block_count", 1.0), "a whole number is expected"),
    ] {
        let error = config(writer);
        assert!(error.contains(expected), "{error}, expected {expected}");
    }
    let (_folder, path) = llama().integer("llama.my_note", 7).save();
    let options = ConfigOptions::default().with_allowed_keys(["llama.my_note"]);
    assert!(HuggingFaceConfig::read_file(&path, &options).is_ok());
}

#[test]
fn a_folder_has_one_gguf_or_says_which_it_has() {
    let (folder, path) = llama().save();
    assert_eq!(Gguf::in_path(folder.path()), Some(path.clone()));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert!(checkpoint.contains("model.norm.weight"));
    // A configuration from elsewhere does not know the form of its weights.
    let record = HuggingFaceConfig::from_json_file(&path).unwrap().record;
    let error = HuggingFaceConfig::from_json(record).unwrap().check(&checkpoint).unwrap_err().to_string();
    assert!(error.contains("belong together"), "{error}");
    std::fs::copy(&path, folder.path().join("other.gguf")).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("model.gguf, other.gguf") && error.contains("name the file that you want"), "{error}");
}

/// A file of `tests/golden/gguf`.
fn golden(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/gguf")).join(name).join("model.gguf")
}

#[test]
fn keys_of_an_encoder_become_those_of_the_class() {
    let file = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/gguf_encoders/bert/model.gguf"));
    let config = HuggingFaceConfig::from_json_file(&file).unwrap();
    let expected = json!({
        "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 96, "max_position_embeddings": 19, "vocab_size": 81, "type_vocab_size": 3,
        "layer_norm_eps": f64::from(1e-3f32), "tie_word_embeddings": true,
    });
    assert_eq!(config.record, expected);
    assert_eq!((config.activation.as_str(), config.attention_config(0).triangular_masking), ("gelu", false));
    let checkpoint = Checkpoint::open(&file).unwrap();
    config.check(&checkpoint).unwrap();
    assert_eq!(checkpoint.shape("encoder.layer.2.intermediate.dense.weight"), Some(&[96, 32][..]));
    let bytes = std::fs::read(&file).unwrap();
    let open = |from: &str, to: &str| {
        let mut bytes = bytes.clone();
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        bytes.splice(at..at + from.len(), to.bytes());
        let (_folder, path) = self::file(&bytes);
        HuggingFaceConfig::from_json_file(path).unwrap_err().to_string()
    };
    // A file of DistilBERT has no segments.
    let error = open("token_types.weight", "tokens_type.weight");
    assert!(error.contains("`token_types.weight`"), "{error}");
    let error = open("bert.attention.causal\x07\0\0\0\0", "bert.attention.causal\x07\0\0\0\x01");
    assert!(error.contains("`bert.attention.causal` is true, which is not supported; supported: false"), "{error}");
}

#[test]
fn keys_become_those_of_the_class() {
    let record = |name: &str| HuggingFaceConfig::from_json_file(golden(name)).unwrap().record;
    let f32_of = |value: f32| f64::from(value);
    let yarn = json!({
        "rope_type": "yarn", "rope_theta": 3e4, "factor": 4.0, "original_max_position_embeddings": 24,
    });
    let long = json!({
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, f32_of(1.1)], "long_factor": [1.5, 3.0],
        "partial_rotary_factor": 0.5,
    });
    let gemma3 = json!({
        "full_attention": { "rope_type": "linear", "rope_theta": 1e6, "factor": 4.0 },
        "sliding_attention": { "rope_type": "default", "rope_theta": 1e4 },
    });
    for (name, expected) in [
        (
            "llama",
            json!({
                "model_type": "llama", "num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4,
                "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 96, "max_position_embeddings": 96,
                "vocab_size": 64, "tie_word_embeddings": true, "rms_norm_eps": f32_of(2e-3), "attention_bias": false,
                "mlp_bias": false, "rope_parameters": { "rope_type": "default", "rope_theta": 700.0 },
            }),
        ),
        ("llama_rope_factors", json!({ "attention_bias": true, "mlp_bias": true, "head_dim": 16 })),
        ("qwen2", json!({ "tie_word_embeddings": false, "rope_parameters": yarn })),
        ("gemma", json!({ "head_dim": 16, "rope_parameters": { "rope_type": "default", "rope_theta": 1e4 } })),
        (
            "gemma2",
            json!({
                "query_pre_attn_scalar": 16, "sliding_window": 5, "attn_logit_softcapping": 7.0,
                "final_logit_softcapping": 9.0,
            }),
        ),
        (
            "gemma3",
            json!({
                "model_type": "gemma3_text", "query_pre_attn_scalar": 16, "sliding_window": 5, "rope_parameters": gemma3,
            }),
        ),
        ("phi3", json!({ "sliding_window": 5 })),
        ("phi3_longrope", json!({ "original_max_position_embeddings": 6 })),
        (
            "granite",
            json!({
                "attention_multiplier": f32_of(0.11), "embedding_multiplier": 3.0, "residual_multiplier": f32_of(0.4),
                "logits_scaling": 2.0,
            }),
        ),
        ("stablelm", json!({ "use_parallel_residual": false, "use_qkv_bias": true, "qk_layernorm": false })),
        ("stablelm_parallel", json!({ "use_parallel_residual": true, "qk_layernorm": true })),
        ("starcoder2", json!({ "use_bias": true, "norm_epsilon": f32_of(1e-5) })),
        ("phi2", json!({ "model_type": "phi" })),
        ("gpt2", json!({ "n_inner": 96, "layer_norm_epsilon": f32_of(1e-5) })),
        ("falcon", json!({ "num_kv_heads": 1, "new_decoder_architecture": false, "ffn_hidden_size": 96 })),
        ("falcon_groups", json!({ "num_kv_heads": 2, "new_decoder_architecture": true, "num_ln_in_parallel_attn": 2 })),
        ("falcon_one-norm", json!({ "new_decoder_architecture": true, "num_ln_in_parallel_attn": 1 })),
        ("bloom", json!({ "seq_length": 96 })),
        ("mpt", json!({ "max_seq_len": 96, "attn_config": { "clip_qkv": f32_of(1.1) } })),
        ("command-r", json!({ "model_type": "cohere", "use_qk_norm": true, "logit_scale": 0.5 })),
        ("glm4", json!({ "attention_bias": true, "head_dim": 16 })),
        ("gptneox", json!({ "model_type": "gpt_neox", "use_parallel_residual": true })),
    ] {
        let record = record(name);
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(&record[key], value, "`{key}` of {name}");
        }
    }
    let mut rope = record("phi3_longrope")["rope_parameters"].take();
    let growth = rope.as_object_mut().unwrap().remove("attention_factor").unwrap().as_f64().unwrap();
    assert_eq!(rope, long);
    assert!((growth - (1.0 + 16f64.ln() / 6f64.ln()).sqrt()).abs() < 1e-6, "{growth}");
    let factors = &record("llama_rope_factors")["rope_parameters"]["short_factor"];
    let turns = 24.0 / std::f64::consts::TAU;
    let smooth = (turns - 1.0) / (4.0 - 1.0);
    assert!((factors[0].as_f64().unwrap() - 1.0 / ((1.0 - smooth) / 8.0 + smooth)).abs() < 1e-6, "{factors}");
    assert_eq!((factors.as_array().unwrap().len(), &factors[7]), (8, &json!(8.0)));
}

#[test]
fn what_a_file_does_not_say_is_what_llama_cpp_takes() {
    let record = |writer: Writer| {
        let (_folder, path) = writer.save();
        HuggingFaceConfig::from_json_file(path).unwrap().record
    };
    let mut writer = llama().integer("tokenizer.ggml.eos_token_id", 2).integer("tokenizer.ggml.eot_token_id", 4);
    writer.entries.retain(|(key, _)| key != "llama.attention.head_count_kv");
    let plain = record(writer);
    assert_eq!(plain["num_key_value_heads"], 2);
    assert_eq!(plain["rope_parameters"], json!({ "rope_type": "default", "rope_theta": 1e4 }));
    assert_eq!(plain["eos_token_id"], json!([2, 4]));
    let scaled = record(llama().float("llama.rope.scaling.factor", 4.0));
    assert_eq!(scaled["rope_parameters"], json!({ "rope_type": "linear", "rope_theta": 1e4, "factor": 4.0 }));
}

#[test]
fn ranks_read_their_part_of_every_tensor() {
    for name in ["llama", "gptneox"] {
        let checkpoint = Checkpoint::open(golden(name)).unwrap();
        for tensor in checkpoint.names() {
            let shape = checkpoint.shape(tensor).unwrap().to_vec();
            let whole: Vec<_> = shape.iter().map(|&size| 0..size).collect();
            let read = |ranges: &[std::ops::Range<usize>]| match checkpoint
                .floats(tensor, &shape, ranges, ElementType::F32)
                .unwrap()
            {
                Floats::F32(values) => values,
                other => panic!("{other:?}"),
            };
            let all = read(&whole);
            let rows = [0..shape[0] / 2, shape[0] / 2..shape[0]].map(|rows| {
                let ranges: Vec<_> = [rows].into_iter().chain(whole[1..].iter().cloned()).collect();
                read(&ranges)
            });
            assert_eq!(rows.concat(), all, "rows of {tensor}");
            if let [rows, columns] = shape[..] {
                let third = read(&[0..rows, 3..columns - 5]);
                let expected: Vec<f32> = all.chunks(columns).flat_map(|row| row[3..columns - 5].to_vec()).collect();
                assert_eq!(third, expected, "columns of {tensor}");
            }
        }
    }
}
