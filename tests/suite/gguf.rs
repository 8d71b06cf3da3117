//! GGUF files: greedy decoding against what `transformers` generated with the weights that they hold.

use std::path::Path;
use std::sync::LazyLock;

use burn_deepspeed::InferenceBackend;
use burn_deepspeed::config::MatrixFormat;
use burn_deepspeed_examples::Failure;
use burn_deepspeed_examples::text::{Model, Options, TextModel, check};

use crate::common::{golden_ggufs, on_each_cpu_backend};

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

on_each_cpu_backend!(
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
