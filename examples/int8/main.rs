//! A checkpoint in int8: quantises its projections, saves them, loads them, generates, and says what was saved and what it costs.
//!
//! ```text
//! cargo run --release --example int8                                       # the adder of the repository
//! cargo run --release --example int8 -- --model DIR --prompt "Once upon a time"
//! cargo run --release --example int8 -- --model DIR --prompt-ids 5,9,2 --save DIR/int8
//! cargo run --release --example int8 -- --table --embeddings DIR           # what docs/int8.md shows
//! ```

#[path = "../backend/mod.rs"]
mod backend;
#[path = "../generate/batch.rs"]
mod batch;
#[path = "../decoder/mod.rs"]
mod decoder;
#[allow(dead_code)]
#[path = "../embed/embedder/mod.rs"]
mod embedder;
mod measure;
#[path = "../generate/prompt.rs"]
mod prompt;
#[allow(dead_code)]
#[path = "../generate/sampling.rs"]
mod sampling;
#[allow(dead_code)]
#[path = "../train_adder/sums.rs"]
mod sums;
mod table;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use backend::{BackendName, exit, on_backend};
use burn::module::{Module, ModuleVisitor, Param};
use burn::record::{FullPrecisionSettings, NamedMpkFileRecorder};
use burn::tensor::{Int, Tensor, backend::Backend};
use burn_deepspeed::InferenceBackend;
use burn_deepspeed::weight::Int8Blocks;
use clap::Parser;

use batch::{Batch, Session};
use decoder::Decoder;
use measure::{KINDS, Model};
use prompt::{Prompt, Source};
use sampling::likeliest;

type Failure = Box<dyn Error + Send + Sync>;

/// Where bytes are counted in steps of.
const KIB: f64 = 1024.0;

/// Quantises a decoder-only model, saves it, loads it, and generates with it and with the dense one.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    source: Source,
    /// Tokens to generate.
    #[arg(long, default_value_t = 8)]
    max_new_tokens: usize,
    /// File for the record, without its extension. Default: a temporary one.
    #[arg(long)]
    save: Option<PathBuf>,
    /// Instead of all that, print what int8 costs the adder and the checkpoints of the tests, as a table.
    #[arg(long, conflicts_with_all = ["model", "prompt", "prompt_ids", "save"])]
    table: bool,
    /// Folder of a sentence encoder, such as all-MiniLM-L6-v2, for the table; `embed --help` says where to get it.
    #[arg(long, requires = "table")]
    embeddings: Option<PathBuf>,
    /// Backend to run on.
    #[arg(long, value_enum, default_value_t = BackendName::default())]
    backend: BackendName,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    exit(on_backend!(arguments.backend, run, &arguments))
}

fn run<B: InferenceBackend>(arguments: &Arguments) -> Result<(), Failure> {
    let device = B::Device::default();
    if arguments.table {
        return table::print::<B>(arguments.embeddings.as_deref(), &device);
    }
    let folder = arguments.source.folder();
    let dense = Model::<B>::open(&folder, &device)?;
    let prompt = arguments.source.read(&folder)?;

    let all = KINDS[KINDS.len() - 1];
    let int8 = dense.quantized(all)?;
    let temporary = tempfile::tempdir()?;
    let path = arguments.save.clone().unwrap_or_else(|| temporary.path().join("int8"));
    let recorder = NamedMpkFileRecorder::<FullPrecisionSettings>::new();
    int8.decoder.clone().save_file(&path, &recorder)?;
    let on_disk = path.with_extension("mpk").metadata()?.len();
    dense.decoder.clone().save_file(temporary.path().join("dense"), &recorder)?;
    let dense_on_disk = temporary.path().join("dense.mpk").metadata()?.len();
    // A record of int8 is loaded into a model that is quantised the same way.
    let empty = Decoder::<B>::init(&int8.config, &device)?.quantize(Int8Blocks::PerOutput)?;
    let loaded = Model { decoder: empty.load_file(&path, &recorder, &device)?, ..int8 };

    let line = |what: &str, dense: f64, int8: f64| {
        println!("{what:<20} {:>10.1} KiB -> {:>10.1} KiB, {:.1} % saved", dense / KIB, int8 / KIB, saved(dense, int8));
    };
    line("parameters", bytes(&dense.decoder) as f64, bytes(&loaded.decoder) as f64);
    line("record on disk", dense_on_disk as f64, on_disk as f64);
    let cache = |model: &Model<B>| model.config.attention_config(0).cache_memory_bytes::<B>(1, &device);
    line("cache of one row", cache(&dense)? as f64, cache(&loaded)? as f64);
    let (wanted, dense_text) = generate(&dense, &prompt, arguments.max_new_tokens, &device)?;
    let (found, int8_text) = generate(&loaded, &prompt, arguments.max_new_tokens, &device)?;
    println!("error of the logits  {:.2} %", 100.0 * relative_error(&found, &wanted));
    println!("f32   {dense_text}");
    println!("int8  {int8_text}");
    Ok(())
}

/// A file or folder of the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The logits behind the prompt, and the likeliest text.
fn generate<B: InferenceBackend>(
    model: &Model<B>,
    prompt: &Prompt,
    new_tokens: usize,
    device: &B::Device,
) -> Result<(Vec<f32>, String), Failure> {
    let batch = Batch::single(&prompt.ids);
    let mut session = Session::new(&model.decoder, &model.config, &batch, new_tokens, device)?;
    let mut logits = session.prefill(&batch, None)?;
    let first = logits[0].clone();
    let mut ids = prompt.ids.clone();
    for _ in 0..new_tokens {
        let next = likeliest(&logits[0]);
        if model.config.eos_token_ids.contains(&(next as usize)) {
            break;
        }
        ids.push(next);
        logits = session.decode(&[next])?;
    }
    let text = match &prompt.tokenizer {
        Some(tokenizer) => tokenizer.decode(&ids, true)?,
        None => ids.iter().map(u32::to_string).collect::<Vec<_>>().join(","),
    };
    Ok((first, text))
}

/// Length of the difference over the length.
fn relative_error(found: &[f32], wanted: &[f32]) -> f64 {
    let length = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    length(&mut found.iter().zip(wanted).map(|(a, b)| a - b)) / length(&mut wanted.iter().copied())
}

fn saved(before: f64, after: f64) -> f64 {
    100.0 * (1.0 - after / before)
}

/// Bytes of all parameters.
fn bytes<B: Backend>(decoder: &Decoder<B>) -> usize {
    struct Count(usize);
    impl<B: Backend> ModuleVisitor<B> for Count {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            self.0 += param.shape().num_elements() * param.val().dtype().size();
        }

        fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<B, D, Int>>) {
            self.0 += param.shape().num_elements() * param.val().dtype().size();
        }
    }
    let mut count = Count(0);
    decoder.visit(&mut count);
    count.0
}
