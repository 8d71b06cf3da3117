//! A problem in memory.

use burn_deepspeed_kernels::cpu::attention::{Attention, Cached, Heads};
use burn_deepspeed_kernels::cpu::masks::{Broadcast, Masks};
use half::{bf16, f16};

use crate::oracle::{Problem, assert_near};

/// Largest error of results near 1.
pub const TOLERANCE: f64 = 1e-5;

/// How keys, or values, are stored.
#[derive(Debug, Clone, Copy)]
pub enum Form {
    F32,
    F16,
    BF16,
    Int8,
}

/// Keys, or values, that are not in f32.
enum Stored {
    F32,
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    Int8 { elements: Vec<i8>, scales: Vec<f32> },
}

impl Stored {
    /// Rounds heads of `head_dim` features, and replaces them by what was stored.
    fn of(form: Form, dense: &mut [f32], head_dim: usize) -> Self {
        match form {
            Form::F32 => Self::F32,
            Form::F16 => Self::F16(rounded(dense, f16::from_f32, f16::to_f32)),
            Form::BF16 => Self::BF16(rounded(dense, bf16::from_f32, bf16::to_f32)),
            Form::Int8 => Self::in_int8(dense, head_dim),
        }
    }

    fn in_int8(dense: &mut [f32], head_dim: usize) -> Self {
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
        Self::Int8 { elements, scales }
    }

    fn cached<'a>(&'a self, dense: &'a [f32], [heads, slots, features]: [usize; 3]) -> Cached<'a> {
        match self {
            Self::F32 => Heads::dense(dense, heads, slots, features).into(),
            Self::F16(elements) => Heads::dense(&elements[..], heads, slots, features).into(),
            Self::BF16(elements) => Heads::dense(&elements[..], heads, slots, features).into(),
            Self::Int8 { elements, scales } => {
                Cached::Int8 { elements: Heads::dense(elements, heads, slots, features), scales }
            }
        }
    }
}

fn rounded<E: Copy>(dense: &mut [f32], round: fn(f32) -> E, widen: fn(E) -> f32) -> Vec<E> {
    dense
        .iter_mut()
        .map(|feature| {
            let element = round(*feature);
            *feature = widen(element);
            element
        })
        .collect()
}

/// Everything of a problem that a kernel borrows.
pub struct Tensors {
    pub query: Vec<f32>,
    pub key: Vec<f32>,
    pub value: Vec<f32>,
    /// Keys and values as the kernel reads them.
    stored: [Stored; 2],
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
            stored: [Stored::F32, Stored::F32],
            hidden: problem.hidden(),
            positions: problem.positions(),
            origins: problem.origins(),
            slopes: problem.slopes(),
            pairs: problem.pairs(),
            biases: problem.biases(),
            sinks: problem.sinks(),
        }
    }

    /// The same with keys and values in these types; their f32 versions are replaced by what was stored.
    pub fn stored(mut self, problem: &Problem, [key, value]: [Form; 2]) -> Self {
        let key = Stored::of(key, &mut self.key, problem.head_dim);
        self.stored = [key, Stored::of(value, &mut self.value, problem.value_dim)];
        self
    }

    /// The arguments of a kernel.
    pub fn attention<'a>(&'a self, problem: &'a Problem) -> Attention<'a> {
        let Problem { batch, heads, kv_heads, tokens, capacity, head_dim, value_dim, .. } = *problem;
        let [key, value] = &self.stored;
        let key = key.cached(&self.key, [kv_heads, capacity, head_dim]);
        Attention {
            batch,
            heads,
            kv_heads,
            tokens,
            capacity,
            head_dim,
            value_dim,
            query: Heads::dense(&self.query, heads, tokens, head_dim),
            key,
            value: match problem.keys_are_values {
                true => key,
                false => value.cached(&self.value, [kv_heads, capacity, value_dim]),
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

/// The same for a kernel that reads a cache in other types: each on both sides.
pub fn check_stored(problem: &Problem, kernel: fn(&Attention<'_>, &mut [f32])) {
    use Form::{BF16, F16, F32, Int8};
    for sides in [[Int8, Int8], [F16, F16], [BF16, Int8], [Int8, F32], [F32, BF16], [BF16, BF16]] {
        let tensors = Tensors::new(problem).stored(problem, sides);
        let expected = tensors.expected(problem);
        assert_near(&format!("{sides:?} {problem:?}"), &tensors.solve(problem, kernel), &expected, TOLERANCE);
    }
}

/// A row of several, alone on few threads and with the others on many, is bitwise the same.
pub fn check_invariance(problem: &Problem, kernel: fn(&Attention<'_>, &mut [f32])) {
    let mut tensors = Tensors::new(problem);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(5).build().unwrap();
    for forms in [[Form::Int8; 2], [Form::F16, Form::BF16], [Form::BF16; 2]] {
        let stored = Tensors::new(problem).stored(problem, forms);
        assert_eq!(bits(&pool.install(|| stored.solve(problem, kernel))), bits(&stored.solve(problem, kernel)));
    }
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
