//! Compares the vectors with those that PyTorch computed from the same checkpoint; see `scripts/minilm_embeddings.py`.

use std::path::Path;
use std::time::Instant;

use burn_deepspeed_examples::Failure;
use burn_deepspeed_examples::embedder::{Embed, Scaling};
use serde::Deserialize;

/// Largest difference allowed between two numbers of unit vectors.
const TOLERANCE: f32 = 1e-5;

#[derive(Deserialize)]
struct Expected {
    source: String,
    batch: usize,
    sentences: Vec<String>,
    embeddings: Vec<Vec<f32>>,
    token_counts: Vec<usize>,
}

/// Embeds the sentences of `file` in its batches; an error unless token counts are equal and every number agrees within 1e-5.
pub fn run(embedder: &dyn Embed, file: &Path) -> Result<(), Failure> {
    let expected = read(file)?;
    let sentences: Vec<&str> = expected.sentences.iter().map(String::as_str).collect();
    let started = Instant::now();
    let mut found = Vec::with_capacity(sentences.len());
    for batch in sentences.chunks(expected.batch) {
        found.extend(embedder.embed(batch, Scaling::Saved)?);
    }
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("{} sentences in {seconds:.2} s, {:.1} sentences/s", found.len(), found.len() as f64 / seconds);

    let (mut difference, mut cosine) = (0.0f32, 1.0f64);
    for ((ours, theirs), &tokens) in found.iter().zip(&expected.embeddings).zip(&expected.token_counts) {
        let text = &ours.text;
        if ours.tokens != tokens {
            return Err(format!("\"{text}\" has {} tokens, expected {tokens}", ours.tokens).into());
        }
        if ours.embedding.len() != theirs.len() {
            let (ours, theirs) = (ours.embedding.len(), theirs.len());
            return Err(format!("the vectors have {ours} numbers, expected {theirs}").into());
        }
        for (a, b) in ours.embedding.iter().zip(theirs) {
            difference = worst(difference, (a - b).abs());
        }
        cosine = cosine.min(cosine_of(&ours.embedding, theirs));
    }
    println!(
        "{}: {} sentences, largest difference {difference:.2e}, smallest cosine {cosine:.9}",
        expected.source,
        found.len()
    );
    match difference <= TOLERANCE {
        true => Ok(()),
        false => Err(format!(
            "the vectors differ by more than {TOLERANCE:e}; the file and the model must be of the same checkpoint"
        )
        .into()),
    }
}

fn read(file: &Path) -> Result<Expected, Failure> {
    let failed = |what: &str| -> Failure {
        let name = file.display();
        format!("{name} {what}; make it with scripts/minilm_embeddings.py").into()
    };
    let text = std::fs::read_to_string(file).map_err(|cause| failed(&format!("cannot be read: {cause}")))?;
    let expected: Expected =
        serde_json::from_str(&text).map_err(|cause| failed(&format!("is not a file of embeddings: {cause}")))?;
    let Expected { batch, sentences, embeddings, token_counts, .. } = &expected;
    match (*batch, sentences.len()) {
        (0, _) => Err(failed("has batches of 0 sentences")),
        (_, 0) => Err(failed("has no sentences")),
        (_, count) if embeddings.len() != count || token_counts.len() != count => {
            Err(failed("does not have an embedding and a token count for each sentence"))
        }
        _ => Ok(expected),
    }
}

/// The larger of two differences; a NaN is worse than any number and stays.
fn worst(so_far: f32, difference: f32) -> f32 {
    if difference > so_far || difference.is_nan() { difference } else { so_far }
}

fn cosine_of(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
