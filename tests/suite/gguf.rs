//! GGUF files: greedy decoding against what `transformers` generated with the weights that they hold.

use std::path::Path;

use burn_deepspeed::InferenceBackend;
use burn_deepspeed_examples::Failure;
use burn_deepspeed_examples::text::{Model, Options, check};

use crate::common::{golden_ggufs, on_each_cpu_backend};

fn run<B: InferenceBackend>(folder: &Path, options: &Options) -> Result<String, Failure> {
    let (model, report) = Model::<B>::open(&folder.join("model.gguf"), options, &Default::default())?;
    assert!(report.missing.is_empty() && report.unexpected.is_empty(), "{}: {report}", folder.display());
    check::run(&model, &folder.join("expected.json"), None)
}

fn every_architecture_generates_the_same_ids<B: InferenceBackend>() {
    let runs = golden_ggufs().into_iter().map(|(name, folder)| (name, run::<B>(&folder, &Options::default())));
    let failed: Vec<_> = runs.filter_map(|(name, run)| Some(format!("{name}: {}", run.err()?))).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

on_each_cpu_backend!(every_architecture_generates_the_same_ids);

/// Rows in pairs and blocks are cut, too.
#[cfg(all(feature = "ndarray", feature = "local"))]
#[test]
fn every_architecture_generates_the_same_ids_on_ranks() {
    use std::sync::Arc;

    use burn_deepspeed::Communicator;
    use burn_deepspeed::parallel::local::LocalCommunicator;

    for (name, folder) in golden_ggufs() {
        crate::ranks::on_ranks(LocalCommunicator::group(2), |communicator| {
            let communicator: Arc<dyn Communicator> = communicator;
            let options = Options { rank: Some(communicator), uneven_heads: true, ..Options::default() };
            run::<burn_ndarray::NdArray>(&folder, &options).unwrap_or_else(|error| panic!("{name}: {error}"));
        });
    }
}
