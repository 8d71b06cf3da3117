//! A problem in memory.

use burn_deepspeed_kernels::cpu::attention::{Attention, Heads};
use burn_deepspeed_kernels::cpu::masks::{Broadcast, Masks};

use crate::oracle::{Problem, assert_near};

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

    /// What a kernel is given.
    pub fn attention<'a>(&'a self, problem: &'a Problem) -> Attention<'a> {
        let Problem { batch, heads, kv_heads, tokens, capacity, head_dim, .. } = *problem;
        Attention {
            batch,
            heads,
            kv_heads,
            tokens,
            capacity,
            head_dim,
            value_dim: head_dim,
            query: Heads::dense(&self.query, heads, tokens, head_dim),
            key: Heads::dense(&self.key, kv_heads, capacity, head_dim),
            value: Heads::dense(&self.value, kv_heads, capacity, head_dim),
            scale: problem.scale(),
            masks: self.masks(problem),
        }
    }

    /// What a kernel makes of it, `[batch, tokens, heads, head_dim]`.
    pub fn solve(&self, problem: &Problem, kernel: fn(&Attention<'_>, &mut [f32])) -> Vec<f32> {
        let mut output = vec![f32::NAN; self.query.len()];
        kernel(&self.attention(problem), &mut output);
        output
    }

    fn masks<'a>(&'a self, problem: &'a Problem) -> Masks<'a> {
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

    /// What it is, `[batch, tokens, heads, head_dim]`.
    pub fn expected(&self, problem: &Problem) -> Vec<f64> {
        problem.solve(&self.query, &self.key, &self.value)
    }
}

/// Judges a kernel by plain loops.
pub fn check(problem: &Problem, kernel: fn(&Attention<'_>, &mut [f32])) {
    let tensors = Tensors::new(problem);
    let expected = tensors.expected(problem);
    assert_near(&format!("{problem:?}"), &tensors.solve(problem, kernel), &expected, TOLERANCE);
}

/// A row of several, alone on few threads and with the others on many, is bitwise the same.
pub fn check_invariance(problem: &Problem, kernel: fn(&Attention<'_>, &mut [f32])) {
    let mut tensors = Tensors::new(problem);
    let whole = bits(&tensors.solve(problem, kernel));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(5).build().unwrap();
    assert_eq!(bits(&pool.install(|| tensors.solve(problem, kernel))), whole);
    let padded = Problem { hidden_keys: true, ..problem.clone() };
    let hidden = Tensors::new(&padded);
    assert_eq!(bits(&pool.install(|| hidden.solve(&padded, kernel))), bits(&hidden.solve(&padded, kernel)));

    let rows = problem.batch;
    let alone = Problem {
        batch: 1,
        starts: problem.starts[1..2].to_vec(),
        ends: problem.ends[1..2].to_vec(),
        ..problem.clone()
    };
    for tensor in [&mut tensors.query, &mut tensors.key, &mut tensors.value] {
        *tensor = part(tensor, rows).to_vec();
    }
    assert_eq!(bits(&tensors.solve(&alone, kernel)), part(&whole, rows));
}

/// The second of so many rows.
fn part<T>(all: &[T], rows: usize) -> &[T] {
    &all[all.len() / rows..all.len() / rows * 2]
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
