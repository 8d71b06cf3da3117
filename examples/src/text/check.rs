//! Compares a greedy run with the output of another program for the same checkpoint.

use std::num::NonZeroUsize;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Batch, TextModel, TextSession, greedy};
use crate::Failure;

/// Largest difference allowed between prompt logits.
const TOLERANCE: f32 = 1e-3;

#[derive(Deserialize)]
struct Expected {
    prompt_ids: Vec<Vec<i64>>,
    attention_mask: Vec<Vec<i64>>,
    #[serde(flatten)]
    outcome: Outcome,
}

/// What another program generated.
#[derive(Deserialize)]
pub struct Outcome {
    source: String,
    generated_ids: Vec<Vec<u32>>,
    prompt_logits: Vec<Vec<f32>>,
}

/// Runs the prompts of `file` and returns a summary.
///
/// # Errors
/// If a generated id differs, or a prompt logit by more than 1e-3.
pub fn run(model: &dyn TextModel, file: &Path, chunk: Option<NonZeroUsize>) -> Result<String, Failure> {
    let Expected { prompt_ids, attention_mask, outcome } = read(file)?;
    let batch = Batch { ids: prompt_ids, mask: attention_mask };
    let mut session = model.session(&batch, outcome.new_tokens())?;
    outcome.compare(&mut *session, &batch, chunk)
}

/// The record of a file.
///
/// # Errors
/// An error that names the file.
pub fn read<T: DeserializeOwned>(file: &Path) -> Result<T, Failure> {
    let text = std::fs::read_to_string(file).map_err(|cause| format!("cannot read {}: {cause}", file.display()))?;
    serde_json::from_str(&text)
        .map_err(|cause| format!("{} is not a file of expected ids: {cause}", file.display()).into())
}

impl Outcome {
    /// Tokens that were generated in each row.
    pub fn new_tokens(&self) -> usize {
        self.generated_ids.first().map_or(0, Vec::len)
    }

    /// Runs the prompts in a session that has fed nothing, and returns a summary.
    ///
    /// # Errors
    /// If a generated id differs, or a prompt logit by more than 1e-3.
    pub fn compare(
        &self,
        session: &mut dyn TextSession,
        batch: &Batch,
        chunk: Option<NonZeroUsize>,
    ) -> Result<String, Failure> {
        let logits = session.prefill(batch, chunk)?;
        let pairs = logits.iter().flatten().zip(self.prompt_logits.iter().flatten());
        let errors: Vec<f32> = pairs.map(|(ours, theirs)| (ours - theirs).abs()).collect();
        let worst = errors.iter().copied().fold(0.0, f32::max);
        let agree = errors.len() == self.prompt_logits.concat().len() && errors.iter().all(|error| *error <= TOLERANCE);

        let generated = greedy(session, logits, self.new_tokens(), &[])?;
        let different =
            generated.iter().zip(&self.generated_ids).enumerate().find(|(_, (ours, theirs))| ours != theirs);
        let (source, rows) = (&self.source, batch.ids.len());
        match different {
            _ if !agree => Err(format!("the prompt logits differ by {worst:.2e}, more than {TOLERANCE:e}").into()),
            Some((row, (ours, theirs))) => {
                Err(format!("row {row} differs\n  expected {theirs:?}\n  found    {ours:?}").into())
            }
            None => {
                let ids = generated.concat().len();
                Ok(format!(
                    "{source}: {rows} rows, largest difference of the prompt logits {worst:.2e}\nall {ids} generated ids are equal"
                ))
            }
        }
    }
}
