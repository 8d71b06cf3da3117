//! Compares an encoder with what PyTorch computed from the same checkpoint: embeddings of sentences, or the states and vectors of rows of
//! tokens or of images.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Deserialize;
use serde_json::Value;

use super::{Computed, Embed, Scaling, TokenRows};
use crate::Failure;

/// Largest difference allowed between two numbers.
const TOLERANCE: f32 = 1e-5;

/// What a file expects.
pub struct Expected {
    source: String,
    of: Of,
}

enum Of {
    Sentences(Sentences),
    Tokens(Vec<Batch>),
    Images(PathBuf, Numbers),
}

/// Sentences that are embedded in batches, as `scripts/minilm_embeddings.py` writes them.
#[derive(Deserialize)]
struct Sentences {
    batch: usize,
    sentences: Vec<String>,
    embeddings: Vec<Vec<f32>>,
    token_counts: Vec<usize>,
}

/// Rows of tokens, as `tests/golden/generate_encoders.py` writes them.
#[derive(Deserialize)]
struct Batch {
    input_ids: Vec<Vec<u32>>,
    /// 1 for a real token; absent if every token is seen.
    attention_mask: Option<Vec<Vec<u8>>>,
    #[serde(flatten)]
    numbers: Numbers,
}

/// States and vectors, which the class does not always make.
#[derive(Deserialize)]
struct Numbers {
    last_hidden_state: Vec<Vec<Vec<f32>>>,
    vectors: Option<Vec<Vec<f32>>>,
}

impl Expected {
    /// Reads a file. What it has is told by its key: `sentences`, `batches` or `images`.
    ///
    /// # Errors
    /// An error that names the file.
    pub fn read(file: &Path) -> Result<Self, Failure> {
        let failed = |what: &str| -> Failure {
            let name = file.display();
            let remedy = "make it with scripts/minilm_embeddings.py, or as tests/golden/generate_encoders.py does";
            format!("{name} {what}; {remedy}").into()
        };
        let unread = |cause: serde_json::Error| failed(&format!("is not a file of embeddings: {cause}"));
        let text = std::fs::read_to_string(file).map_err(|cause| failed(&format!("cannot be read: {cause}")))?;
        let record: Value = serde_json::from_str(&text).map_err(unread)?;
        let source = record.get("source").and_then(Value::as_str).unwrap_or("unknown").to_string();
        let of = if let Some(batches) = record.get("batches") {
            let batches: Vec<Batch> = serde_json::from_value(batches.clone()).map_err(unread)?;
            match batches.is_empty() {
                true => return Err(failed("has no rows")),
                false => Of::Tokens(batches),
            }
        } else if let Some(images) = record.get("images") {
            let images = images.as_str().ok_or_else(|| failed("does not name its images as a text"))?;
            Of::Images(file.with_file_name(images), serde_json::from_value(record.clone()).map_err(unread)?)
        } else {
            let sentences: Sentences = serde_json::from_value(record).map_err(unread)?;
            let Sentences { batch, sentences: texts, embeddings, token_counts } = &sentences;
            match (*batch, texts.len()) {
                (0, _) => return Err(failed("has batches of 0 sentences")),
                (_, 0) => return Err(failed("has no sentences")),
                (_, count) if embeddings.len() != count || token_counts.len() != count => {
                    return Err(failed("does not have an embedding and a token count for each sentence"));
                }
                _ => Of::Sentences(sentences),
            }
        };
        Ok(Self { source, of })
    }

    /// Whether it is about images.
    pub fn images(&self) -> bool {
        matches!(self.of, Of::Images(..))
    }

    /// Compares an encoder with the file: an error unless every number agrees within 1e-5. Returns a line with the largest difference.
    ///
    /// # Errors
    /// Those of the encoder, and an error that says what differs.
    pub fn check(&self, embedder: &dyn Embed) -> Result<String, Failure> {
        self.check_within(embedder, TOLERANCE)
    }

    /// [`check`](Self::check) with another tolerance.
    ///
    /// # Errors
    /// Those of [`check`](Self::check).
    pub fn check_within(&self, embedder: &dyn Embed, tolerance: f32) -> Result<String, Failure> {
        let mut difference = Difference::default();
        let what = match &self.of {
            Of::Sentences(sentences) => sentences.check(embedder, &mut difference)?,
            Of::Tokens(batches) => {
                for batch in batches {
                    batch.check(embedder, &mut difference)?;
                }
                format!("{} batches of tokens", batches.len())
            }
            Of::Images(file, numbers) => {
                numbers.check(&embedder.run_images(file)?, None, &mut difference)?;
                format!("{} images", numbers.last_hidden_state.len())
            }
        };
        let line = format!("{}: {what}, largest difference {:.2e}", self.source, difference.0);
        match difference.0 <= tolerance {
            true => Ok(line),
            false => Err(format!(
                "{line}, and {tolerance:e} is allowed; the file and the model must be of the same checkpoint"
            )
            .into()),
        }
    }
}

impl Sentences {
    fn check(&self, embedder: &dyn Embed, difference: &mut Difference) -> Result<String, Failure> {
        let sentences: Vec<&str> = self.sentences.iter().map(String::as_str).collect();
        let started = Instant::now();
        let mut found = Vec::with_capacity(sentences.len());
        for batch in sentences.chunks(self.batch) {
            found.extend(embedder.embed(batch, Scaling::Saved)?);
        }
        let rate = found.len() as f64 / started.elapsed().as_secs_f64();
        let mut cosine = 1.0f64;
        for ((ours, theirs), &tokens) in found.iter().zip(&self.embeddings).zip(&self.token_counts) {
            if ours.tokens != tokens {
                return Err(format!("\"{}\" has {} tokens, expected {tokens}", ours.text, ours.tokens).into());
            }
            difference.add("the vectors", &ours.embedding, theirs)?;
            cosine = cosine.min(cosine_of(&ours.embedding, theirs));
        }
        Ok(format!("{} sentences, {rate:.1} sentences/s, smallest cosine {cosine:.9}", found.len()))
    }
}

impl Batch {
    fn check(&self, embedder: &dyn Embed, difference: &mut Difference) -> Result<(), Failure> {
        let real = |mask: &Vec<Vec<u8>>| mask.iter().map(|row| row.iter().map(|&real| real != 0).collect()).collect();
        let real: Option<Vec<Vec<bool>>> = self.attention_mask.as_ref().map(real);
        let rows = TokenRows { ids: self.input_ids.clone(), real: real.clone() };
        self.numbers.check(&embedder.run(rows)?, real.as_deref(), difference)
    }
}

impl Numbers {
    /// Compares states of real tokens, and vectors.
    fn check(&self, found: &Computed, real: Option<&[Vec<bool>]>, difference: &mut Difference) -> Result<(), Failure> {
        if found.hidden.len() != self.last_hidden_state.len() {
            return Err(format!("{} rows, expected {}", found.hidden.len(), self.last_hidden_state.len()).into());
        }
        for (row, (ours, theirs)) in found.hidden.iter().zip(&self.last_hidden_state).enumerate() {
            let width = theirs.first().map_or(0, Vec::len);
            if ours.len() != width * theirs.len() {
                return Err(format!("a row has {} states, expected {}", ours.len(), width * theirs.len()).into());
            }
            for (token, (ours, theirs)) in ours.chunks(width.max(1)).zip(theirs).enumerate() {
                if real.is_none_or(|real| real[row][token]) {
                    difference.add("the states", ours, theirs)?;
                }
            }
        }
        match (&found.vectors, &self.vectors) {
            (Some(ours), Some(theirs)) if ours.len() == theirs.len() => {
                ours.iter().zip(theirs).try_for_each(|(ours, theirs)| difference.add("the vectors", ours, theirs))
            }
            (_, None) => Ok(()),
            _ => Err("the file has a vector for each row, and the encoder does not".into()),
        }
    }
}

/// The largest difference so far.
#[derive(Debug, Default)]
struct Difference(f32);

impl Difference {
    fn add(&mut self, what: &str, ours: &[f32], theirs: &[f32]) -> Result<(), Failure> {
        if ours.len() != theirs.len() {
            return Err(format!("{what} have {} numbers, expected {}", ours.len(), theirs.len()).into());
        }
        for (a, b) in ours.iter().zip(theirs) {
            let difference = (a - b).abs();
            // A NaN is worse than any number, and stays.
            if difference > self.0 || difference.is_nan() {
                self.0 = difference;
            }
        }
        Ok(())
    }
}

fn cosine_of(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
