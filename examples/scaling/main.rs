//! Times a decoding step of one layer on ranks of this machine, compares it with a cost model
//! ([`burn_deepspeed_examples::scaling`]), and extrapolates the model to 8 and 16 GPUs.
//!
//! ```text
//! cargo run --release --example scaling                                  # 2 and 4 threads, then the prediction
//! cargo build --release --features mpi --example scaling
//! mpirun -n 2 --bind-to none target/release/examples/scaling --engine mpi    # processes
//! mpirun -n 4 --bind-to none --oversubscribe target/release/examples/scaling --engine mpi --latency 9e-6 --link 2e9
//! ```
//!
//! The run on one rank gives the model the memory bandwidth of the machine, and the sums of two ranks give it the speed of their
//! connection. Its steps on two and four ranks are then compared with the measured ones. With more than two processes, pass
//! `--latency` and `--link` as the run on two printed them.

mod measure;

use std::num::NonZeroUsize;
use std::process::ExitCode;

use burn_deepspeed::InferenceBackend;
use burn_deepspeed_examples::backend::{BackendName, exit};
use burn_deepspeed_examples::ranks::{Engine, Ranks};
use burn_deepspeed_examples::scaling::{Layer, Link, MICROSECONDS, Machine, fitted, predictions};
use burn_deepspeed_examples::{Failure, on_backend};
use clap::Parser;

use measure::{Measured, SUMS};

/// Times a layer on ranks of this machine, and predicts it on GPUs.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    ranks: Ranks,
    /// Width of the residual stream.
    #[arg(long, default_value_t = 4096)]
    hidden_size: usize,
    /// Query heads. Four share a key/value head if their number is a multiple of four.
    #[arg(long, default_value_t = 32)]
    heads: usize,
    /// Rows of the batch.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Tokens that the cache holds.
    #[arg(long, default_value_t = 512)]
    history: usize,
    /// Rounds of twelve steps of each kind.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Seconds per round of a sum, as printed by a run on two ranks.
    #[arg(long, requires = "link")]
    latency: Option<f64>,
    /// Bytes per second that a rank sends, as printed by a run on two ranks.
    #[arg(long, requires = "latency")]
    link: Option<f64>,
    /// Backend to run on.
    #[arg(long, value_enum, default_value_t = BackendName::default())]
    backend: BackendName,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    exit(on_backend!(arguments.backend, run, &arguments))
}

fn run<B: InferenceBackend>(arguments: &Arguments) -> Result<(), Failure> {
    let layer = Layer {
        hidden_size: arguments.hidden_size,
        heads: arguments.heads,
        kv_heads: if arguments.heads.is_multiple_of(4) { arguments.heads / 4 } else { arguments.heads },
        head_dim: arguments.hidden_size / arguments.heads.max(1),
        mlp_size: 0,
        element: 4,
        batch: arguments.batch,
        history: arguments.history,
    };
    let known = arguments.latency.zip(arguments.link).map(|(latency, bandwidth)| Link { latency, bandwidth });
    match arguments.ranks.engine() {
        Engine::Local => {
            let mut link = known;
            let counts = match arguments.ranks.count() {
                Some(count) => vec![count],
                None => [2, 4].into_iter().filter_map(NonZeroUsize::new).collect(),
            };
            for count in counts {
                link = Some(compare::<B>(arguments, arguments.ranks.with(count), &layer, link)?);
            }
            predict()
        }
        Engine::Mpi => compare::<B>(arguments, arguments.ranks, &layer, known).map(drop),
    }
}

/// Measures, prints the times next to those of the model, and returns the link that the model used.
fn compare<B: InferenceBackend>(
    arguments: &Arguments,
    ranks: Ranks,
    layer: &Layer,
    known: Option<Link>,
) -> Result<Link, Failure> {
    let cores = std::thread::available_parallelism()?;
    let results = ranks.run(|communicator| {
        let measured = measure::measure::<B>(layer, &communicator, cores, arguments.rounds)?;
        Ok((communicator.rank(), communicator.size(), measured))
    })?;
    let (rank, count, measured) = results[0];
    if count < 2 {
        return Err("one rank has no sums to measure; give two or more, with --ranks or `mpirun -n`".into());
    }
    let sums = [0, 1].map(|at| (4.0 * SUMS[at] as f64, measured.links[at]));
    let link = known.unwrap_or_else(|| fitted(count, sums));
    if rank == 0 {
        report(layer, count, cores, &measured, link)?;
    }
    Ok(link)
}

fn report(layer: &Layer, count: usize, cores: NonZeroUsize, measured: &Measured, link: Link) -> Result<(), Failure> {
    // The ranks of this machine share its memory, so together they read as fast as one rank with all cores. If there
    // are more ranks than cores, they take turns in a sum.
    let whole = layer.largest_part(1)?;
    let turns = count.div_ceil(cores.get()) as f64;
    let inside = Link { latency: link.latency * turns, bandwidth: link.bandwidth / turns };
    let machine = Machine { fixed: 0.0, bandwidth: whole / measured.alone, devices: 1, inside, between: None };
    let (step, sums) = machine.step(layer, count)?;
    let us = |seconds: f64| format!("{:.0}", seconds * MICROSECONDS);
    println!("{count} ranks on {cores} cores, {} MiB of weights and cache:", whole as usize >> 20);
    println!("| | measured, µs | model, µs |\n| --- | --- | --- |");
    println!("| step on 1 rank with all cores | {} | |", us(measured.alone));
    println!("| step on {count} ranks | {} | {} |", us(measured.step), us(step));
    println!("| … of which sums, with the wait for the slowest | {} | {} |", us(measured.sums), us(sums));
    for (count_of, taken) in SUMS.iter().zip(measured.links) {
        let bytes = 4.0 * *count_of as f64;
        println!("| sum of {count_of} numbers | {} | {} |", us(taken), us(inside.sum(count, bytes)));
    }
    println!("link: --latency {:.2e} --link {:.2e}\n", link.latency, link.bandwidth);
    Ok(())
}

fn predict() -> Result<(), Failure> {
    println!("The model on hosts with eight H200, in µs per step (of which sums); none of it was measured:");
    println!("| layer of 70B, 4096 tokens per row | 1 GPU | 8 GPUs | 2 × 8 GPUs |\n| --- | --- | --- | --- |");
    for line in predictions()? {
        println!("{line}");
    }
    Ok(())
}
