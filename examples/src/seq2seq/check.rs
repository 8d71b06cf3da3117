//! Compares a greedy run with the output of another program for the same checkpoint and sources.

use std::num::NonZeroUsize;
use std::path::Path;

use serde::Deserialize;

use super::{Seq2Seq, Sources};
use crate::Failure;
use crate::text::Batch;
use crate::text::check::{Outcome, read};

#[derive(Deserialize)]
struct Expected {
    /// Rows of tokens, or the name of a file of features next to this one.
    input_ids: Option<Vec<Vec<u32>>>,
    attention_mask: Option<Vec<Vec<u8>>>,
    features: Option<String>,
    decoder_ids: Vec<Vec<i64>>,
    #[serde(flatten)]
    outcome: Outcome,
}

/// Runs the sources of `file` and returns a summary. `chunk` feeds the tokens that the decoder starts with in pieces.
///
/// # Errors
/// If a generated id differs, or a logit after the first tokens by more than 1e-3.
pub fn run(model: &dyn Seq2Seq, file: &Path, chunk: Option<NonZeroUsize>) -> Result<String, Failure> {
    let Expected { input_ids, attention_mask, features, decoder_ids, outcome } = read(file)?;
    let sources = match (input_ids, features) {
        (Some(ids), None) => Sources::Tokens(real_tokens(ids, attention_mask)?),
        (None, Some(name)) => Sources::Features(file.with_file_name(name)),
        _ => return Err(format!("{} needs either `input_ids` or `features`", file.display()).into()),
    };
    let mask = decoder_ids.iter().map(|row| vec![1; row.len()]).collect();
    let batch = Batch { ids: decoder_ids, mask };
    let mut session = model.session(&sources, batch.width() + outcome.new_tokens())?;
    outcome.compare(&mut *session, &batch, chunk)
}

/// The tokens of each row, without the padding on the right.
fn real_tokens(ids: Vec<Vec<u32>>, mask: Option<Vec<Vec<u8>>>) -> Result<Vec<Vec<u32>>, Failure> {
    let Some(mask) = mask else { return Ok(ids) };
    let row = |(mut ids, mask): (Vec<u32>, Vec<u8>)| {
        let length = mask.iter().take_while(|&&real| real != 0).count();
        if mask.len() != ids.len() || mask[length..].iter().any(|&real| real != 0) {
            return Err("`attention_mask` must mark the padding of `input_ids`, on the right".into());
        }
        ids.truncate(length);
        Ok(ids)
    };
    match ids.len() == mask.len() {
        true => ids.into_iter().zip(mask).map(row).collect(),
        false => Err("`attention_mask` must have a row for each of `input_ids`".into()),
    }
}
