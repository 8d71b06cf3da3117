//! The cost of int8, as a table.

use std::path::{Path, PathBuf};

use burn_deepspeed::config::ActivationRounding;
use burn_deepspeed::weight::Int8Blocks;
use burn_deepspeed_examples::backend::BackendName;
use burn_deepspeed_examples::embedder::{self, Scaling};
use burn_deepspeed_examples::int8::{KINDS, distance};
use burn_deepspeed_examples::text::{self, Options};
use burn_deepspeed_examples::{Failure, ModelFiles, sums, tokenizer};
use serde::Deserialize;

/// The sentences that are embedded.
#[derive(Deserialize)]
struct Sentences {
    sentences: Vec<String>,
}

/// Prints one row for each kind of int8.
pub fn print(backend: BackendName, embeddings: Option<&Path>) -> Result<(), Failure> {
    let open =
        |folder: &Path| text::open(backend, &ModelFiles::open(folder)?, &Options::default()).map(|(model, _)| model);
    let adder = open(&repository("examples/adder"))?;
    let tokenizer = tokenizer::open(&repository("examples/adder"))?.ok_or("the adder has no tokenizer.json")?;
    let mut folders: Vec<_> = std::fs::read_dir(repository("tests/golden/models"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_, std::io::Error>>()?;
    folders.sort();
    let models = folders.iter().map(|folder| open(folder)).collect::<Result<Vec<_>, _>>()?;
    let cosines = embeddings.map(|folder| cosines(backend, folder)).transpose()?;

    println!("| in int8 | sums right | error of the logits | tokens equal | smallest cosine, mean |");
    println!("| --- | ---: | ---: | ---: | ---: |");
    for kind in KINDS {
        let int8 = adder.in_int8(kind.weights, kind.cache)?;
        let score = sums::score(&*int8, &tokenizer, &sums::held_out())?;
        let (mut error, mut tokens) = (0.0f64, 0.0);
        for (model, folder) in models.iter().zip(&folders) {
            let int8 = model.in_int8(kind.weights, kind.cache)?;
            let found = distance(&*int8, &folder.join("expected.json"))?;
            error = error.max(found.logits);
            tokens += found.tokens / models.len() as f64;
        }
        let cosine = match (&cosines, kind.weights, kind.cache == Default::default()) {
            (Some((smallest, mean)), true, true) => format!("{smallest:.5}, {mean:.5}"),
            _ => "–".into(),
        };
        println!(
            "| {} | {:.2} % of {} | {:.2} % | {:.1} % | {cosine} |",
            kind.name,
            100.0 * score.accuracy(),
            score.asked,
            100.0 * error,
            100.0 * tokens
        );
    }
    Ok(())
}

/// The smallest and the mean cosine of embeddings with int8 weights and those in f32.
fn cosines(backend: BackendName, folder: &Path) -> Result<(f64, f64), Failure> {
    let file = repository("tests/data/minilm/embeddings.json");
    let Sentences { sentences } = serde_json::from_str(&std::fs::read_to_string(file)?)?;
    let sentences: Vec<&str> = sentences.iter().map(String::as_str).collect();
    let (dense, _) = embedder::open(backend, &ModelFiles::open(folder)?, &Default::default())?;
    let wanted = dense.embed(&sentences, Scaling::Unit)?;
    let found = dense.quantize(Int8Blocks::PerOutput, ActivationRounding::Never)?.embed(&sentences, Scaling::Unit)?;
    let cosine = |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    let all: Vec<f64> = found.iter().zip(&wanted).map(|(a, b)| cosine((&a.embedding, &b.embedding))).collect();
    Ok((all.iter().copied().fold(f64::INFINITY, f64::min), all.iter().sum::<f64>() / all.len() as f64))
}

/// A file or folder of the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(path)
}
