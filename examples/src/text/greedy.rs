//! Rows of a batch, token by token.

use super::{TextSession, likeliest};
use crate::Failure;

/// Takes the likeliest token of each row and feeds it to the model, until every row has ended or there are `most` tokens. `logits` are
/// those after the prompts, `ends` the tokens that end a row; they are not part of it.
pub fn greedy(
    session: &mut dyn TextSession,
    mut logits: Vec<Vec<f32>>,
    most: usize,
    ends: &[usize],
) -> Result<Vec<Vec<u32>>, Failure> {
    let mut rows = vec![Vec::new(); logits.len()];
    let mut ended = vec![false; logits.len()];
    for at in 0..most {
        let next: Vec<u32> = logits.iter().map(|row| likeliest(row)).collect();
        for ((row, ended), &id) in rows.iter_mut().zip(&mut ended).zip(&next) {
            *ended |= ends.contains(&(id as usize));
            if !*ended {
                row.push(id);
            }
        }
        if at + 1 == most || ended.iter().all(|&ended| ended) {
            break;
        }
        logits = session.decode(&next)?;
    }
    Ok(rows)
}
