//! Generates text with a checkpoint in the Hugging Face layout, with a GGUF file, or with the tiny adder that ships with the repository.
//!
//! ```text
//! cargo run --release --example generate                                   # the adder: prints a sum
//! cargo run --release --example generate -- --prompt "48+76="              # prints 124
//! cargo run --release --example generate -- --prompt "48+76=" --echo       # prints 48+76=124
//! cargo run --release --example generate -- --model DIR --prompt "Once upon a time" --max-new-tokens 64
//! cargo run --release --example generate -- --model DIR --chat --prompt "What is Rust?" --system "Answer in one sentence."
//! cargo run --release --example generate -- --model FILE.gguf --chat --prompt "What is Rust?"
//! cargo run --release --example generate -- --model FILE.gguf --round-activations 8 --prompt "What is Rust?"
//! cargo run --release --example generate -- --dtype int8 --kv-cache int8
//! cargo run --release --example generate -- --list                         # the families that are supported
//! cargo run --release --example generate -- --model tests/golden/models/llama --check tests/golden/models/llama/expected.json
//! ```

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use burn_deepspeed::config::ActivationRounding;
use burn_deepspeed::load::{families, gguf};
use burn_deepspeed::{DataType, KvCacheType, Parallelism};
use burn_deepspeed_examples::Failure;
use burn_deepspeed_examples::backend::{BackendName, Precision, Types, exit, input_rounding};
use burn_deepspeed_examples::text::{self, Batch, Options, Prompt, Sampler, Source, TextModel, TextStream, check};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

/// Generates text with a decoder-only model of a family that `--list` prints, and prints it as it comes.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    source: Source,
    /// Largest number of tokens to generate; the end-of-text token of the model stops it earlier.
    #[arg(long, default_value_t = 32)]
    max_new_tokens: usize,
    /// Print the generated ids instead of text.
    #[arg(long)]
    print_ids: bool,
    /// Randomness: 0 always takes the likeliest token.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f64,
    /// Draw only from the likeliest tokens whose probabilities sum to this.
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    top_p: f64,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Feed the prompt in pieces of this many tokens. Default: all at once.
    #[arg(long)]
    chunk: Option<NonZeroUsize>,
    /// Run the batch of an expected.json, and fail unless ids are equal and prompt logits agree within 1e-3.
    #[arg(long, conflicts_with_all = ["prompt", "prompt_ids"])]
    check: Option<PathBuf>,
    /// Backend to run on.
    #[arg(long, value_enum, default_value_t = BackendName::default())]
    backend: BackendName,
    /// Element type of weights, activations and cache: fp32, fp16, bf16 or int8. `stored` keeps matrices in the blocks and floats of their
    /// file, and the name of a format, such as q8_0, rounds floats to it; activations are fp32 then. Default: stored for a GGUF file on the
    /// CPU, and otherwise fp32.
    #[arg(long, value_name = "TYPE")]
    dtype: Option<Types>,
    /// Round the inputs of matrices of int8 or of blocks to this many bits, or those of matrices of 16 bits to bf16. 8 is fastest; 14 costs hardly
    /// any accuracy. Default: they are not rounded, but those of a few tokens next to blocks have 16 bits.
    #[arg(long, value_name = "8|14|bf16", value_parser = input_rounding)]
    round_activations: Option<ActivationRounding>,
    /// Element type of cached keys and values. Default: that of the activations.
    #[arg(long, value_enum)]
    kv_cache: Option<Precision>,
    /// Print the tables of the families, and of the architectures of GGUF files, that are supported.
    #[arg(long)]
    list: bool,
    /// Allow this key in config.json: it changes nothing. May be given several times.
    #[arg(long, value_name = "KEY")]
    allow_key: Vec<String>,
    /// Run the language model alone of a model that also reads images, such as Llama 4.
    #[arg(long)]
    text_only: bool,
    /// Threads of the CPU kernels. Default: one per core.
    #[arg(long)]
    threads: Option<NonZeroUsize>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let parallelism = arguments.threads.map_or_else(|| Ok(Parallelism::current()), Parallelism::threads);
    // Kernels that are called inside `run` use these threads.
    exit(parallelism.map_err(Failure::from).and_then(|threads| threads.run(|| run(&arguments))))
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.list {
        print!("{}\nGGUF files:\n\n{}", families::table(), gguf::table());
        return Ok(());
    }
    let files = arguments.source.files()?;
    let kv_cache = arguments.kv_cache.map_or_else(KvCacheType::default, |dtype| DataType::from(dtype).into());
    let allowed_keys = arguments.allow_key.clone();
    let types = arguments.dtype.unwrap_or_else(|| Types::of_model(&files, arguments.backend));
    let options = Options {
        dtype: types.dtype,
        matrices: types.matrices,
        rounding: types.rounding(arguments.round_activations)?,
        kv_cache,
        allowed_keys,
        text_only: arguments.text_only,
        ..Options::default()
    };
    let started = Instant::now();
    let (model, report) = text::open(arguments.backend, &files, &options)?;
    let (config, seconds) = (model.config(), started.elapsed().as_secs_f64());
    eprintln!("{} with {} layers in {seconds:.2} s: {report}", config.family.name(), config.layers);

    if let Some(file) = &arguments.check {
        println!("{}", check::run(&*model, file, arguments.chunk)?);
        return Ok(());
    }
    let prompt = arguments.source.read(&files)?;
    let sampler = Sampler::new(arguments.temperature, arguments.top_p, arguments.seed)?;
    match prompt.tokenizer.as_ref().filter(|_| !arguments.print_ids) {
        Some(tokenizer) => stream(&*model, &prompt, TextStream::new(tokenizer), arguments, sampler),
        None => {
            let bar = ProgressBar::new(arguments.max_new_tokens as u64);
            bar.set_style(ProgressStyle::with_template("{bar:32} {pos}/{len} tokens {per_sec}")?);
            let each = |_| {
                bar.inc(1);
                Ok(())
            };
            let (generated, speed) = generate(&*model, &prompt.ids, arguments, sampler, each)?;
            bar.finish_and_clear();
            println!("{}", prompt.list(&generated, arguments.source.echo()));
            eprintln!("{speed}");
            Ok(())
        }
    }
}

/// Prints text as it comes.
fn stream(
    model: &dyn TextModel,
    prompt: &Prompt,
    mut text: TextStream<'_>,
    arguments: &Arguments,
    sampler: Sampler,
) -> Result<(), Failure> {
    let print = |piece: &str| {
        let mut output = std::io::stdout().lock();
        output.write_all(piece.as_bytes()).and_then(|()| output.flush()).map_err(Failure::from)
    };
    let before = text.push(&prompt.ids)?;
    match arguments.source.echo() {
        true => print(&before)?,
        false => text.skip()?,
    }
    let each = |token| print(&text.push(&[token])?);
    let (_, speed) = generate(model, &prompt.ids, arguments, sampler, each)?;
    print(&(text.finish()? + "\n"))?;
    eprintln!("{speed}");
    Ok(())
}

/// Continues one prompt. `each` takes every token. Returns them, and how fast they came.
fn generate(
    model: &dyn TextModel,
    prompt: &[u32],
    arguments: &Arguments,
    mut sampler: Sampler,
    each: impl FnMut(u32) -> Result<(), Failure>,
) -> Result<(Vec<u32>, String), Failure> {
    if arguments.max_new_tokens == 0 {
        return Ok((Vec::new(), "no tokens were asked for".into()));
    }
    let batch = &Batch::single(prompt);
    let started = Instant::now();
    let mut session = model.session(batch, arguments.max_new_tokens)?;
    let logits = session.prefill(batch, arguments.chunk)?.swap_remove(0);
    let prefilled = started.elapsed().as_secs_f64();
    let decoding = Instant::now();
    let most = arguments.max_new_tokens;
    let generated = text::continuation(model, &mut *session, logits, most, |logits| sampler.draw(logits), each)?;
    let (tokens, steps) = (batch.width(), generated.len().saturating_sub(1));
    let rate = steps as f64 / decoding.elapsed().as_secs_f64().max(1e-9);
    let speed =
        format!("prompt: {tokens} tokens in {prefilled:.3} s; generated {}, {rate:.1} tokens/s", generated.len());
    Ok((generated, speed))
}
