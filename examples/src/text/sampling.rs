//! Chooses the next token.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Draws tokens from logits, by temperature and nucleus (<https://arxiv.org/abs/1904.09751>).
pub struct Sampler {
    temperature: f64,
    top_p: f64,
    random: StdRng,
}

impl Sampler {
    /// Temperature 0 is greedy.
    pub fn new(temperature: f64, top_p: f64, seed: u64) -> Result<Self, String> {
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(format!("--temperature is {temperature}; it must be 0 (greedy) or more"));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(format!("--top-p is {top_p}; it must be above 0 and at most 1"));
        }
        Ok(Self { temperature, top_p, random: StdRng::seed_from_u64(seed) })
    }

    /// The next token.
    pub fn draw(&mut self, logits: &[f32]) -> u32 {
        if self.temperature == 0.0 {
            return likeliest(logits);
        }
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |&logit: &f32| (f64::from(logit - max) / self.temperature).exp();
        let mut tokens: Vec<(u32, f64)> = (0u32..).zip(logits.iter().map(weight)).collect();
        tokens.sort_by(|a, b| b.1.total_cmp(&a.1));
        let total: f64 = tokens.iter().map(|(_, weight)| weight).sum();
        let mut nucleus = 0.0;
        let inside = tokens.iter().take_while(|(_, weight)| {
            let before = nucleus;
            nucleus += weight / total;
            before < self.top_p
        });
        let inside: Vec<(u32, f64)> = inside.copied().collect();
        let mut left = self.random.random::<f64>() * inside.iter().map(|(_, weight)| weight).sum::<f64>();
        for (token, weight) in &inside {
            left -= weight;
            if left <= 0.0 {
                return *token;
            }
        }
        inside.last().map_or(0, |(token, _)| *token)
    }
}

/// The token of the highest logit, the first of equals.
pub fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as u32
}
