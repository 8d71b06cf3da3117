//! Checkpoints and the configurations next to them: what is read, and files that state sizes they do not contain.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use burn_deepspeed_core::checkpoint::families;
use burn_deepspeed_core::checkpoint::{Checkpoint, CheckpointWriter, Floats, HuggingFaceConfig};
use burn_deepspeed_core::element::ElementType;
use burn_deepspeed_core::error::{ConfigError, WeightError};
use serde_json::{Value, json};

/// A count that no machine has memory for.
const HUGE: usize = 1_000_000_000_000;

fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn header(text: &str, data: usize) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes.extend(vec![0; data]);
    bytes
}

fn with_tensors(tensors: &[(&str, ElementType, &[usize], &[u8])]) -> (tempfile::TempDir, Checkpoint) {
    let mut writer = CheckpointWriter::default();
    for (name, element, shape, bytes) in tensors {
        writer.insert(name, *element, shape.to_vec(), bytes.to_vec());
    }
    let (folder, path) = file(&[]);
    writer.save(&path).unwrap();
    let checkpoint = Checkpoint::open(path).unwrap();
    (folder, checkpoint)
}

fn model(change: impl FnOnce(&mut Value)) -> Result<HuggingFaceConfig, ConfigError> {
    let mut record = json!({ "model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1 });
    change(&mut record);
    HuggingFaceConfig::from_json(record)
}

#[test]
fn integers_of_every_width_are_read() {
    let bytes = |values: &[i128], size: usize| -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()[..size].to_vec()).collect()
    };
    for (element, values) in [
        (ElementType::Bool, [0, 1, 1]),
        (ElementType::U8, [0, 7, 255]),
        (ElementType::I8, [-128, 7, 127]),
        (ElementType::U16, [0, 7, 65535]),
        (ElementType::I16, [-32768, 7, 32767]),
        (ElementType::U32, [0, 7, 4294967295]),
        (ElementType::I32, [-2147483648, 7, 2147483647]),
        (ElementType::U64, [0, 7, i64::MAX.into()]),
        (ElementType::I64, [i64::MIN.into(), 7, i64::MAX.into()]),
    ] {
        let bytes = bytes(&values, element.size());
        let (_folder, checkpoint) = with_tensors(&[("ids", element, &[3], &bytes)]);
        let read: Vec<i128> = checkpoint.integers("ids", &[3]).unwrap().into_iter().map(i128::from).collect();
        assert_eq!(read, values, "{element}");
    }
}

#[test]
fn an_integer_that_does_not_fit_is_an_error() {
    let value = i64::MAX as u64 + 1;
    let bytes = [7u64.to_le_bytes(), value.to_le_bytes()].concat();
    let (_folder, checkpoint) = with_tensors(&[("ids", ElementType::U64, &[2], &bytes)]);
    let error = checkpoint.integers("ids", &[2]).unwrap_err();
    assert!(matches!(error, WeightError::IntegerTooLarge { value: found, .. } if found == value), "{error}");
    assert!(error.to_string().contains("9223372036854775808"), "{error}");
}

#[test]
fn floats_are_no_integers_and_integers_are_no_floats() {
    let (_folder, checkpoint) =
        with_tensors(&[("ids", ElementType::U32, &[1], &[0; 4]), ("weight", ElementType::F32, &[1], &[0; 4])]);
    let all = std::slice::from_ref(&(0..1));
    let error = checkpoint.floats("ids", &[1], all, ElementType::F32).unwrap_err();
    assert!(matches!(error, WeightError::ElementType { .. }), "{error}");
    assert!(error.to_string().contains("weights are read from F64"), "{error}");
    let error = checkpoint.integers("weight", &[1]).unwrap_err();
    assert!(matches!(error, WeightError::ElementType { .. }), "{error}");
    assert!(error.to_string().contains("integers are read from I64"), "{error}");
}

#[test]
fn a_scalar_is_one_element() {
    let (_folder, checkpoint) = with_tensors(&[("scale", ElementType::F32, &[], &1.5f32.to_le_bytes())]);
    assert_eq!(checkpoint.floats("scale", &[], &[], ElementType::F64).unwrap(), Floats::F64(vec![1.5]));
}

#[test]
fn a_tensor_is_compared_with_the_file_before_memory_is_allocated() {
    let (_folder, checkpoint) =
        with_tensors(&[("ids", ElementType::I64, &[1], &[0; 8]), ("weight", ElementType::F32, &[1], &[0; 4])]);
    for name in ["weight", "absent"] {
        let error = checkpoint.floats(name, &[HUGE, 8], &[0..HUGE, 0..8], ElementType::F32).unwrap_err();
        assert!(matches!(error, WeightError::Shape { .. } | WeightError::Missing { .. }), "{error}");
    }
    let error = checkpoint.integers("ids", &[HUGE]).unwrap_err();
    assert!(matches!(error, WeightError::Shape { .. }), "{error}");
}

#[test]
fn a_header_that_states_more_than_the_file_has_is_an_error() {
    let mut long = header("{}", 0);
    long[..8].copy_from_slice(&(HUGE as u64).to_le_bytes());
    let tensor = |shape: &str, end: &str| {
        header(&format!(r#"{{"w":{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,{end}]}}}}"#), 4)
    };
    for (what, bytes) in [
        ("the header", long),
        ("the end", tensor("1000000000000", "4000000000000")),
        ("the shape", tensor("1000000000000", "4")),
        ("the number of elements", tensor("18446744073709551615,18446744073709551615", "4")),
        ("the offset", tensor("1", "18446744073709551615")),
    ] {
        let (_folder, path) = file(&bytes);
        let error = Checkpoint::open(&path).unwrap_err();
        assert!(matches!(error, WeightError::File { .. }), "{what}: {error}");
    }
}

#[test]
fn a_configuration_may_state_any_number_of_layers() {
    for family in families::ALL {
        let mut record = json!({
            "model_type": family.name(), "hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": HUGE
        });
        match family.name() {
            "deepseek_v2" => record["num_experts_per_tok"] = 6.into(),
            "gptj" => record["rotary_dim"] = 4.into(),
            "gpt_neo" => record["attention_types"] = json!([[["global", "local"], HUGE / 2]]),
            "gpt_neox" => record["rotary_pct"] = 0.5.into(),
            "gemma" | "helium" | "qwen2" | "qwen2_moe" | "qwen3" => record["num_key_value_heads"] = 8.into(),
            "stablelm" => {
                record["num_key_value_heads"] = 8.into();
                record["partial_rotary_factor"] = 0.5.into();
            }
            _ => {}
        }
        let config = HuggingFaceConfig::from_json(record).unwrap();
        assert_eq!(config.layers, HUGE);
        let local = ["gemma3_text", "gpt_neo", "ministral", "mistral"].contains(&family.name());
        assert_eq!(config.attention_config(HUGE - 1).local_attention, local, "{}", family.name());
    }
    let repeated = json!({ "model_type": "gpt_neo", "hidden_size": 8, "num_heads": 2, "num_layers": 3 * HUGE,
        "attention_types": [[["global", "local", "local"], HUGE]] });
    let config = HuggingFaceConfig::from_json(repeated).unwrap();
    let local: Vec<_> = (0..4).map(|layer| config.attention_config(layer).local_attention).collect();
    assert_eq!(local, [false, true, true, false]);
}

#[test]
fn layers_that_the_checkpoint_lacks_are_an_error_before_a_model_is_built() {
    let (_folder, checkpoint) = with_tensors(&[("h.0.attn.c_proj.weight", ElementType::F32, &[8, 8], &[0; 256])]);
    model(|_| ()).unwrap().check(&checkpoint).unwrap();

    let layers = model(|record| record["n_layer"] = HUGE.into()).unwrap();
    let error = layers.check(&checkpoint).unwrap_err();
    assert!(matches!(&error, WeightError::Missing { name, .. } if name == "h.1.attn.c_proj.weight"), "{error}");

    let wide = model(|record| record["n_embd"] = (2 * HUGE).into()).unwrap();
    let error = wide.check(&checkpoint).unwrap_err();
    assert!(matches!(error, WeightError::Shape { .. }), "{error}");
}

#[test]
fn experts_that_the_checkpoint_lacks_are_an_error_before_a_model_is_built() {
    let (_folder, checkpoint) = with_tensors(&[
        ("layers.0.self_attn.o_proj.weight", ElementType::F32, &[8, 8], &[0; 256]),
        ("layers.0.block_sparse_moe.experts.0.w2.weight", ElementType::F32, &[8, 2], &[0; 64]),
        ("layers.0.mlp.experts.down_proj", ElementType::F32, &[3, 2, 8], &[0; 192]),
    ]);
    let check = |family: &str, experts: usize, size: usize| {
        let record = json!({
            "model_type": family, "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4,
            "num_hidden_layers": 1, "num_local_experts": experts, "num_experts_per_tok": 1, "intermediate_size": size
        });
        HuggingFaceConfig::from_json(record).unwrap().check(&checkpoint)
    };
    check("mixtral", 1, 2).unwrap();
    check("gpt_oss", 3, 2).unwrap();
    let error = check("mixtral", HUGE, 2).unwrap_err();
    let missing = "layers.0.block_sparse_moe.experts.1.w2.weight";
    assert!(matches!(&error, WeightError::Missing { name, .. } if name == missing), "{error}");
    for (family, experts, size) in [("gpt_oss", HUGE, 2), ("gpt_oss", 2, 2), ("gpt_oss", 3, HUGE), ("mixtral", 1, 3)] {
        let error = check(family, experts, size).unwrap_err();
        assert!(matches!(&error, WeightError::Shape { .. }), "{error}");
    }
}

#[test]
fn an_unknown_model_type_comes_with_the_families() {
    let message = model(|record| record["model_type"] = "mamba".into()).unwrap_err().to_string();
    assert!(message.starts_with("`model_type` `mamba` is not supported"), "{message}");
    for family in families::ALL {
        assert!(message.contains(family.name()), "{message}");
    }
}

#[test]
fn a_missing_key_is_said_to_miss_from_the_hugging_face_configuration() {
    let error = model(|record| record["n_head"] = Value::Null).unwrap_err();
    assert!(!error.to_string().contains("DeepSpeed"), "{error}");
    assert!(error.to_string().contains("`n_head` is missing"), "{error}");
}

#[test]
fn families_have_names_of_their_own() {
    let names: Vec<_> = families::ALL.iter().flat_map(|family| family.model_types).collect();
    for (at, family) in families::ALL.iter().enumerate() {
        assert_eq!(families::of_model_type(family.name()).unwrap(), families::ALL[at]);
    }
    let mut once = names.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), names.len());
}

#[test]
fn any_setting_of_attention_can_be_changed() {
    let config =
        model(|_| ()).unwrap().with_attention(|attention| attention.with_max_out_tokens(17).with_use_mup(true));
    let attention = config.attention_config(0);
    assert_eq!((attention.max_out_tokens, attention.use_mup), (17, true));
}

/// A folder with these shards, `[name, file, value]` for each tensor, and this index.
fn sharded(tensors: &[(&str, &str, f32)], index: Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut files: Vec<&str> = tensors.iter().map(|(_, file, _)| *file).collect();
    files.sort_unstable();
    files.dedup();
    for file in files {
        let mut writer = CheckpointWriter::default();
        for (name, _, value) in tensors.iter().filter(|(_, other, _)| *other == file) {
            writer.insert(name, ElementType::F32, vec![1], value.to_le_bytes().to_vec());
        }
        writer.save(folder.path().join(file)).unwrap();
    }
    std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    folder
}

fn value(checkpoint: &Checkpoint, name: &str) -> f32 {
    let floats = checkpoint.floats(name, &[1], std::slice::from_ref(&(0..1)), ElementType::F32).unwrap();
    let Floats::F32(values) = floats else { panic!() };
    values[0]
}

#[test]
fn the_file_that_the_index_names_has_the_tensor() {
    for (named, expected) in [("a.safetensors", 1.0), ("b.safetensors", 2.0)] {
        let tensors = [
            ("x", "a.safetensors", 1.0),
            ("x", "b.safetensors", 2.0),
            ("y", "a.safetensors", 3.0),
            ("z", "b.safetensors", 4.0),
        ];
        let folder =
            sharded(&tensors, json!({ "weight_map": { "x": named, "y": "a.safetensors", "z": "b.safetensors" } }));
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert_eq!((value(&checkpoint, "x"), value(&checkpoint, "y"), value(&checkpoint, "z")), (expected, 3.0, 4.0));
    }
}

#[test]
fn an_index_that_does_not_fit_its_files_is_an_error() {
    let tensors = [("x", "a.safetensors", 1.0), ("y", "b.safetensors", 3.0)];
    let open = |map: Value| {
        let folder = sharded(&tensors, json!({ "weight_map": map }));
        Checkpoint::open(folder.path()).unwrap_err()
    };
    let error = open(json!({ "x": "b.safetensors", "y": "b.safetensors" }));
    assert!(matches!(&error, WeightError::NotInShard { name, .. } if name == "x"), "{error}");
    let error = open(json!({ "x": "c.safetensors" }));
    assert!(matches!(error, WeightError::File { .. }) && error.to_string().contains("c.safetensors"), "{error}");
    for map in [json!({ "x": 3 }), json!({}), json!(null)] {
        let error = open(map);
        assert!(matches!(error, WeightError::File { .. }) && error.to_string().contains("weight_map"), "{error}");
    }
    let twice = [
        ("x", "a.safetensors", 1.0),
        ("y", "a.safetensors", 1.0),
        ("x", "b.safetensors", 2.0),
        ("z", "b.safetensors", 1.0),
    ];
    let map = json!({ "weight_map": { "y": "a.safetensors", "z": "b.safetensors" } });
    let error = Checkpoint::open(sharded(&twice, map).path()).unwrap_err();
    assert!(matches!(&error, WeightError::InTwoShards { name, .. } if name == "x"), "{error}");
}

#[test]
fn a_folder_of_other_formats_says_how_to_convert_them() {
    for (file, remedy) in [
        ("pytorch_model.bin", "AutoModel.from_pretrained(DIR).save_pretrained(DIR)"),
        ("pytorch_model.bin.index.json", "pickles are not read"),
        ("consolidated.00.pth", "pickles are not read"),
        ("adapter_model.safetensors", "open adapter_model.safetensors itself"),
        ("notes.txt", "name the folder or the file of a checkpoint in safetensors"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(file), "x").unwrap();
        let error = Checkpoint::open(folder.path()).unwrap_err();
        assert!(matches!(error, WeightError::NoSafetensors { .. }) && error.to_string().contains(remedy), "{error}");
        assert_eq!(error.to_string().contains(file), file != "notes.txt", "{error}");
        if ["pytorch_model.bin", "consolidated.00.pth"].contains(&file) {
            let error = Checkpoint::open(folder.path().join(file)).unwrap_err();
            assert!(matches!(error, WeightError::NoSafetensors { .. }), "{error}");
        }
    }
}

#[test]
fn a_wrapper_is_taken_off_if_it_is_before_every_name() {
    let wrapped = |names: &[&str]| {
        let tensors: Vec<_> = names.iter().map(|name| (*name, ElementType::F32, &[1][..], &[0; 4][..])).collect();
        with_tensors(&tensors)
    };
    for (wrapper, names) in [
        ("_orig_mod.", ["_orig_mod.a.x", "_orig_mod.b"]),
        ("module.", ["module.a.x", "module.b"]),
        ("base_model.model.", ["base_model.model.a.x", "base_model.model.b"]),
        ("module._orig_mod.", ["module._orig_mod.a.x", "module._orig_mod.b"]),
    ] {
        let (_folder, checkpoint) = wrapped(&names);
        assert_eq!((checkpoint.wrapper(), checkpoint.names().collect::<Vec<_>>()), (wrapper, vec!["a.x", "b"]));
        assert!(names.iter().all(|name| checkpoint.contains(name)), "{wrapper}");
        checkpoint.ignore(|name| name == "b");
        assert_eq!(checkpoint.report().unexpected, ["a.x"]);
        assert_eq!(value(&checkpoint, names[0]), 0.0);
        assert_eq!(checkpoint.finish().unwrap().loaded, ["a.x"]);
    }
    let (_folder, checkpoint) = wrapped(&["module.a", "b"]);
    assert_eq!(checkpoint.wrapper(), "");
    let message = checkpoint.check_shape("a", &[1]).unwrap_err().to_string();
    assert_eq!(message, "the checkpoint has no tensor `a`; it has 2 tensors: b, module.a");
}

#[test]
fn buffers_of_older_versions_are_known_for_each_family() {
    let family = |name: &str| families::of_model_type(name).unwrap();
    for (name, buffers, weights) in [
        ("gpt2", ["h.0.attn.bias", "h.0.attn.masked_bias"], "h.0.attn.c_attn.bias"),
        ("gptj", ["transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias"], "transformer.h.0.mlp.fc_in.bias"),
        ("gpt_neo", ["h.0.attn.attention.bias", "h.0.attn.attention.masked_bias"], "h.0.attn.attention.out_proj.bias"),
        (
            "gpt_neox",
            ["layers.0.attention.bias", "layers.0.attention.rotary_emb.inv_freq"],
            "layers.0.attention.dense.bias",
        ),
        (
            "llama",
            ["layers.0.self_attn.rotary_emb.cos_cached", "rotary_emb.inv_freq"],
            "layers.0.self_attn.q_proj.bias",
        ),
        ("mistral", ["layers.0.self_attn.rotary_emb.sin_cached", "model.rotary_emb.inv_freq"], "norm.weight"),
        ("bert", ["embeddings.position_ids", "bert.embeddings.position_ids"], "embeddings.position_embeddings.weight"),
        ("opt", ["model.decoder.version", "decoder.version"], "model.decoder.embed_positions.weight"),
    ] {
        assert!(buffers.iter().all(|buffer| family(name).is_buffer(buffer)), "{name}: {buffers:?}");
        assert!(!family(name).is_buffer(weights), "{name}: {weights}");
    }
    // What is a mask in one family is a bias in another.
    assert!(!family("llama").is_buffer("h.0.attn.bias"));
}
