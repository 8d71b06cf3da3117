//! `generate` on several ranks: heads and MLP are split, every rank reads its part of the checkpoint, and all print the same text.
//!
//! ```text
//! cargo run --release --example tensor_parallel                               # two threads, the adder of the repository
//! cargo run --release --example tensor_parallel -- --ranks 4 --prompt "48+76="
//! cargo run --release --example tensor_parallel -- --model DIR --prompt-ids 5,9,2 --print-ids
//! ```
//!
//! As processes, on one machine or several (needs OpenMPI and libclang, see `burn_deepspeed::parallel::mpi`):
//!
//! ```text
//! cargo build --release --features mpi --example tensor_parallel
//! mpirun -n 2 target/release/examples/tensor_parallel --engine mpi
//! mpirun -n 4 --host one:2,other:2 target/release/examples/tensor_parallel --engine mpi --model DIR --prompt-ids 5,9,2
//! ```

#[path = "../backend/mod.rs"]
mod backend;
#[path = "../generate/batch.rs"]
mod batch;
#[path = "../generate/check.rs"]
mod check;
#[path = "../decoder/mod.rs"]
mod decoder;
#[path = "../generate/prompt.rs"]
mod prompt;
#[path = "../ranks/mod.rs"]
mod ranks;
#[path = "../generate/sampling.rs"]
mod sampling;

use std::error::Error;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use backend::{BackendName, Precision, exit, on_backend};
use burn_deepspeed::load::{Checkpoint, HuggingFaceConfig};
use burn_deepspeed::parallel::{Agreement, Settings};
use burn_deepspeed::{Communicator, DataType, InferenceBackend};
use clap::Parser;

use batch::{Batch, Session};
use decoder::Decoder;
use prompt::Source;
use ranks::Ranks;
use sampling::Sampler;

type Failure = Box<dyn Error + Send + Sync>;

/// Where nothing is said, two ranks.
const RANKS: NonZeroUsize = NonZeroUsize::new(2).expect("two is not zero");

/// Generates text with a decoder-only model whose heads and MLP are split over ranks.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    ranks: Ranks,
    /// Tokens to generate at most; a model's end-of-text token ends it earlier.
    #[arg(long, default_value_t = 32)]
    max_new_tokens: usize,
    /// Print the generated ids instead of text.
    #[arg(long)]
    print_ids: bool,
    /// Randomness: 0 always takes the likeliest token. Every rank draws with the same seed.
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Run the batch of an expected.json, and fail unless ids are equal and prompt logits agree within 1e-3.
    #[arg(long, conflicts_with_all = ["prompt", "prompt_ids"])]
    check: Option<PathBuf>,
    /// Let ranks hold different numbers of heads.
    #[arg(long)]
    uneven_heads: bool,
    /// Backend to run on.
    #[arg(long, value_enum, default_value_t = BackendName::default())]
    backend: BackendName,
    /// Element type of weights, activations and cache.
    #[arg(long, value_enum, default_value_t = Precision::Fp32)]
    dtype: Precision,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    exit(on_backend!(arguments.backend, run, &arguments))
}

fn run<B: InferenceBackend>(arguments: &Arguments) -> Result<(), Failure> {
    let texts = arguments.ranks.or(RANKS).run(|communicator| on_rank::<B>(arguments, communicator))?;
    if let Some(text) = texts.iter().flatten().next() {
        println!("{text}");
    }
    Ok(())
}

/// The text, on rank 0, once every rank has generated the same.
fn on_rank<B: InferenceBackend>(
    arguments: &Arguments,
    communicator: Arc<dyn Communicator>,
) -> Result<Option<String>, Failure> {
    let device = B::Device::default();
    let folder = arguments.source.folder();
    let config = HuggingFaceConfig::from_json_file(folder.join("config.json"))?
        .with_dtype(DataType::from(arguments.dtype))
        .with_uneven_heads(arguments.uneven_heads)
        .for_rank_of(&*communicator);
    let checkpoint = Checkpoint::open(&folder)?;
    let (model, report) = Decoder::<B>::init(&config, &device)?.load(&config, &checkpoint, &device)?;
    let model = model.with_communicator(&communicator)?;
    let shard = config.attention_config(0).resolve(0)?.shard;
    eprintln!(
        "rank {} of {}: heads {:?} of {}, {report}",
        communicator.rank(),
        communicator.size(),
        shard.queries(),
        shard.total
    );
    if let Some(file) = &arguments.check {
        let outcome = check::run(&model, &config, file, None, &device)?;
        return Ok((communicator.rank() == 0).then_some(outcome));
    }

    let prompt = arguments.source.read(&folder)?;
    let batch = Batch::single(&prompt.ids);
    let mut sampler = Sampler::new(arguments.temperature, 1.0, arguments.seed)?;
    let mut session = Session::new(&model, &config, &batch, arguments.max_new_tokens, &device)?;
    let mut logits = session.prefill(&batch, None)?;
    let mut generated: Vec<u32> = Vec::new();
    while generated.len() < arguments.max_new_tokens {
        // The same bits on every rank, so the same token.
        let next = sampler.draw(&logits[0]);
        if config.eos_token_ids.contains(&(next as usize)) {
            break;
        }
        generated.push(next);
        logits = session.decode(&[next])?;
    }
    // What differs between ranks is an error here, and not a text.
    let text = Settings::new([("the text", &generated)]);
    communicator.barrier(&Agreement::barrier().with_settings(&text))?;
    let text = match (&prompt.tokenizer, arguments.print_ids) {
        (Some(tokenizer), false) => {
            let all: Vec<u32> = prompt.ids.iter().copied().chain(generated).collect();
            tokenizer.decode(&all, true)?
        }
        _ => generated.iter().map(u32::to_string).collect::<Vec<_>>().join(","),
    };
    Ok((communicator.rank() == 0).then_some(text))
}
