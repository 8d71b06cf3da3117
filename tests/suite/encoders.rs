//! Checkpoints of encoders: states and vectors against what `transformers` computed, in `tests/golden/encoders`.

use std::path::Path;

use burn_deepspeed::load::families;
use burn_deepspeed::weight::Int8Blocks;
use burn_deepspeed::{ActivationRounding, InferenceBackend, InputBits};
use burn_deepspeed_examples::embedder::check::Expected;
use burn_deepspeed_examples::embedder::{Embed, Embedder, Options, Scaling, TokenRows};
use serde_json::{Value, json};

use crate::common::{AnyBackend, golden, golden_encoders, on_each_backend, on_each_cpu_backend};

fn open<B: InferenceBackend>(folder: &Path, images: bool) -> Result<Embedder<B>, String> {
    let options = Options { images, ..Options::default() };
    let (embedder, report) =
        Embedder::<B>::open_with(folder, &options, &Default::default()).map_err(|error| error.to_string())?;
    assert!(report.missing.is_empty() && report.unexpected.is_empty(), "{}: {report}", folder.display());
    Ok(embedder)
}

/// Runs what each file `expected_….json` of a checkpoint has. Returns the number of files.
fn check<B: InferenceBackend>(folder: &Path) -> usize {
    let mut checked = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let file = entry.unwrap().path();
        if file.file_name().unwrap().to_str().unwrap().starts_with("expected") {
            let expected = Expected::read(&file).unwrap();
            let embedder = open::<B>(folder, expected.images()).unwrap();
            expected.check(&embedder).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            checked += 1;
        }
    }
    checked
}

/// Rows alone, padded on the right and on the left; images that do not end with a whole patch; sentences.
fn every_encoder_computes_the_same_numbers<B: InferenceBackend>() {
    let checked: usize = golden_encoders().iter().map(|(_, folder)| check::<B>(folder)).sum();
    assert_eq!(checked, 22);
}

/// Patches, and the attention of a learned query. A device on the CPU takes long to compile more.
fn encoders_compute_the_same_numbers_on_a_device<B: InferenceBackend>() {
    assert_eq!(check::<B>(&golden("encoders/siglip_vision")), 1);
}

on_each_cpu_backend!(every_encoder_computes_the_same_numbers);

mod on_a_device {
    use super::*;
    on_each_backend!(encoders_compute_the_same_numbers_on_a_device);
}

type B = AnyBackend;

fn encoder(name: &str) -> std::path::PathBuf {
    golden("encoders").join(name)
}

/// A copy of a checkpoint with another `config.json`.
fn changed(name: &str, change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(encoder(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let config = folder.path().join("config.json");
    let mut record = serde_json::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
    change(&mut record);
    std::fs::write(&config, record.to_string()).unwrap();
    folder
}

fn refused(folder: &Path, images: bool) -> String {
    open::<B>(folder, images).err().unwrap()
}

#[test]
fn every_encoder_has_a_checkpoint() {
    let mut types = Vec::new();
    for (_, folder) in golden_encoders() {
        let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
        let record: Value = serde_json::from_str(&text).unwrap();
        types.extend([&record, &record["text_config"], &record["vision_config"]].map(|of| of["model_type"].clone()));
    }
    for family in families::ALL.iter().filter(|family| family.encoder.is_some()) {
        assert!(types.contains(&json!(family.name())), "{}", family.name());
    }
    assert!(families::PAIRS.iter().all(|pair| types.contains(&json!(pair.model_type))));
}

#[test]
fn rows_that_the_model_cannot_take_are_errors() {
    let rows = |ids: &[&[u32]]| TokenRows { ids: ids.iter().map(|row| row.to_vec()).collect(), real: None };
    let message =
        |name: &str, rows: TokenRows| open::<B>(&encoder(name), false).unwrap().run(rows).unwrap_err().to_string();
    let long: Vec<u32> = vec![7; 20];
    let error = message("bert", rows(&[&long]));
    assert!(error.contains("a row has 20 tokens, and the model takes 19"), "{error}");
    // Two of the 19 rows of the table come before the first position.
    let error = message("roberta", rows(&[&long[..18]]));
    assert!(error.contains("a row has 18 tokens, and the model takes 17"), "{error}");
    open::<B>(&encoder("roberta"), false).unwrap().run(rows(&[&long[..17]])).unwrap();
    let error = message("clip_text", rows(&[&[7, 61]]));
    assert!(error.contains("token 61 is not in the vocabulary of 61 ids"), "{error}");
    for uneven in [rows(&[&[7, 8], &[7]]), rows(&[]), rows(&[&[]])] {
        let error = message("distilbert", uneven);
        assert!(error.contains("need one length of at least 1"), "{error}");
    }
    let half = TokenRows { real: Some(vec![vec![true]]), ..rows(&[&[7, 8]]) };
    assert!(message("distilbert", half).contains("need one length"));
}

#[test]
fn images_of_another_size_are_errors() {
    let folder = changed("vit", |record| record["image_size"] = json!([15, 12]));
    // The number of patches changes with the size.
    let error = refused(folder.path(), true);
    assert!(error.contains("`embeddings.position_embeddings`") && error.contains("[1, 13, 24]"), "{error}");
    let folder = changed("vit", |record| record["image_size"] = json!([14, 11]));
    let embedder = open::<B>(folder.path(), true).err();
    assert!(embedder.is_none(), "{embedder:?}");
    let embedder = open::<B>(folder.path(), true).unwrap();
    let error = embedder.run_images(&folder.path().join("images.safetensors")).unwrap_err().to_string();
    assert!(error.contains("`pixel_values`") && error.contains("[2, 2, 15, 11]"), "{error}");
    assert!(
        error.contains("the model takes images [2, 14, 11]") && error.contains("preprocessor_config.json"),
        "{error}"
    );
    for (key, value, expected) in [
        ("image_size", json!([15, 11, 3]), "`image_size` is [15,11,3]"),
        ("image_size", json!("15"), "`image_size` is \"15\""),
        ("patch_size", json!(0), "`patch_size` is 0"),
        ("patch_size", json!([4, 12]), "`patch_size` is [4,12]"),
        ("pooler_act", json!("elu"), "`pooler_act` is \"elu\""),
        ("pooler_output_size", json!(18), "tensor `pooler.dense.weight`"),
        ("image_size", json!(1u64 << 62), "embeddings.position_embeddings"),
    ] {
        let folder = changed("vit", |record| record[key] = value);
        let error = refused(folder.path(), true);
        assert!(error.contains(expected), "{error}");
    }
}

/// A file may state any size: it is compared with the tensors before anything of that size is allocated.
#[test]
fn a_size_that_the_tensors_do_not_have_is_an_error() {
    for (name, key, expected) in [
        ("bert", "vocab_size", "tensor `embeddings.word_embeddings.weight`"),
        ("bert", "type_vocab_size", "tensor `embeddings.token_type_embeddings.weight`"),
        ("bert", "max_position_embeddings", "tensor `embeddings.position_embeddings.weight`"),
        ("bert", "num_hidden_layers", "no tensor `encoder.layer.3.attention.output.dense.weight`"),
        ("distilbert", "hidden_dim", "tensor `transformer.layer.0.ffn.lin1.weight`"),
        ("roberta", "pad_token_id", "config.json: `pad_token_id` is "),
        ("modernbert", "intermediate_size", "tensor `layers.0.mlp.Wi.weight`"),
        ("clip_text_projected", "projection_dim", "tensor `text_projection.weight`"),
        ("siglip_text", "projection_size", "tensor `head.weight`"),
        ("vit", "num_channels", "tensor `embeddings.patch_embeddings.projection.weight`"),
        ("vit", "image_size", "tensor `embeddings.position_embeddings`"),
        ("vit", "pooler_output_size", "tensor `pooler.dense.weight`"),
    ] {
        for size in [1u64 << 40, u64::MAX >> 1] {
            let folder = changed(name, |record| record[key] = size.into());
            let error = refused(folder.path(), name == "vit");
            assert!(error.contains(expected), "{name}, {key}: {error}");
        }
    }
}

#[test]
fn texts_and_images_are_not_mixed_up() {
    let text = open::<B>(&encoder("clip"), false).unwrap();
    let file = encoder("clip").join("images.safetensors");
    let error = text.embed_images(&file, std::num::NonZeroUsize::MIN, Scaling::Saved).unwrap_err().to_string();
    assert!(error.contains("takes sentences and no images"), "{error}");
    let images = open::<B>(&encoder("clip"), true).unwrap();
    let error = images.embed(&["a cat"], Scaling::Saved).unwrap_err().to_string();
    assert!(error.contains("takes images") && error.contains("`--images`"), "{error}");
    // A batch in pieces gives the same vectors, of length 1 unless they are wanted as they are.
    let one = images.embed_images(&file, std::num::NonZeroUsize::MIN, Scaling::Saved).unwrap();
    let names: Vec<&str> = one.iter().map(|record| record.image.as_str()).collect();
    assert_eq!(names, ["pixel_values[0]", "pixel_values[1]"]);
    let length = |vector: &[f32]| vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    assert!(one.iter().all(|record| (length(&record.embedding) - 1.0).abs() < 1e-5));
    let raw = images.embed_images(&file, std::num::NonZeroUsize::new(5).unwrap(), Scaling::Unscaled).unwrap();
    for (one, raw) in one.iter().zip(&raw) {
        let scale = length(&raw.embedding);
        assert!((scale - 1.0).abs() > 1e-2);
        assert!(one.embedding.iter().zip(&raw.embedding).all(|(a, b)| (a - b / scale).abs() < 1e-5));
    }
    // No tokenizer is needed before sentences are.
    let error = open::<B>(&encoder("bert"), false).unwrap().embed(&["a cat"], Scaling::Saved).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json is missing"), "{error}");
}

#[test]
fn how_a_vector_is_made_is_said() {
    for (name, images, expected) in [
        ("bert", false, "the mean over the tokens; there is no modules.json"),
        ("clip_text", false, "the state of the end token, as the class"),
        ("clip", false, "the state of the end token, projected, as the class"),
        ("siglip", false, "the last token, padding included"),
        ("siglip", true, "attention of a learned query"),
        ("vit", true, "the state of the class token, after the pooler, as"),
        ("vit_classifier", true, "the state of the class token, as"),
    ] {
        let embedder = open::<B>(&encoder(name), images).unwrap();
        assert!(embedder.pooling().contains(expected), "{name}: {}", embedder.pooling());
    }
}

#[test]
fn padding_is_hidden_if_the_tokenizer_says_so() {
    let folder = changed("siglip", |_| {});
    let vectors = || {
        let embedder = open::<B>(folder.path(), false).unwrap();
        embedder.embed(&["a small red bird"], Scaling::Saved).unwrap().remove(0).embedding
    };
    let config = folder.path().join("tokenizer_config.json");
    let seen = vectors();
    let write = |record: Value| std::fs::write(&config, record.to_string()).unwrap();
    let base = json!({ "model_max_length": 9, "pad_token": "</s>" });
    write(base.clone());
    let hidden = vectors();
    assert!(seen.iter().zip(&hidden).any(|(a, b)| (a - b).abs() > 1e-3));
    let with = |key: &str, value: Value| {
        let mut record = base.clone();
        record[key] = value;
        record
    };
    write(with("model_input_names", json!(["input_ids", "attention_mask"])));
    assert_eq!(vectors(), hidden);
    // Without a name the configuration says the token: 1, the same.
    write(json!({ "model_max_length": 9, "model_input_names": ["input_ids"] }));
    assert_eq!(vectors(), seen);
    for (record, expected) in [
        (with("model_input_names", json!("input_ids")), "`model_input_names` is \"input_ids\""),
        (with("model_input_names", json!([1])), "`model_input_names` is [1]"),
        (with("pad_token", json!("<nothing>")), "`pad_token` is \"<nothing>\""),
    ] {
        write(record);
        let error = refused(folder.path(), false);
        assert!(error.contains("tokenizer_config.json") && error.contains(expected), "{error}");
    }
}

#[test]
fn a_projection_that_a_whole_checkpoint_needs_may_not_be_missing() {
    let folder = changed("clip", |record| record["projection_dim"] = json!(16));
    assert!(refused(folder.path(), false).contains("tensor `text_projection.weight`"));
    assert!(refused(folder.path(), true).contains("tensor `visual_projection.weight`"));
    // A file of one encoder alone may leave it out.
    let folder = changed("clip_text", |record| {
        *record = json!({ "model_type": "clip", "text_config": record.clone(), "vision_config": {} });
    });
    let error = refused(folder.path(), false);
    assert!(error.contains("`text_projection.weight`"), "{error}");
}

#[test]
fn a_decoder_is_no_encoder_and_an_encoder_no_decoder() {
    use burn_deepspeed_examples::text;
    let error = refused(&golden("families").join("qwen3"), false);
    assert!(error.contains("`model_type` is \"qwen3\"") && error.contains("`generate` runs the decoders"), "{error}");
    for (name, expected) in [("roberta", "`embed` runs the encoders"), ("clip", "`embed` runs both")] {
        let opened = text::Model::<B>::open(&encoder(name), &text::Options::default(), &Default::default());
        let error = opened.err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn int8_keeps_the_vectors_close() {
    for (name, images) in [("modernbert", false), ("clip", true)] {
        let exact = open::<B>(&encoder(name), images).unwrap();
        let quantized = |rounding| {
            let dense = Box::new(open::<B>(&encoder(name), images).unwrap());
            dense.quantize(Int8Blocks::PerOutput, rounding).unwrap()
        };
        let compute = |embedder: &dyn Embed| match images {
            true => embedder.run_images(&encoder(name).join("images.safetensors")).unwrap(),
            false => embedder.run(TokenRows { ids: vec![vec![9, 17, 5, 44, 8, 30, 21]], real: None }).unwrap(),
        };
        let exact = compute(&exact);
        for rounding in [ActivationRounding::Never, InputBits::Fourteen.into(), InputBits::Eight.into()] {
            let found = compute(&*quantized(rounding));
            let pairs = exact.hidden.iter().flatten().zip(found.hidden.iter().flatten());
            let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
            assert!(worst > 0.0 && worst < 0.25, "{name}, {rounding:?}: {worst}");
        }
    }
}
