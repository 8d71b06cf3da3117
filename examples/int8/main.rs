//! A checkpoint in int8: quantises its projections, saves and loads them, generates, and prints what that saves and costs.
//!
//! ```text
//! cargo run --release --example int8                                       # the adder of the repository
//! cargo run --release --example int8 -- --model DIR --prompt "Once upon a time"
//! cargo run --release --example int8 -- --model DIR --prompt-ids 5,9,2 --save DIR/int8
//! cargo run --release --example int8 -- --table --embeddings DIR           # the table of docs/int8.md
//! ```

mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use burn_deepspeed_examples::Failure;
use burn_deepspeed_examples::backend::{BackendName, exit};
use burn_deepspeed_examples::int8::KINDS;
use burn_deepspeed_examples::text::{self, Batch, Options, Prompt, Source, TextModel, continuation, likeliest};
use clap::Parser;

/// Bytes of a KiB.
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
    /// Print only a table: the cost of int8 for the adder and for the checkpoints of the tests.
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
    exit(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.table {
        return table::print(arguments.backend, arguments.embeddings.as_deref());
    }
    let files = arguments.source.files()?;
    let (dense, _) = text::open(arguments.backend, &files, &Options::default())?;
    let prompt = arguments.source.read(&files)?;

    let all = KINDS[KINDS.len() - 1];
    let int8 = dense.in_int8(all.weights, all.cache)?;
    let temporary = tempfile::tempdir()?;
    let path = arguments.save.clone().unwrap_or_else(|| temporary.path().join("int8"));
    int8.save(&path)?;
    let on_disk = path.with_extension("mpk").metadata()?.len();
    dense.save(&temporary.path().join("dense"))?;
    let dense_on_disk = temporary.path().join("dense.mpk").metadata()?.len();
    // A record of int8 is loaded into a model that is quantised the same way.
    let loaded = int8.with_record(&path)?;

    let line = |what: &str, dense: f64, int8: f64| {
        println!("{what:<20} {:>10.1} KiB -> {:>10.1} KiB, {:.1} % saved", dense / KIB, int8 / KIB, saved(dense, int8));
    };
    line("parameters", dense.parameter_bytes() as f64, loaded.parameter_bytes() as f64);
    line("record on disk", dense_on_disk as f64, on_disk as f64);
    line("cache of one row", dense.cache_bytes()? as f64, loaded.cache_bytes()? as f64);
    let (wanted, dense_text) = generate(&*dense, &prompt, arguments.max_new_tokens)?;
    let (found, int8_text) = generate(&*loaded, &prompt, arguments.max_new_tokens)?;
    println!("error of the logits  {:.2} %", 100.0 * relative_error(&found, &wanted));
    println!("f32   {dense_text}");
    println!("int8  {int8_text}");
    Ok(())
}

/// The logits of the first new token, and the likeliest text.
fn generate(model: &dyn TextModel, prompt: &Prompt, new_tokens: usize) -> Result<(Vec<f32>, String), Failure> {
    let batch = Batch::single(&prompt.ids);
    let mut session = model.session(&batch, new_tokens)?;
    let first = session.prefill(&batch, None)?.swap_remove(0);
    let generated = continuation(model, &mut *session, first.clone(), new_tokens, likeliest, |_| Ok(()))?;
    let text = prompt.text(&generated, true)?;
    Ok((first, text))
}

/// Norm of the difference over the norm of what was wanted.
fn relative_error(found: &[f32], wanted: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    norm(&mut found.iter().zip(wanted).map(|(a, b)| a - b)) / norm(&mut wanted.iter().copied())
}

/// Percent.
fn saved(before: f64, after: f64) -> f64 {
    100.0 * (1.0 - after / before)
}
