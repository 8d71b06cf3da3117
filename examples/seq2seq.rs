//! Generates texts with an encoder-decoder: T5, mT5 and BART from texts, Whisper from features of sound.
//!
//! ```text
//! cargo run --release --example seq2seq -- --model DIR "translate English to German: The house is old."
//! cargo run --release --example seq2seq -- --model DIR --ids 5,9,1 --ids 7,1                  # two rows of tokens
//! cargo run --release --example seq2seq -- --model DIR --features features.safetensors        # Whisper
//! cargo run --release --example seq2seq -- --model tests/golden/seq2seq/t5 --check tests/golden/seq2seq/t5/expected.json
//! ```
//!
//! Features are log-mel spectra `[bins, frames]`, or batches of them, prepared as the model wants them. Standard output has a line for each
//! text, each tensor of features, or each row of a batch, in the order given. Everything else is on standard error.

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Instant;

use burn_deepspeed_examples::backend::{BackendName, exit};
use burn_deepspeed_examples::seq2seq::{self, Options, Sources, check};
use burn_deepspeed_examples::{Failure, text, tokenizer};
use clap::Parser;
use tokenizers::Tokenizer;

/// Generates texts with an encoder-decoder, T5, mT5, BART or Whisper, by taking the likeliest token each time.
#[derive(Parser)]
struct Arguments {
    /// Texts for the encoder; they run as one batch.
    #[arg(conflicts_with_all = ["ids", "features", "check"])]
    texts: Vec<String>,
    /// Folder with config.json, model.safetensors and, for text, tokenizer.json.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Token ids for the encoder in place of a text, as in 5,9,1. May be given several times.
    #[arg(long, value_name = "IDS", conflicts_with_all = ["features", "check"])]
    ids: Vec<Ids>,
    /// Features of sound for the encoder: a safetensors file whose tensors are [bins, frames] or batches of them.
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    features: Option<PathBuf>,
    /// Token ids that the decoder starts with. Default: that of the configuration.
    #[arg(long, value_name = "IDS")]
    decoder_ids: Option<Ids>,
    /// Largest number of tokens to generate; the end-of-text token of the model stops a text earlier.
    #[arg(long, default_value_t = 32)]
    max_new_tokens: usize,
    /// Print the generated ids instead of texts.
    #[arg(long)]
    print_ids: bool,
    /// Run the batch of an expected.json, and fail unless ids are equal and logits agree within 1e-3.
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
    /// Allow this key in config.json: it changes nothing. May be given several times.
    #[arg(long, value_name = "KEY")]
    allow_key: Vec<String>,
    /// Backend to run on.
    #[arg(long, value_enum, default_value_t = BackendName::default())]
    backend: BackendName,
}

/// Token ids separated by commas.
#[derive(Debug, Clone)]
struct Ids(Vec<u32>);

impl FromStr for Ids {
    type Err = std::num::ParseIntError;

    fn from_str(list: &str) -> Result<Self, Self::Err> {
        list.split(',').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    exit(run(&arguments))
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let started = Instant::now();
    let options = Options { allowed_keys: arguments.allow_key.clone() };
    let (model, report) = seq2seq::open(arguments.backend, &arguments.model, &options)?;
    let (config, seconds) = (model.config(), started.elapsed().as_secs_f64());
    let layers = [config.encoder.layers, config.decoder.layers];
    eprintln!("{} with {} and {} layers in {seconds:.2} s: {report}", config.family.name(), layers[0], layers[1]);
    if let Some(file) = &arguments.check {
        println!("{}", check::run(&*model, file, None)?);
        return Ok(());
    }

    let tokenizer = tokenizer::open(&arguments.model)?;
    let sources = sources(arguments, tokenizer.as_ref())?;
    let started = Instant::now();
    let start = arguments.decoder_ids.as_ref().map(|ids| &ids.0[..]);
    let rows = seq2seq::generate(&*model, &sources, start, arguments.max_new_tokens)?;
    for row in &rows {
        match tokenizer.as_ref().filter(|_| !arguments.print_ids) {
            Some(tokenizer) => println!("{}", tokenizer.decode(row, true)?),
            None => println!("{}", text::list(row)),
        }
    }
    let tokens: usize = rows.iter().map(Vec::len).sum();
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("{} rows: generated {tokens} tokens in {seconds:.3} s", rows.len());
    Ok(())
}

/// What the encoder reads.
fn sources(arguments: &Arguments, tokenizer: Option<&Tokenizer>) -> Result<Sources, Failure> {
    if let Some(file) = &arguments.features {
        return Ok(Sources::Features(file.clone()));
    }
    if !arguments.ids.is_empty() {
        return Ok(Sources::Tokens(arguments.ids.iter().map(|ids| ids.0.clone()).collect()));
    }
    if arguments.texts.is_empty() {
        return Err("no text; give some as arguments, or --ids 5,9,1, or --features FILE for Whisper".into());
    }
    let Some(tokenizer) = tokenizer else {
        return Err(format!("{} has no tokenizer.json; give --ids 5,9,1", arguments.model.display()).into());
    };
    Sources::of_texts(tokenizer, &arguments.texts)
}
