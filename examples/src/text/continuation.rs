//! A text, token by token.

use super::{TextModel, TextSession};
use crate::Failure;

/// Draws a token from the logits of the last step and feeds it to the model, until the model ends the text or there are `most`
/// tokens. `logits` are those after the prompt. `each` takes every token as it comes; an end of text is not one of them.
pub fn continuation(
    model: &dyn TextModel,
    session: &mut dyn TextSession,
    mut logits: Vec<f32>,
    most: usize,
    mut draw: impl FnMut(&[f32]) -> u32,
    mut each: impl FnMut(u32) -> Result<(), Failure>,
) -> Result<Vec<u32>, Failure> {
    let mut generated = Vec::new();
    while generated.len() < most {
        let next = draw(&logits);
        if model.config().eos_token_ids.contains(&(next as usize)) {
            break;
        }
        generated.push(next);
        each(next)?;
        if generated.len() < most {
            logits = session.decode(&[next])?.swap_remove(0);
        }
    }
    Ok(generated)
}
