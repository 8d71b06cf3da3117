//! `decode` against plain loops, on awkward sizes, with every dead slot poisoned.

use burn_deepspeed_kernels::cpu::decode::{Decode, DecodeShape, decode};

fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

struct Case {
    shape: DecodeShape,
    starts: Vec<usize>,
    ends: Vec<usize>,
    keys: usize,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    hidden: Vec<bool>,
    positions: Vec<i32>,
    slopes: Vec<f32>,
}

impl Case {
    fn new([batch, heads, kv_heads, tokens, capacity, head_dim]: [usize; 6], starts: &[usize], new: &[usize]) -> Self {
        let ends: Vec<usize> = starts.iter().zip(new).map(|(start, new)| start + new).collect();
        let keys = ends.iter().copied().max().unwrap_or(0);
        let cache = batch * kv_heads * capacity * head_dim;
        let (mut key, mut value) = (noise(cache, 2), noise(cache, 3));
        for (slot, (key, value)) in key.chunks_mut(head_dim).zip(value.chunks_mut(head_dim)).enumerate() {
            if slot % capacity >= ends[slot / capacity / kv_heads] {
                key.fill(f32::NAN);
                value.fill(f32::NAN);
            }
        }
        let hidden: Vec<bool> = (0..batch * keys).map(|at| at % keys < at / keys * 2 || at % 7 == 3).collect();
        let mut positions = Vec::new();
        for row in hidden.chunks(keys) {
            let mut position = -1;
            positions.extend(row.iter().map(|hidden| {
                position += i32::from(!hidden);
                position
            }));
        }
        Self {
            shape: DecodeShape { batch, heads, kv_heads, tokens, capacity, head_dim },
            starts: starts.into(),
            ends,
            keys,
            query: noise(batch * heads * tokens * head_dim, 1),
            key,
            value,
            hidden,
            positions,
            slopes: (0..heads).map(|head| 0.5f32.powi(head as i32 + 1)).collect(),
        }
    }

    fn problem(&self) -> Decode<'_> {
        Decode {
            shape: self.shape,
            query: &self.query,
            key: &self.key,
            value: &self.value,
            starts: &self.starts,
            ends: &self.ends,
            scale: 0.3,
            softcap: None,
            causal: true,
            window: None,
            hidden: None,
            slopes: None,
            positions: None,
        }
    }

    fn expected(&self, problem: &Decode<'_>) -> Vec<f32> {
        let DecodeShape { heads, kv_heads, tokens, capacity, head_dim, .. } = self.shape;
        let mut out = Vec::new();
        for (index, query) in self.query.chunks(head_dim).enumerate() {
            let (row, head, at) = (index / tokens / heads, index / tokens % heads, index % tokens);
            let at = self.starts[row] + at;
            let base = (row * kv_heads + head / (heads / kv_heads)) * capacity;
            let mut weights = vec![0.0f64; self.ends[row]];
            for (slot, weight) in weights.iter_mut().enumerate() {
                let hides = (problem.causal && slot > at)
                    || problem.window.is_some_and(|window| slot + window <= at)
                    || problem.hidden.is_some_and(|hidden| hidden[row * self.keys + slot]);
                if hides {
                    continue;
                }
                let key = &self.key[(base + slot) * head_dim..][..head_dim];
                let dot: f64 = query.iter().zip(key).map(|(q, k)| f64::from(q * k)).sum();
                let mut score = dot * f64::from(problem.scale);
                if let Some(cap) = problem.softcap {
                    score = f64::from(cap) * (score / f64::from(cap)).tanh();
                }
                if let Some(slopes) = problem.slopes {
                    let position = |slot: usize| match problem.positions {
                        Some(all) => f64::from(all[row * self.keys + slot.min(self.keys - 1)]),
                        None => slot as f64,
                    };
                    score += f64::from(slopes[head]) * (position(slot) - position(at));
                }
                *weight = score.exp();
            }
            let sum: f64 = weights.iter().sum();
            for feature in 0..head_dim {
                let weighted = weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0);
                let context: f64 = weighted
                    .map(|(slot, weight)| weight * f64::from(self.value[(base + slot) * head_dim + feature]))
                    .sum();
                out.push(if sum > 0.0 { (context / sum) as f32 } else { 0.0 });
            }
        }
        out
    }

    #[track_caller]
    fn check(&self, problem: &Decode<'_>) {
        let mut output = vec![f32::NAN; self.query.len()];
        decode(problem, &mut output);
        for (at, (actual, expected)) in output.iter().zip(self.expected(problem)).enumerate() {
            assert!((actual - expected).abs() < 1e-5, "{:?} at {at}: {actual} and {expected}", self.shape);
        }
    }
}

fn cases() -> Vec<Case> {
    vec![
        Case::new([1, 1, 1, 1, 1, 1], &[0], &[1]),
        Case::new([2, 6, 2, 1, 70, 40], &[64, 3], &[1, 1]),
        Case::new([3, 4, 4, 3, 131, 80], &[127, 0, 60], &[3, 3, 2]),
        Case::new([1, 7, 1, 5, 200, 96], &[190], &[5]),
        Case::new([2, 2, 1, 2, 130, 160], &[63, 128], &[2, 2]),
        Case::new([2, 3, 3, 4, 9, 17], &[0, 5], &[4, 0]),
    ]
}

#[test]
fn every_mask_is_what_plain_loops_compute() {
    for case in cases() {
        let plain = case.problem();
        case.check(&plain);
        case.check(&Decode { causal: false, ..plain });
        case.check(&Decode { window: Some(1), ..plain });
        case.check(&Decode { window: Some(65), softcap: Some(0.2), ..plain });
        case.check(&Decode { hidden: Some(&case.hidden), ..plain });
        case.check(&Decode { slopes: Some(&case.slopes), ..plain });
        let (hidden, positions) = (Some(&case.hidden[..]), Some(&case.positions[..]));
        case.check(&Decode { hidden, positions, slopes: Some(&case.slopes), window: Some(5), ..plain });
    }
}

#[test]
fn a_query_that_sees_nothing_gives_zeros() {
    let case = Case::new([1, 2, 1, 1, 8, 5], &[4], &[1]);
    let hidden = [true; 5];
    let mut output = vec![f32::NAN; 10];
    decode(&Decode { hidden: Some(&hidden), ..case.problem() }, &mut output);
    assert!(output.iter().all(|x| *x == 0.0));
}

#[test]
fn a_visible_nan_shows_and_a_hidden_one_does_not() {
    let mut case = Case::new([1, 2, 2, 1, 90, 16], &[80], &[1]);
    let clean = case.expected(&case.problem());
    case.key[3 * 16] = f32::NAN; // slot 3 of head 0
    let mut output = vec![0.0; 32];
    decode(&case.problem(), &mut output);
    assert!(output[..16].iter().all(|x| x.is_nan()));
    assert!(output[16..].iter().zip(&clean[16..]).all(|(a, b)| (a - b).abs() < 1e-5));
    decode(&Decode { window: Some(70), ..case.problem() }, &mut output);
    assert!(output.iter().all(|x| x.is_finite()));
}

#[test]
#[should_panic(expected = "`key` has 3 elements, expected 40")]
fn a_slice_of_the_wrong_length_is_named() {
    let case = Case::new([1, 2, 1, 1, 8, 5], &[4], &[1]);
    decode(&Decode { key: &[0.0; 3], ..case.problem() }, &mut [0.0; 10]);
}
