//! A problem in memory.

use burn_deepspeed_kernels::cpu::masks::{Broadcast, Masks};

use crate::oracle::Problem;

/// Largest error of results near 1.
pub const TOLERANCE: f64 = 1e-5;

/// Everything of a problem that a kernel borrows.
pub struct Tensors {
    pub query: Vec<f32>,
    pub key: Vec<f32>,
    pub value: Vec<f32>,
    hidden: Vec<bool>,
    positions: Vec<i32>,
    slopes: Vec<f32>,
    pairs: Vec<bool>,
    biases: Vec<f32>,
}

impl Tensors {
    pub fn new(problem: &Problem) -> Self {
        let exact = |value| value;
        Self {
            query: problem.query(exact),
            key: problem.cache(exact, 2),
            value: problem.cache(exact, 3),
            hidden: problem.hidden(),
            positions: problem.positions(),
            slopes: problem.slopes(),
            pairs: problem.pairs(),
            biases: problem.biases(),
        }
    }

    pub fn masks<'a>(&'a self, problem: &'a Problem) -> Masks<'a> {
        let (heads, tokens, keys) = (problem.heads, problem.tokens, problem.keys());
        Masks {
            causal: problem.causal,
            window: problem.window,
            softcap: problem.softcap,
            starts: &problem.starts,
            ends: &problem.ends,
            hidden: problem.hidden_keys.then_some(&self.hidden[..]),
            slopes: problem.slopes.then_some(&self.slopes[..]),
            positions: (problem.slopes && problem.hidden_keys).then_some(&self.positions[..]),
            pairs: problem.hidden_pairs.then_some(Broadcast { elements: &self.pairs[..], shape: [1, 1, tokens, keys] }),
            bias: problem.bias.then_some(Broadcast { elements: &self.biases[..], shape: [1, heads, tokens, keys] }),
        }
    }

    /// `[batch, tokens, heads, head_dim]`.
    pub fn expected(&self, problem: &Problem) -> Vec<f64> {
        problem.solve(&self.query, &self.key, &self.value)
    }
}
