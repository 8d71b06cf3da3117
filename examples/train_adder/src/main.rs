//! Trains a tiny BLOOM to add two numbers that are written as text, and writes it to `examples/adder`.
//!
//! ```text
//! cargo run --release -p train-adder                             # minutes on two cores
//! cargo run --release -p train-adder -- --evaluate               # seconds, trains nothing
//! cargo run --release -p train-adder -- --record                 # writes model.mpk anew from model.safetensors
//! cargo run --release --example generate -- --prompt "48+76="    # reads what this wrote
//! ```
//!
//! On a terminal burn-train shows its dashboard, otherwise it prints one line per epoch. 15 % of the sums are never trained
//! on; the model must get 95 % of them right nevertheless.

mod data;
mod export;
mod model;
mod progress;
mod tokenizer;
mod training;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use burn::tensor::{ElementConversion, Int, Tensor, TensorData};
use burn_autodiff::Autodiff;
use burn_deepspeed::InferenceBackend;
use burn_deepspeed::load::HuggingFaceConfig;
use burn_deepspeed_examples::backend::{BackendName, exit};
use burn_deepspeed_examples::{Failure, on_backend, sums};
use clap::Parser;

use export::Saved;

/// Least share of exact answers to held-out sums.
const REQUIRED: f64 = 0.95;
/// Largest difference between the logits of the two files that hold the model.
const TOLERANCE: f32 = 1e-4;

/// Trains a tiny BLOOM to add two numbers written as text.
#[derive(Parser)]
struct Arguments {
    /// Folder of the checkpoint. Default: examples/adder.
    #[arg(long)]
    out: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    /// Train nothing: read the checkpoint, and fail unless 95 % of the held-out sums are right.
    #[arg(long)]
    evaluate: bool,
    /// Train nothing: write the Burn record anew from the checkpoint, as after a change of the record's format, and evaluate.
    #[arg(long, conflicts_with = "evaluate")]
    record: bool,
    /// Backend to run on.
    #[arg(long, value_enum, default_value_t = BackendName::default())]
    backend: BackendName,
}

/// How to train.
#[derive(clap::Args)]
struct Settings {
    /// Number of times that every sum is seen.
    #[arg(long, default_value_t = 60)]
    epochs: usize,
    /// Sums in a step.
    #[arg(long, default_value_t = 128)]
    batch_size: usize,
    /// Largest learning rate; it rises at first and then falls along a cosine.
    #[arg(long, default_value_t = 3e-3)]
    learning_rate: f64,
    /// Seed of the first weights and of the order of the sums. Which sums are held out does not depend on it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    exit(on_backend!(arguments.backend, run, &arguments))
}

fn run<B: InferenceBackend>(arguments: &Arguments) -> Result<(), Failure> {
    let adder = concat!(env!("CARGO_MANIFEST_DIR"), "/../adder");
    let folder = arguments.out.clone().unwrap_or_else(|| adder.into());
    if arguments.record {
        export::record::<B>(&folder)?;
        println!("written to {}", folder.display());
    } else if !arguments.evaluate {
        let record = model::config_record();
        let config = HuggingFaceConfig::from_json(record.clone())?;
        let tokenizer = tokenizer::tokenizer()?;
        // burn-train sums up the logs it finds, so those of an earlier run must not be there.
        let artifacts = tempfile::tempdir()?;
        let started = Instant::now();
        let decoder = training::train::<Autodiff<B>>(&config, &tokenizer, &arguments.settings, artifacts.path())?;
        println!("trained in {:.0} s", started.elapsed().as_secs_f64());
        export::save(&decoder, &record, &tokenizer, &folder)?;
        println!("written to {}", folder.display());
    }
    evaluate::<B>(&folder)
}

/// An error unless both files of the checkpoint hold the same model, and it adds.
fn evaluate<B: InferenceBackend>(folder: &Path) -> Result<(), Failure> {
    let device = B::Device::default();
    let saved = export::open::<B>(folder, &device)?;
    let difference = difference(&saved)?;
    println!("checkpoint and record: largest difference of the logits {difference:.1e}");
    if difference.is_nan() || difference > TOLERANCE {
        return Err(format!(
            "the logits of model.safetensors and model.mpk differ by more than {TOLERANCE:e}; train again, or write model.mpk anew with --record"
        )
        .into());
    }
    let started = Instant::now();
    let score = sums::score(&saved.checkpoint, &saved.tokenizer, &sums::held_out())?;
    let (seconds, percent) = (started.elapsed().as_secs_f64(), 100.0 * score.accuracy());
    println!("held-out sums: {percent:.2} % of {} exact, in {seconds:.1} s", score.asked);
    for mistake in score.mistakes.iter().take(10) {
        println!("  wrong: {mistake}");
    }
    match score.accuracy() >= REQUIRED {
        true => Ok(()),
        false => Err(format!("fewer than {:.0} % are right; train for more --epochs", 100.0 * REQUIRED).into()),
    }
}

/// Largest difference between the logits of the checkpoint and of the record, on one sum.
fn difference<B: InferenceBackend>(saved: &Saved<B>) -> Result<f32, Failure> {
    let ids: Vec<i64> = saved.tokenizer.encode("17+25=42", true)?.get_ids().iter().map(|&id| id.into()).collect();
    let shape = [1, ids.len()];
    let ids = Tensor::<B, 2, Int>::from_data(TensorData::new(ids, shape), &saved.checkpoint.device);
    let difference = saved.checkpoint.decoder.forward_uncached(ids.clone())? - saved.record.forward_uncached(ids)?;
    Ok(difference.abs().max().into_scalar().elem())
}
