//! The sums that the adder learns, those kept out of its training, and the number that a model gets right.

use tokenizers::Tokenizer;

use crate::Failure;
use crate::text::{Batch, TextModel, likeliest};

/// Operands are below this.
const OPERANDS: u32 = 100;
/// Rows that are answered at once.
const ROWS: usize = 512;
/// The longest answer, in tokens: `198` and the end of the text.
const ANSWER_TOKENS: usize = 4;
/// Share of the sums that is kept out of training, in percent.
const HELD_OUT_PERCENT: u64 = 15;
/// Seed of the choice; with this one, 17+25 and 48+76, the sums of the documentation, are kept out.
const HELD_OUT_SEED: u64 = 4;

/// Two numbers to add.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum {
    a: u32,
    b: u32,
}

impl Sum {
    /// The prompt of the model: `17+25=`.
    pub fn prompt(self) -> String {
        format!("{}+{}=", self.a, self.b)
    }

    /// The prompt with the right answer: `17+25=42`.
    pub fn text(self) -> String {
        format!("{}{}", self.prompt(), self.a + self.b)
    }

    /// Whether the sum is kept out of training, always the same 15 %. Both orders of two operands are kept out together:
    /// a model that has seen 25+17 would know 17+25 by swapping.
    pub fn is_held_out(self) -> bool {
        let pair = u64::from(self.a.min(self.b) * OPERANDS + self.a.max(self.b));
        // SplitMix64, <https://prng.di.unimi.it/splitmix64.c>
        let mut hash = (pair + HELD_OUT_SEED).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (hash ^ (hash >> 31)) % 100 < HELD_OUT_PERCENT
    }
}

/// Every sum.
fn all() -> impl Iterator<Item = Sum> {
    (0..OPERANDS).flat_map(|a| (0..OPERANDS).map(move |b| Sum { a, b }))
}

/// The sums to learn from.
pub fn training() -> Vec<Sum> {
    all().filter(|sum| !sum.is_held_out()).collect()
}

/// The sums that no training sees.
pub fn held_out() -> Vec<Sum> {
    all().filter(|sum| sum.is_held_out()).collect()
}

/// How many sums a model got right.
#[derive(Debug)]
pub struct Score {
    /// Number of sums that were asked.
    pub asked: usize,
    /// The wrong answers, as in `17+25=43`.
    pub mistakes: Vec<String>,
}

impl Score {
    /// Share of exact answers, 0 to 1.
    pub fn accuracy(&self) -> f64 {
        (self.asked - self.mistakes.len()) as f64 / self.asked.max(1) as f64
    }
}

/// Asks the model every sum. An answer counts if each digit is right and the end of the text follows.
pub fn score(model: &dyn TextModel, tokenizer: &Tokenizer, sums: &[Sum]) -> Result<Score, Failure> {
    let is_end = |id: &u32| model.config().eos_token_ids.contains(&(*id as usize));
    let mut mistakes = Vec::new();
    for rows in sums.chunks(ROWS) {
        let prompts: Vec<Vec<u32>> = rows
            .iter()
            .map(|sum| Ok(tokenizer.encode(sum.prompt(), true)?.get_ids().to_vec()))
            .collect::<Result<_, Failure>>()?;
        let answers = answers(model, &prompts)?;
        for (sum, (prompt, answer)) in rows.iter().zip(prompts.iter().zip(&answers)) {
            let until_end = answer.split(is_end).next().unwrap_or_default();
            let text = tokenizer.decode(&[prompt, until_end].concat(), true)?;
            if text != sum.text() || until_end.len() == answer.len() {
                mistakes.push(text);
            }
        }
    }
    Ok(Score { asked: sums.len(), mistakes })
}

/// The likeliest continuation of every prompt, of `ANSWER_TOKENS` tokens each.
fn answers(model: &dyn TextModel, prompts: &[Vec<u32>]) -> Result<Vec<Vec<u32>>, Failure> {
    let batch = Batch::left_padded(prompts);
    let mut session = model.session(&batch, ANSWER_TOKENS)?;
    let mut logits = session.prefill(&batch, None)?;
    let mut answers = vec![Vec::new(); prompts.len()];
    for left in (0..ANSWER_TOKENS).rev() {
        let next: Vec<u32> = logits.iter().map(|row| likeliest(row)).collect();
        for (answer, &id) in answers.iter_mut().zip(&next) {
            answer.push(id);
        }
        if left > 0 {
            logits = session.decode(&next)?;
        }
    }
    Ok(answers)
}
