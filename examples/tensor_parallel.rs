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

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use burn_deepspeed::Communicator;
use burn_deepspeed::parallel::{AgreedSettings, Agreement};
use burn_deepspeed_examples::Failure;
use burn_deepspeed_examples::backend::{BackendName, Precision, exit};
use burn_deepspeed_examples::ranks::Ranks;
use burn_deepspeed_examples::text::{self, Batch, Options, Sampler, Source, check};
use clap::Parser;

/// The number of threads, unless `--ranks` gives another.
const RANKS: NonZeroUsize = NonZeroUsize::new(2).expect("two is not zero");

/// Generates text with a decoder-only model whose heads and MLP are split over ranks.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    ranks: Ranks,
    /// Largest number of tokens to generate; the end-of-text token of the model stops it earlier.
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
    /// Allow this key in config.json: it changes nothing. May be given several times.
    #[arg(long, value_name = "KEY")]
    allow_key: Vec<String>,
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
    exit(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let texts = arguments.ranks.or(RANKS).run(|communicator| on_rank(arguments, communicator))?;
    if let Some(text) = texts.iter().flatten().next() {
        println!("{text}");
    }
    Ok(())
}

/// The text, on rank 0, once every rank has generated the same.
fn on_rank(arguments: &Arguments, communicator: Arc<dyn Communicator>) -> Result<Option<String>, Failure> {
    let files = arguments.source.files()?;
    let options = Options {
        dtype: arguments.dtype.into(),
        rank: Some(communicator.clone()),
        uneven_heads: arguments.uneven_heads,
        allowed_keys: arguments.allow_key.clone(),
        ..Options::default()
    };
    let (model, report) = text::open(arguments.backend, &files, &options)?;
    let config = model.config();
    let shard = config.attention_spec(0)?.shard;
    eprintln!(
        "rank {} of {}: heads {:?} of {}, {report}",
        communicator.rank(),
        communicator.size(),
        shard.queries(),
        shard.total
    );
    if let Some(file) = &arguments.check {
        let outcome = check::run(&*model, file, None)?;
        return Ok((communicator.rank() == 0).then_some(outcome));
    }

    let prompt = arguments.source.read(&files)?;
    let batch = Batch::single(&prompt.ids);
    let mut sampler = Sampler::new(arguments.temperature, 1.0, arguments.seed)?;
    let mut session = model.session(&batch, arguments.max_new_tokens)?;
    let logits = session.prefill(&batch, None)?.swap_remove(0);
    // Every rank has the same bits, so every rank draws the same token.
    let draw = |logits: &[f32]| sampler.draw(logits);
    let generated = text::continuation(&*model, &mut *session, logits, arguments.max_new_tokens, draw, |_| Ok(()))?;
    // If the ranks generated different texts, this is an error.
    let settings = AgreedSettings::new([("the text", &generated)]);
    communicator.barrier(&Agreement::barrier().with_settings(&settings))?;
    let echo = arguments.source.echo();
    let text = if arguments.print_ids { prompt.list(&generated, echo) } else { prompt.text(&generated, echo)? };
    Ok((communicator.rank() == 0).then_some(text))
}
