//! Compares a greedy run with the output of another program for the same checkpoint.

use std::num::NonZeroUsize;
use std::path::Path;

use serde::Deserialize;

use super::{Batch, TextModel, likeliest};
use crate::Failure;

/// Largest difference allowed between prompt logits.
const TOLERANCE: f32 = 1e-3;

#[derive(Deserialize)]
struct Expected {
    source: String,
    prompt_ids: Vec<Vec<i64>>,
    attention_mask: Vec<Vec<i64>>,
    generated_ids: Vec<Vec<u32>>,
    prompt_logits: Vec<Vec<f32>>,
}

/// Runs the prompts of `file` and returns a summary.
///
/// # Errors
/// If a generated id differs, or a prompt logit by more than 1e-3.
pub fn run(model: &dyn TextModel, file: &Path, chunk: Option<NonZeroUsize>) -> Result<String, Failure> {
    let text = std::fs::read_to_string(file).map_err(|cause| format!("cannot read {}: {cause}", file.display()))?;
    let expected: Expected = serde_json::from_str(&text)?;
    let batch = Batch { ids: expected.prompt_ids, mask: expected.attention_mask };
    let new_tokens = expected.generated_ids.first().map_or(0, Vec::len);
    let mut session = model.session(&batch, new_tokens)?;
    let mut logits = session.prefill(&batch, chunk)?;

    let pairs = logits.iter().flatten().zip(expected.prompt_logits.iter().flatten());
    let errors: Vec<f32> = pairs.map(|(ours, theirs)| (ours - theirs).abs()).collect();
    let worst = errors.iter().copied().fold(0.0, f32::max);
    let agree = errors.len() == expected.prompt_logits.concat().len() && errors.iter().all(|error| *error <= TOLERANCE);

    let mut generated = vec![Vec::new(); batch.ids.len()];
    for at in 0..new_tokens {
        let next: Vec<u32> = logits.iter().map(|row| likeliest(row)).collect();
        for (row, &id) in generated.iter_mut().zip(&next) {
            row.push(id);
        }
        if at + 1 < new_tokens {
            logits = session.decode(&next)?;
        }
    }
    let different =
        generated.iter().zip(&expected.generated_ids).enumerate().find(|(_, (ours, theirs))| ours != theirs);
    let (source, rows) = (expected.source, batch.ids.len());
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
