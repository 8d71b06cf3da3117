//! GGUF files: greedy decoding, and embeddings, against what `transformers` computed with the weights that they hold.

use std::path::Path;
use std::sync::LazyLock;

use burn_deepspeed::InferenceBackend;
use burn_deepspeed::config::MatrixFormat;
use burn_deepspeed_examples::Failure;
use burn_deepspeed_examples::embedder::check::Expected;
use burn_deepspeed_examples::embedder::{self, Embed, Embedder};
use burn_deepspeed_examples::text::{Model, Options, TextModel, check};

use crate::common::{AnyBackend, golden, golden_gguf_encoders, golden_ggufs, on_each_cpu_backend};

fn run<B: InferenceBackend>(folder: &Path, options: &Options) -> Result<String, Failure> {
    let (model, report) = Model::<B>::open(&folder.join("model.gguf"), options, &Default::default())?;
    assert!(report.missing.is_empty() && report.unexpected.is_empty(), "{}: {report}", folder.display());
    check::run(&model, &folder.join("expected.json"), None)
}

fn all<B: InferenceBackend>(options: &Options) {
    let runs = golden_ggufs().into_iter().map(|(name, folder)| (name, run::<B>(&folder, options)));
    let failed: Vec<_> = runs.filter_map(|(name, run)| Some(format!("{name}: {}", run.err()?))).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

fn every_architecture_generates_the_same_ids<B: InferenceBackend>() {
    all::<B>(&Options::default());
}

fn every_architecture_generates_the_same_ids_with_its_blocks<B: InferenceBackend>() {
    all::<B>(&STORED);
}

/// The matrices stay as they are stored.
static STORED: LazyLock<Options> = LazyLock::new(|| Options { matrices: MatrixFormat::Stored, ..Options::default() });

/// A record holds the blocks, and the formats of its rows.
fn records_hold_blocks<B: InferenceBackend>() {
    for (name, folder) in golden_ggufs() {
        let (model, _) = Model::<B>::open(&folder.join("model.gguf"), &STORED, &Default::default()).unwrap();
        let record = tempfile::tempdir().unwrap();
        model.save(&record.path().join("model")).unwrap();
        let again = model.with_record(&record.path().join("model")).unwrap();
        check::run(&*again, &folder.join("expected.json"), None).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

fn encoder<B: InferenceBackend>(folder: &Path, matrices: MatrixFormat) -> Embedder<B> {
    let options = embedder::Options { matrices, ..Default::default() };
    let (embedder, report) = Embedder::<B>::open_with(folder, &options, &Default::default()).unwrap();
    assert!(report.missing.is_empty() && report.unexpected.is_empty(), "{}: {report}", folder.display());
    embedder
}

/// States of rows of tokens, and vectors of sentences that the tokenizer of the file splits.
fn every_encoder_computes_the_same_numbers<B: InferenceBackend>() {
    for (name, folder) in golden_gguf_encoders() {
        // Products with blocks round their input.
        for (matrices, tolerance) in [(MatrixFormat::OfDtype, 1e-5), (MatrixFormat::Stored, 1e-4)] {
            let embedder = encoder::<B>(&folder.join("model.gguf"), matrices);
            for kind in ["text", "sentences"] {
                let expected = Expected::read(&folder.join(format!("expected_{kind}.json"))).unwrap();
                let checked = expected.check_within(&embedder, tolerance);
                checked.unwrap_or_else(|error| panic!("{name}, {kind}, {matrices:?}: {error}"));
            }
        }
    }
}

on_each_cpu_backend!(
    every_encoder_computes_the_same_numbers,
    every_architecture_generates_the_same_ids,
    every_architecture_generates_the_same_ids_with_its_blocks,
    records_hold_blocks,
);

/// Rows in pairs and blocks are cut, too.
#[cfg(all(feature = "ndarray", feature = "local"))]
#[test]
fn every_architecture_generates_the_same_ids_on_ranks() {
    use std::sync::Arc;

    use burn_deepspeed::Communicator;
    use burn_deepspeed::parallel::local::LocalCommunicator;

    for (name, folder) in golden_ggufs() {
        for matrices in [MatrixFormat::OfDtype, MatrixFormat::Stored] {
            crate::ranks::on_ranks(LocalCommunicator::group(2), |communicator| {
                let communicator: Arc<dyn Communicator> = communicator;
                let rank = Some(communicator);
                let options = Options { rank, matrices, uneven_heads: true, ..Options::default() };
                run::<burn_ndarray::NdArray>(&folder, &options).unwrap_or_else(|error| panic!("{name}: {error}"));
            });
        }
    }
}

type B = AnyBackend;

#[test]
fn the_pooling_is_that_of_the_file() {
    for (name, expected) in [("bert", "the mean over the tokens"), ("bert_cased", "the state of the first token")] {
        // The only GGUF of a folder is found.
        let embedder = encoder::<B>(&golden("gguf_encoders").join(name), MatrixFormat::OfDtype);
        assert_eq!(embedder.pooling(), format!("{expected}, as the GGUF file says"));
    }
}

/// Opens a copy of `tests/golden/gguf_encoders/bert` whose value of `key`, an integer of 32 bits, is another.
#[track_caller]
fn changed(key: &str, value: u32) -> Result<Embedder<B>, String> {
    let mut bytes = std::fs::read(golden("gguf_encoders/bert/model.gguf")).unwrap();
    let at = bytes.windows(key.len()).position(|window| window == key.as_bytes()).unwrap() + key.len() + 4;
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    Embedder::<B>::open(&path, &Default::default()).map(|(embedder, _)| embedder).map_err(|error| error.to_string())
}

#[test]
fn what_is_wrong_in_the_file_of_an_encoder_is_an_error() {
    for (key, value, expected) in [
        ("bert.pooling_type", 4, "`bert.pooling_type` is 4, which is not supported; supported: 1, the mean"),
        ("bert.context_length", 1 << 30, "embeddings.position_embeddings"),
        ("bert.feed_forward_length", 95, "intermediate.dense"),
        ("tokenizer.ggml.cls_token_id", 81, "`tokenizer.ggml.cls_token_id` is 81, and there are 81 tokens"),
        ("tokenizer.ggml.unknown_token_id", 81, "`tokenizer.ggml.unknown_token_id` is 81"),
    ] {
        let error = changed(key, value).err().unwrap();
        assert!(error.contains(expected), "{error}, expected {expected}");
    }
    assert_eq!(
        changed("bert.pooling_type", 3).unwrap().pooling(),
        "the state of the last token, as the GGUF file says"
    );
    // `generate` runs decoders.
    let file = golden("gguf_encoders/bert/model.gguf");
    let error = Model::<B>::open(&file, &Options::default(), &Default::default()).err().unwrap().to_string();
    assert!(error.contains("`embed` runs the encoders"), "{error}");
}
