//! Texts for sources.

use super::{Seq2Seq, Sources};
use crate::Failure;
use crate::text::{Batch, greedy};

/// The likeliest text for each source, token by token, until the model ends it or there are `most` tokens. The decoder starts with
/// `start`, or with the token that the configuration names; neither that nor an end of text is part of a text.
///
/// # Errors
/// Those of [`Seq2Seq::session`], and an error if there is no token to start with.
pub fn generate(
    model: &dyn Seq2Seq,
    sources: &Sources,
    start: Option<&[u32]>,
    most: usize,
) -> Result<Vec<Vec<u32>>, Failure> {
    let config = model.config();
    let start: Vec<i64> = match (start, config.start_token) {
        (Some(ids), _) => ids.iter().map(|&id| id.into()).collect(),
        (None, Some(id)) => vec![i64::try_from(id).unwrap_or(i64::MAX)],
        (None, None) => {
            return Err("`decoder_start_token_id` is missing in config.json; give --decoder-ids 5,9,2".into());
        }
    };
    let mut session = model.session(sources, start.len().saturating_add(most))?;
    let rows = session.rows();
    let batch = Batch { mask: vec![vec![1; start.len()]; rows], ids: vec![start; rows] };
    let logits = session.prefill(&batch, None)?;
    greedy(&mut *session, logits, most, &config.eos_token_ids)
}
