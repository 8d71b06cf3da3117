//! Checkpoints that once gave a wrong result without a word, or an error that led away. `tests/golden/reports` holds them, with what
//! `transformers`, `sentence-transformers`, `diffusers` and PyTorch compute.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Tensor};
use burn_deepspeed::load::{
    AttentionNames, Checkpoint, QkvNames, ReadTensors, ScaleFormat, ScaleNames, WeightNames, WeightPart,
};
use burn_deepspeed::weight::Orientation;
use burn_deepspeed::{
    AttentionInit, AttentionMask, ConfigError, DataType, DeepSpeedInferenceConfig, Positions, WeightError,
};
use burn_deepspeed_examples::embedder::{self, Embed, Embedder, Scaling};
use burn_deepspeed_examples::text::{self, Batch, Model, Options, Source, TextModel, check, likeliest};
use burn_deepspeed_examples::{ModelFiles, tokenizer};
use serde::Deserialize;

use crate::common::{AnyBackend as B, assert_near, golden};

fn report(name: &str) -> PathBuf {
    golden("reports").join(name)
}

fn open(folder: &Path) -> Model<B> {
    let opened = Model::<B>::open(folder, &Options::default(), &Default::default());
    let (model, report) = opened.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    assert!(report.missing.is_empty() && report.unexpected.is_empty(), "{report}");
    model
}

fn refused(folder: &Path) -> String {
    Model::<B>::open(folder, &Options::default(), &Default::default()).err().unwrap().to_string()
}

/// A copy of a report's folder that a test may change.
fn copied(name: &str) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let to = to.join(path.file_name().unwrap());
            if path.is_dir() {
                std::fs::create_dir(&to).unwrap();
                copy(&path, &to);
            } else {
                std::fs::copy(&path, &to).unwrap();
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    copy(&report(name), folder.path());
    folder
}

fn change(path: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let mut record = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    change(&mut record);
    std::fs::write(path, record.to_string()).unwrap();
}

#[test]
fn these_checkpoints_generate_what_transformers_generates() {
    for name in [
        "bloom_n_embed",
        "cos_cached",
        "dtype_float64",
        "llama_no_hidden_act",
        "llama_no_rms_norm_eps",
        "mistral_layer_types",
        "mistral_no_kv_heads",
        "prefix_orig_mod",
        "rope_scaling_beside_rope_parameters",
        "yarn_original_length_outside",
    ] {
        let folder = report(name);
        for chunk in [None, std::num::NonZeroUsize::new(2)] {
            let outcome = check::run(&open(&folder), &folder.join("expected.json"), chunk);
            outcome.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}

#[test]
fn an_opt_without_factors_in_its_norms_is_refused_by_its_key() {
    let message = refused(&report("opt_no_affine_norm"));
    assert!(message.contains("`layer_norm_elementwise_affine` is false, which is not supported"), "{message}");
    let folder = copied("opt_no_affine_norm");
    change(&folder.path().join("config.json"), |record| {
        record["layer_norm_elementwise_affine"] = true.into();
        record["_remove_final_layer_norm"] = true.into();
    });
    let message = refused(folder.path());
    assert!(message.contains("`_remove_final_layer_norm` is true, which is not supported"), "{message}");
}

#[test]
fn a_text_ends_at_every_token_of_the_generation_config() {
    let generated = |folder: &Path| {
        let (model, batch) = (open(folder), Batch::single(&[27, 25, 18, 20, 9]));
        let mut session = model.session(&batch, 10).unwrap();
        let logits = session.prefill(&batch, None).unwrap().swap_remove(0);
        text::continuation(&model, &mut *session, logits, 10, likeliest, |_| Ok(())).unwrap()
    };
    let folder = copied("eos_in_generation_config");
    // The 10 that follows ends the text and is no part of it.
    assert_eq!(generated(folder.path()), [22, 24]);
    // The file alone counts, as in `transformers`, even if it names no end.
    let generation = folder.path().join("generation_config.json");
    change(&generation, |record| record["eos_token_id"] = serde_json::Value::Null);
    assert_eq!(generated(folder.path()).len(), 10);
    change(&generation, |record| record["eos_token_id"] = "10".into());
    let message = refused(folder.path());
    assert!(message.contains("generation_config.json") && message.contains("`eos_token_id` is \"10\""), "{message}");
    std::fs::remove_file(&generation).unwrap();
    assert_eq!(open(folder.path()).config.eos_token_ids, [3]);
}

#[derive(Deserialize)]
struct ExpectedText {
    text: String,
    ids: Vec<u32>,
    generated: Vec<u32>,
}

#[test]
fn padding_and_truncation_that_a_tokenizer_was_saved_with_touch_no_prompt() {
    let folder = report("tokenizer_saved_padding");
    let expected = std::fs::read_to_string(folder.join("expected_text.json")).unwrap();
    let ExpectedText { text, ids, generated } = serde_json::from_str(&expected).unwrap();
    let prompt = Source::text(folder.clone(), text).read(&ModelFiles::open(&folder).unwrap()).unwrap();
    assert_eq!(prompt.ids, ids);
    let (model, batch) = (open(&folder), Batch::single(&prompt.ids));
    let mut session = model.session(&batch, 8).unwrap();
    let logits = session.prefill(&batch, None).unwrap().swap_remove(0);
    assert_eq!(text::continuation(&model, &mut *session, logits, 8, likeliest, |_| Ok(())).unwrap(), generated);
}

/// One function opens a tokenizer, so that no program can forget.
#[test]
fn no_example_opens_a_tokenizer_by_itself() {
    let mut folders = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.extend(text.contains("Tokenizer::from").then_some(path));
            }
        }
    }
    assert!(found.len() == 1 && found[0].ends_with("examples/src/tokenizer/mod.rs"), "{found:?}");
}

#[test]
fn a_tokenizer_config_says_what_is_added_to_a_prompt() {
    let folder = copied("tokenizer_saved_padding");
    let ids = || {
        let tokenizer = tokenizer::open(folder.path()).unwrap().unwrap();
        tokenizer.encode("the cat", true).unwrap().get_ids().to_vec()
    };
    assert_eq!(ids(), [3, 5]);
    let config = folder.path().join("tokenizer_config.json");
    let write = |text: &str| std::fs::write(&config, text).unwrap();
    let token = |id| tokenizer::open(folder.path()).unwrap().unwrap().id_to_token(id).unwrap();
    let (first, second) = (token(7), token(8));
    write(&format!(r#"{{ "add_bos_token": true, "bos_token": "{first}", "eos_token": {{ "content": "{second}" }} }}"#));
    assert_eq!(ids(), [7, 3, 5]);
    write(&format!(r#"{{ "add_eos_token": true, "bos_token": "{first}", "eos_token": {{ "content": "{second}" }} }}"#));
    assert_eq!(ids(), [3, 5, 8]);
    write(r#"{ "add_bos_token": true }"#);
    assert_eq!(ids(), [3, 5]);
    for wrong in [r#"{ "add_bos_token": "yes" }"#, r#"{ "add_bos_token": true, "bos_token": "no such token" }"#] {
        write(wrong);
        let message = tokenizer::open(folder.path()).err().unwrap().to_string();
        assert!(message.contains("tokenizer_config.json") && message.contains("bos_token"), "{message}");
    }
}

#[derive(Deserialize)]
struct Reference {
    sentences: Vec<String>,
    embeddings: Vec<Vec<f32>>,
}

fn embed(folder: &Path, options: &embedder::Options, scaling: Scaling) -> Result<Vec<Vec<f32>>, String> {
    let (embedder, _) =
        Embedder::<B>::open_with(folder, options, &Default::default()).map_err(|error| error.to_string())?;
    let Reference { sentences, .. } = reference(folder);
    let sentences: Vec<&str> = sentences.iter().map(String::as_str).collect();
    Ok(embedder.embed(&sentences, scaling).unwrap().into_iter().map(|record| record.embedding).collect())
}

fn reference(folder: &Path) -> Reference {
    serde_json::from_str(&std::fs::read_to_string(folder.join("reference.json")).unwrap()).unwrap()
}

#[track_caller]
fn assert_vectors(found: &[Vec<f32>], expected: &[Vec<f32>]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() <= 1e-5, "{a} and {b}");
        }
    }
}

#[test]
fn the_modules_of_a_sentence_encoder_are_applied() {
    for name in ["embed_dense_module", "embed_do_lower_case"] {
        let folder = report(name);
        let found = embed(&folder, &Default::default(), Scaling::Saved).unwrap();
        assert_vectors(&found, &reference(&folder).embeddings);
    }
    let folder = report("embed_dense_module");
    let unscaled = embed(&folder, &Default::default(), Scaling::Unscaled).unwrap();
    let length = |vector: &Vec<f32>| vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    assert!(unscaled.iter().all(|vector| (length(vector) - 1.0).abs() > 1e-2), "{unscaled:?}");
}

#[test]
fn a_tokenizer_config_says_how_text_is_normalised() {
    let folder = copied("embed_do_lower_case");
    let Reference { embeddings, .. } = reference(folder.path());
    change(&folder.path().join("sentence_bert_config.json"), |record| record["do_lower_case"] = false.into());
    let cased = embed(folder.path(), &Default::default(), Scaling::Saved).unwrap();
    let apart = cased.iter().flatten().zip(embeddings.iter().flatten()).any(|(a, b)| (a - b).abs() > 1e-3);
    assert!(apart, "no sentence has an upper-case letter");
    let config = folder.path().join("tokenizer_config.json");
    std::fs::write(&config, r#"{ "do_lower_case": true, "strip_accents": null }"#).unwrap();
    assert_vectors(&embed(folder.path(), &Default::default(), Scaling::Saved).unwrap(), &embeddings);
    std::fs::write(&config, r#"{ "do_lower_case": "yes" }"#).unwrap();
    let message = embed(folder.path(), &Default::default(), Scaling::Saved).unwrap_err();
    assert!(message.contains("tokenizer_config.json") && message.contains("`do_lower_case` is \"yes\""), "{message}");
}

#[test]
fn a_prompt_is_part_of_each_sentence() {
    let folder = copied("embed_do_lower_case");
    let embed_one = |sentence: &str, options: &embedder::Options| {
        let opened = Embedder::<B>::open_with(folder.path(), options, &Default::default());
        let (embedder, _) = opened.map_err(|error| error.to_string())?;
        let record = embedder.embed(&[sentence], Scaling::Saved).unwrap().remove(0);
        assert_eq!(record.text, sentence);
        Ok::<_, String>(record.embedding)
    };
    let plain = |sentence| embed_one(sentence, &Default::default()).unwrap();
    let (bare, prompted, cat) = (plain("sat on mat"), plain("the cat sat on mat"), plain("cat sat on mat"));
    assert!(bare.iter().zip(&prompted).any(|(a, b)| (a - b).abs() > 1e-3));
    let prompts = folder.path().join("config_sentence_transformers.json");
    change(&prompts, |record| {
        record["prompts"] = serde_json::json!({ "query": "the cat ", "short": "cat " });
        record["default_prompt_name"] = "query".into();
    });
    assert_vectors(&[plain("sat on mat")], std::slice::from_ref(&prompted));
    let named = |name: &str| embedder::Options { prompt_name: Some(name.into()), ..Default::default() };
    assert_vectors(&[embed_one("sat on mat", &named("short")).unwrap()], &[cat]);
    let message = embed_one("sat", &named("long")).unwrap_err();
    assert!(message.contains("`--prompt-name` is \"long\"") && message.contains("query, short"), "{message}");

    // Pooling may leave the prompt out: attention still sees it, so the vector is neither that of the sentence alone nor this one.
    change(&folder.path().join("1_Pooling/config.json"), |record| record["include_prompt"] = false.into());
    let left_out = plain("sat on mat");
    for other in [&bare, &prompted] {
        assert!(other.iter().zip(&left_out).any(|(a, b)| (a - b).abs() > 1e-3));
    }
}

#[test]
fn what_an_encoders_files_say_is_applied_or_refused() {
    type Change = fn(&mut serde_json::Value);
    let cases: [(&str, Change, &str); 10] = [
        ("modules.json", |r| r[2]["type"] = "sentence_transformers.models.CNN".into(), "`[2].type` is"),
        ("modules.json", |r| r[2]["type"] = "their_code.Dense".into(), "`[2].type` is \"their_code.Dense\""),
        (
            "modules.json",
            |r| *r = serde_json::json!([r[0]]),
            "which is not supported; supported: a Transformer, a Pooling",
        ),
        (
            "2_Dense/config.json",
            |r| r["activation_function"] = "torch.nn.modules.activation.ELU".into(),
            "ELU\", which",
        ),
        (
            "2_Dense/config.json",
            |r| r["in_features"] = 31.into(),
            "`in_features` is 31, which is not supported; supported: 32",
        ),
        (
            "2_Dense/config.json",
            |r| r["out_features"] = 1_000_000_000_000u64.into(),
            "tensor `linear.weight` is [16, 32]",
        ),
        ("2_Dense/config.json", |r| r["dropout_after"] = 0.5.into(), "`dropout_after` is 0.5, and a Dense module"),
        (
            "sentence_bert_config.json",
            |r| r["max_seq_length"] = "40".into(),
            "`max_seq_length` is \"40\", and a whole number",
        ),
        (
            "sentence_bert_config.json",
            |r| r["strip_accents"] = true.into(),
            "`strip_accents` is true, and a sentence encoder",
        ),
        (
            "config_sentence_transformers.json",
            |r| r["default_prompt_name"] = "x".into(),
            "`default_prompt_name` is \"x\"",
        ),
    ];
    for (file, edit, expected) in cases {
        let folder = copied("embed_dense_module");
        change(&folder.path().join(file), edit);
        let message = embed(folder.path(), &Default::default(), Scaling::Saved).unwrap_err();
        assert!(message.contains(expected), "{message}");
        assert!(message.contains(file) || message.contains("linear.weight"), "{message}");
    }
    let folder = copied("embed_dense_module");
    change(&folder.path().join("sentence_bert_config.json"), |record| record["my_note"] = 1.into());
    let options = embedder::Options { allowed_keys: vec!["my_note".into()], ..Default::default() };
    let found = embed(folder.path(), &options, Scaling::Saved).unwrap();
    assert_vectors(&found, &reference(folder.path()).embeddings);

    // Without Normalize the vectors keep their length, and a projection may follow the identity.
    change(&folder.path().join("modules.json"), |record| drop(record.as_array_mut().unwrap().pop()));
    let unscaled = embed(&report("embed_dense_module"), &Default::default(), Scaling::Unscaled).unwrap();
    assert_vectors(&embed(folder.path(), &options, Scaling::Saved).unwrap(), &unscaled);
    let unit = embed(folder.path(), &options, Scaling::Unit).unwrap();
    assert_vectors(&unit, &reference(folder.path()).embeddings);

    let weights = folder.path().join("2_Dense/model.safetensors");
    std::fs::rename(&weights, folder.path().join("2_Dense/pytorch_model.bin")).unwrap();
    let message = embed(folder.path(), &options, Scaling::Saved).unwrap_err();
    assert!(
        message.contains("2_Dense has no `model.safetensors`") && message.contains("pytorch_model.bin"),
        "{message}"
    );
}

#[test]
fn an_encoder_reads_no_tokens_and_gives_none() {
    let device = Default::default();
    let config = DeepSpeedInferenceConfig::new(32, 4).with_triangular_masking(false);
    let attention = config.init_self_attention::<B>(0, &device).unwrap();
    let output = attention.forward_uncached(Tensor::zeros([2, 0, 32], &device), AttentionMask::none(), None).unwrap();
    assert_eq!(output.dims(), [2, 0, 32]);
    let positions = Positions::sequential(&[0, 0], 0);
    assert_eq!((positions.batch(), positions.tokens(), positions.max()), (2, 0, None));
    assert_eq!(Positions::from_rows([], [2, 0]).unwrap(), positions);
}

fn named(name: &str) -> WeightNames {
    let scales = ScaleNames { tensor: format!("{name}.weight_scale"), merge_count: 0 };
    WeightNames { scales, ..WeightNames::of(name) }
}

#[test]
fn three_scales_for_each_output_are_not_taken_for_deepspeeds() {
    let path = report("int8_scales_three_groups").join("int8_g3.safetensors");
    let qkv = QkvNames::Separate { query: named("q_proj"), key: named("k_proj"), value: named("v_proj") };
    let names = AttentionNames::new(qkv, named("o_proj"), Orientation::OutputInput);
    let config = DeepSpeedInferenceConfig::new(48, 4).with_pre_layer_norm(false);
    let config = config.with_qkv_bias(false).with_output_bias(false).with_dtype(DataType::Fp32);
    let (fresh, device) = (|| config.init_self_attention::<B>(0, &Default::default()).unwrap(), Default::default());

    let error = fresh().load(&Checkpoint::open(&path).unwrap(), &names).unwrap_err();
    assert!(matches!(&error, WeightError::AmbiguousScales(scales) if scales == "q_proj.weight_scale"), "{error}");
    assert!(error.to_string().contains("`Checkpoint::with_scale_format`"), "{error}");

    let checkpoint = Checkpoint::open(&path).unwrap().with_scale_format(ScaleFormat::EveryNumber);
    let attention = fresh().load(&checkpoint, &names).unwrap();
    let tensor = |name: &str| checkpoint.tensor::<B, 3>(name, [2, 6, 48], DType::F32, &device).unwrap();
    let causal = attention.forward_uncached(tensor("input"), AttentionMask::none(), None).unwrap();
    assert_near(causal, tensor("output"), 1e-5);

    // Said to be DeepSpeed's, the first 48 of the 144 numbers are the scales: another matrix.
    let checkpoint = Checkpoint::open(&path).unwrap().with_scale_format(ScaleFormat::GroupQuantizer);
    let parts = burn_deepspeed::load::ParameterReader::<B>::new(&checkpoint, DType::F32, &device);
    let weight = attention.output().clone();
    let read = parts.projection(&weight, &named("o_proj"), Orientation::OutputInput, &WeightPart::Whole).unwrap();
    assert_ne!(read.matrix().into_data(), weight.matrix().into_data());
}

#[test]
fn integers_of_every_type_are_read_and_floats_have_an_error_of_their_own() {
    let checkpoint = Checkpoint::open(report("int_tensor_unsigned").join("ints.safetensors")).unwrap();
    let device = Default::default();
    for name in ["bool", "u8", "i8", "u16", "u32", "i64"] {
        assert!(checkpoint.int_tensor::<B, 1>(name, [2], &device).is_ok(), "{name}");
    }
    let large = checkpoint.int_tensor::<B, 1>("u64", [2], &device);
    assert!(large.is_ok() || matches!(large, Err(WeightError::IntegerTooLarge { .. })));
    assert_eq!(checkpoint.integers("zero_d", &[]).unwrap().len(), 1);
    assert!(checkpoint.integers("empty", &[0]).unwrap().is_empty());
    let message = checkpoint.int_tensor::<B, 1>("f32", [1], &device).unwrap_err().to_string();
    assert!(message.contains("type F32; integers are read from I64"), "{message}");
    let message = checkpoint.tensor::<B, 1>("u32", [2], DType::F32, &device).unwrap_err().to_string();
    assert!(message.contains("type U32; weights are read from F64"), "{message}");
}

#[test]
fn projections_that_are_convolutions_of_one_pixel_are_matrices() {
    let checkpoint = Checkpoint::open(report("vae_conv_projections").join("diff_vae_conv.safetensors")).unwrap();
    let (device, names) = (Default::default(), AttentionNames::diffusers("attn"));
    let config = DeepSpeedInferenceConfig::new(32, 1).with_dtype(DataType::Fp32);
    let attention = config.init_diffusers::<B>(0, &device).unwrap().load(&checkpoint, &names).unwrap();
    let tensor = |name: &str| checkpoint.tensor::<B, 3>(name, [2, 9, 32], DType::F32, &device).unwrap();
    let output = attention.forward(tensor("input"), None, AttentionMask::none()).unwrap();
    assert_near(output, tensor("output"), 1e-5);
    // Only ones at the end mean nothing.
    assert!(checkpoint.check_shape("attn.to_q.weight", &[32, 32, 1, 1]).is_ok());
    for wrong in [&[32, 1][..], &[32], &[32, 32, 1]] {
        assert!(checkpoint.check_shape("attn.to_q.weight", wrong).is_err(), "{wrong:?}");
    }
    assert!(checkpoint.check_shape("attn.to_q.bias", &[32, 1]).is_err());
}

#[test]
fn a_wrapper_that_was_saved_with_a_model_is_taken_off() {
    let checkpoint = Checkpoint::open(report("prefix_orig_mod")).unwrap();
    assert_eq!(checkpoint.wrapper(), "_orig_mod.");
    for name in ["model.norm.weight", "_orig_mod.model.norm.weight"] {
        assert!(checkpoint.contains(name) && checkpoint.shape(name) == Some(&[16]), "{name}");
    }
    let error = checkpoint.check_shape("transformer.wte", &[1]).unwrap_err().to_string();
    assert!(error.contains("it has ") && error.contains("lm_head.weight"), "{error}");
}

#[test]
fn a_base_that_is_lost_or_contradicted_is_seen() {
    let folder = copied("rope_scaling_beside_rope_parameters");
    let config = folder.path().join("config.json");
    // `rope_scaling` takes the place of the whole record, so the base is the default of the class, as in `transformers`.
    change(&config, |record| record["rope_parameters"]["rope_theta"] = 500000.0.into());
    assert_eq!(open(folder.path()).config.attention_config(0).rope_theta, 10000.0);
    change(&config, |record| record["rope_scaling"]["rope_theta"] = 20000.0.into());
    assert_eq!(open(folder.path()).config.attention_config(0).rope_theta, 20000.0);
    change(&config, |record| record["rope_theta"] = 30000.0.into());
    let message = refused(folder.path());
    assert!(message.contains("`rope_scaling.rope_theta` is 20000.0 and `rope_theta` is 30000.0"), "{message}");
}

#[test]
fn a_key_of_the_users_own_is_allowed_by_name() {
    let folder = copied("llama_no_hidden_act");
    change(&folder.path().join("config.json"), |record| record["my_note"] = "trained in May".into());
    let message = refused(folder.path());
    assert!(message.contains("config.json: `my_note` is \"trained in May\""), "{message}");
    assert!(message.contains("--allow-key my_note"), "{message}");
    let options = Options { allowed_keys: vec!["my_note".into()], ..Options::default() };
    let (model, _) = Model::<B>::open(folder.path(), &options, &Default::default()).unwrap();
    assert_eq!(model.config().unread_keys(), ["my_note"]);
    assert!(matches!(
        burn_deepspeed::load::HuggingFaceConfig::from_json_file(folder.path().join("config.json")),
        Err(ConfigError::InFile { .. })
    ));
}
