//! A problem in memory.

use burn_deepspeed_kernels::cpu::attention::{Attention, Cached, Heads};
use burn_deepspeed_kernels::cpu::masks::{Broadcast, Masks};

use crate::oracle::{Problem, assert_near};

/// Largest error of results near 1.
pub const TOLERANCE: f64 = 1e-5;

/// Keys or values in int8.
pub struct Int8 {
    pub elements: Vec<i8>,
    pub scales: Vec<f32>,
}

impl Int8 {
    /// Quantises heads of `head_dim` features, and replaces them by the dequantised values.
    fn of(dense: &mut [f32], head_dim: usize) -> Self {
        let (mut elements, mut scales) = (Vec::new(), Vec::new());
        for head in dense.chunks_mut(head_dim) {
            let largest = head.iter().fold(0.0f32, |largest, feature| largest.max(feature.abs()));
            let broken = head.iter().any(|feature| !feature.is_finite());
            let scale = if broken { f32::NAN } else { largest / 127.0 };
            for feature in head {
                let element = if scale > 0.0 { (*feature / scale).round_ties_even() as i8 } else { 0 };
                elements.push(element);
                *feature = f32::from(element) * scale;
            }
            scales.push(scale);
        }
        Self { elements, scales }
    }
}

fn cached<'a>(dense: &'a [f32], int8: &'a Option<Int8>, [heads, slots, features]: [usize; 3]) -> Cached<'a> {
    match int8 {
        Some(Int8 { elements, scales }) => {
            Cached::Int8 { elements: Heads::dense(elements, heads, slots, features), scales }
        }
        None => Heads::dense(dense, heads, slots, features).into(),
    }
}

/// Everything of a problem that a kernel borrows.
pub struct Tensors {
    pub query: Vec<f32>,
    pub key: Vec<f32>,
    pub value: Vec<f32>,
    /// Keys in int8, if the kernel reads them so; values likewise.
    pub key_int8: Option<Int8>,
    pub value_int8: Option<Int8>,
    hidden: Vec<bool>,
    positions: Vec<i32>,
    origins: Vec<usize>,
    slopes: Vec<f32>,
    pairs: Vec<bool>,
    biases: Vec<f32>,
    sinks: Option<Vec<f32>>,
}

impl Tensors {
    pub fn new(problem: &Problem) -> Self {
        let exact = |value| value;
        Self {
            query: problem.query(exact),
            key: problem.cache(exact, 2),
            value: problem.cache(exact, 3),
            key_int8: None,
            value_int8: None,
            hidden: problem.hidden(),
            positions: problem.positions(),
            origins: problem.origins(),
            slopes: problem.slopes(),
            pairs: problem.pairs(),
            biases: problem.biases(),
            sinks: problem.sinks(),
        }
    }

    /// The same with keys, or values, in int8; their f32 versions are replaced by the dequantised values.
    pub fn in_int8(mut self, problem: &Problem, [key, value]: [bool; 2]) -> Self {
        self.key_int8 = key.then(|| Int8::of(&mut self.key, problem.head_dim));
        self.value_int8 = value.then(|| Int8::of(&mut self.value, problem.value_dim));
        self
    }

    /// The arguments of a kernel.
    pub fn attention<'a>(&'a self, problem: &'a Problem) -> Attention<'a> {
        let Problem { batch, heads, kv_heads, tokens, capacity, head_dim, value_dim, .. } = *problem;
        Attention {
            batch,
            heads,
            kv_heads,
            tokens,
            capacity,
            head_dim,
            value_dim,
            query: Heads::dense(&self.query, heads, tokens, head_dim),
            key: cached(&self.key, &self.key_int8, [kv_heads, capacity, head_dim]),
            value: match problem.keys_are_values {
                true => cached(&self.key, &self.key_int8, [kv_heads, capacity, head_dim]),
                false => cached(&self.value, &self.value_int8, [kv_heads, capacity, value_dim]),
            },
            scale: problem.scale(),
            sinks: self.sinks.as_deref(),
            masks: self.masks(problem),
        }
    }

    /// The result of a kernel, `[batch, tokens, heads, value_dim]`.
    pub fn solve(&self, problem: &Problem, kernel: fn(&Attention<'_>, &mut [f32])) -> Vec<f32> {
        let Problem { batch, heads, tokens, value_dim, .. } = *problem;
        let mut output = vec![f32::NAN; batch * tokens * heads * value_dim];
        kernel(&self.attention(problem), &mut output);
        output
    }

    fn masks<'a>(&'a self, problem: &'a Problem) -> Masks<'a> {
        let (heads, tokens, keys) = (problem.heads, problem.tokens, problem.keys());
        Masks {
            causal: problem.causal,
            window: problem.window,
            origins: problem.hidden_keys.then_some(&self.origins[..]),
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

    /// The result of plain loops, `[batch, tokens, heads, value_dim]`.
    pub fn expected(&self, problem: &Problem) -> Vec<f64> {
        let Problem { head_dim, value_dim, .. } = *problem;
        let first = |key: &[f32]| key.chunks(head_dim).flat_map(|key| &key[..value_dim]).copied().collect::<Vec<_>>();
        let of_keys = problem.keys_are_values.then(|| first(&self.key));
        problem.solve(&self.query, &self.key, of_keys.as_deref().unwrap_or(&self.value))
    }
}

/// Compares a kernel with plain loops.
pub fn check(problem: &Problem, kernel: fn(&Attention<'_>, &mut [f32])) {
    let tensors = Tensors::new(problem);
    let expected = tensors.expected(problem);
    assert_near(&format!("{problem:?}"), &tensors.solve(problem, kernel), &expected, TOLERANCE);
}

/// The same for a kernel that reads an int8 cache.
pub fn check_int8(problem: &Problem, kernel: fn(&Attention<'_>, &mut [f32])) {
    for sides in [[true, true], [true, false], [false, true]] {
        let tensors = Tensors::new(problem).in_int8(problem, sides);
        let expected = tensors.expected(problem);
        assert_near(&format!("{sides:?} {problem:?}"), &tensors.solve(problem, kernel), &expected, TOLERANCE);
    }
}

/// A row of several, alone on few threads and with the others on many, is bitwise the same.
pub fn check_invariance(problem: &Problem, kernel: fn(&Attention<'_>, &mut [f32])) {
    let mut tensors = Tensors::new(problem);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(5).build().unwrap();
    let int8 = Tensors::new(problem).in_int8(problem, [true, true]);
    assert_eq!(bits(&pool.install(|| int8.solve(problem, kernel))), bits(&int8.solve(problem, kernel)));
    let whole = bits(&tensors.solve(problem, kernel));
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

/// The second of `rows` rows.
fn part<T>(all: &[T], rows: usize) -> &[T] {
    &all[all.len() / rows..all.len() / rows * 2]
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
