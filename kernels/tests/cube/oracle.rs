//! Attention in plain loops, in f64.

use burn_deepspeed_kernels::cube::{Attention, HiddenKeys, MaskArguments, Rules, Unsupported};
use cubecl::prelude::Runtime;

use crate::lab::{Element, Lab, assert_near, by_head, noise};

/// One attention problem, with every mask that a kernel may be given.
#[derive(Debug, Clone)]
pub struct Problem {
    pub batch: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub tokens: usize,
    pub capacity: usize,
    pub head_dim: usize,
    /// Slot of the first query of each row.
    pub starts: Vec<usize>,
    /// Keys of each row.
    pub ends: Vec<usize>,
    pub causal: bool,
    pub window: Option<usize>,
    pub softcap: Option<f32>,
    pub hidden_keys: bool,
    pub hidden_pairs: bool,
    pub bias: bool,
    pub slopes: bool,
}

impl Problem {
    /// Causal attention of `tokens` new tokens behind what `ends` leaves of each row.
    pub fn new([heads, kv_heads, tokens, capacity, head_dim]: [usize; 5], ends: &[usize]) -> Self {
        Self {
            batch: ends.len(),
            heads,
            kv_heads,
            tokens,
            capacity,
            head_dim,
            starts: ends.iter().map(|end| end.saturating_sub(tokens)).collect(),
            ends: ends.to_vec(),
            causal: true,
            window: None,
            softcap: None,
            hidden_keys: false,
            hidden_pairs: false,
            bias: false,
            slopes: false,
        }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    pub fn keys(&self) -> usize {
        self.ends.iter().copied().max().unwrap()
    }

    fn query(&self, element: Element) -> Vec<f32> {
        let len = self.batch * self.heads * self.tokens * self.head_dim;
        noise(len, 1).iter().map(|value| element.round(value * 2.0)).collect()
    }

    /// Keys (seed 2) or values (seed 3); NaN in every slot behind the end of its row and in every hidden one.
    fn cache(&self, element: Element, seed: u64) -> Vec<f32> {
        let mut cache = noise(self.batch * self.kv_heads * self.capacity * self.head_dim, seed);
        let hidden = self.hidden();
        for (slot, features) in cache.chunks_mut(self.head_dim).enumerate() {
            let (row, key) = (slot / self.capacity / self.kv_heads, slot % self.capacity);
            let dead = key >= self.ends[row] || self.hidden_keys && hidden[row * self.keys() + key];
            features.iter_mut().for_each(|value| *value = if dead { f32::NAN } else { element.round(*value) });
        }
        cache
    }

    /// The first keys of each row, a different number in each, and one in the middle.
    fn hidden(&self) -> Vec<bool> {
        let keys = self.keys();
        (0..self.batch * keys).map(|at| at % keys < 2 * (at / keys) + 1 || at % keys == 9).collect()
    }

    fn pairs(&self) -> Vec<bool> {
        (0..self.tokens * self.keys()).map(|at| (at * 7 + at / 5) % 4 == 0).collect()
    }

    fn biases(&self) -> Vec<f32> {
        let mut bias = noise(self.heads * self.tokens * self.keys(), 5);
        bias.iter_mut().step_by(11).for_each(|value| *value = f32::NEG_INFINITY);
        bias
    }

    fn slopes(&self) -> Vec<f32> {
        (0..self.heads).map(|head| 0.5f32.powi(head as i32 + 1)).collect()
    }

    /// The position of every key: the kept ones before it.
    fn positions(&self) -> Vec<i32> {
        let mut positions = Vec::new();
        for row in self.hidden().chunks(self.keys()) {
            let mut position = -1;
            positions.extend(row.iter().map(|hidden| {
                position += i32::from(!hidden);
                position
            }));
        }
        positions
    }

    fn masks<R: Runtime>(&self, lab: &Lab<R>) -> MaskArguments<R> {
        let flags = |bits: Vec<bool>| bits.into_iter().map(u32::from).collect::<Vec<_>>();
        let (batch, keys) = (self.batch, self.keys());
        let uniform =
            self.starts.iter().all(|start| *start == self.starts[0]) && self.ends.iter().all(|end| *end == keys);
        let mut masks = MaskArguments::new(Rules {
            causal: self.causal,
            window: self.window.map(|window| window as u32),
            softcap: self.softcap,
            start: self.starts[0] as u32,
            end: self.ends[0] as u32,
        });
        if !uniform {
            let bounds: Vec<u32> =
                self.starts.iter().zip(&self.ends).flat_map(|(start, end)| [*start as u32, *end as u32]).collect();
            masks.bounds = Some(lab.integers(&bounds, &[batch, 2]));
        }
        if self.hidden_keys {
            let positions: Vec<u32> = self.positions().into_iter().map(|position| position as u32).collect();
            masks.hidden_keys = Some(HiddenKeys {
                hidden: lab.integers(&flags(self.hidden()), &[batch, keys]),
                positions: self.slopes.then(|| lab.integers(&positions, &[batch, keys])),
            });
        }
        if self.hidden_pairs {
            masks.hidden_pairs = Some(lab.integers(&flags(self.pairs()), &[1, 1, self.tokens, keys]));
        }
        if self.bias {
            let shape = [1, self.heads, self.tokens, keys];
            masks.bias = Some(lab.floats(&self.biases(), &shape, Element::F32, 1));
        }
        if self.slopes {
            masks.slopes = Some(lab.floats(&self.slopes(), &[self.heads], Element::F32, 1));
        }
        masks
    }

    /// What a kernel makes of this problem, and what its launch said.
    pub fn run<R: Runtime, L>(
        &self,
        lab: &Lab<R>,
        element: Element,
        launch: impl FnOnce(Attention<'_, R>) -> Result<L, Unsupported>,
    ) -> (Vec<f32>, L) {
        let Self { batch, heads, kv_heads, tokens, capacity, head_dim, .. } = *self;
        let cache = |seed, pitch| {
            lab.floats(&self.cache(element, seed), &[batch, kv_heads, capacity, head_dim], element, pitch)
        };
        let context = lab.output(&[batch, tokens, heads * head_dim], element, 8);
        let launched = launch(Attention {
            query: &lab.floats(&self.query(element), &[batch, heads, tokens, head_dim], element, 64),
            key: &cache(2, 64),
            value: &cache(3, 16),
            context: &by_head(&context, heads),
            scale: self.scale(),
            masks: &self.masks(lab),
            keys: self.keys(),
        });
        (lab.read(&context), launched.unwrap())
    }

    /// Compares what a kernel makes of this problem with plain loops; `how` names the kernel. Returns what its launch said.
    #[track_caller]
    pub fn check<R: Runtime, L>(
        &self,
        lab: &Lab<R>,
        element: Element,
        how: &str,
        launch: impl FnOnce(Attention<'_, R>) -> Result<L, Unsupported>,
    ) -> L {
        let (context, launched) = self.run(lab, element, launch);
        let expected = self.solve(&self.query(element), &self.cache(element, 2), &self.cache(element, 3));
        assert_near(&format!("{how}, {element:?}, {self:?}"), &context, &expected, element.tolerance());
        launched
    }

    /// `[B, N, T, H]` and caches to `[B, T, N·H]`.
    fn solve(&self, query: &[f32], key: &[f32], value: &[f32]) -> Vec<f64> {
        let Self { batch, heads, kv_heads, tokens, capacity, head_dim, .. } = *self;
        let (keys, hidden, pairs, biases) = (self.keys(), self.hidden(), self.pairs(), self.biases());
        let (slopes, positions) = (self.slopes(), self.positions());
        let mut context = vec![0.0; batch * tokens * heads * head_dim];
        for b in 0..batch {
            for n in 0..heads {
                for t in 0..tokens {
                    let at = self.starts[b] + t;
                    let row = &query[((b * heads + n) * tokens + t) * head_dim..][..head_dim];
                    let cache = |s: usize| ((b * kv_heads + n / (heads / kv_heads)) * capacity + s) * head_dim;
                    let visible = |s: usize| {
                        s < self.ends[b]
                            && !(self.causal && s > at)
                            && self.window.is_none_or(|window| s + window > at)
                            && !(self.hidden_keys && hidden[b * keys + s])
                            && !(self.hidden_pairs && pairs[t * keys + s])
                    };
                    let score = |s: usize| {
                        let features = &key[cache(s)..][..head_dim];
                        let dot: f64 = row.iter().zip(features).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                        let mut score = dot * f64::from(self.scale());
                        if let Some(cap) = self.softcap {
                            score = (score / f64::from(cap)).tanh() * f64::from(cap);
                        }
                        if self.slopes {
                            let distance = match self.hidden_keys {
                                true => positions[b * keys + s] - positions[b * keys + at.min(self.ends[b] - 1)],
                                false => s as i32 - at as i32,
                            };
                            score += f64::from(slopes[n]) * f64::from(distance);
                        }
                        if self.bias {
                            score += f64::from(biases[(n * tokens + t) * keys + s]);
                        }
                        score
                    };
                    let seen: Vec<(usize, f64)> = (0..keys)
                        .filter(|s| visible(*s))
                        .map(|s| (s, score(s)))
                        .filter(|(_, score)| *score != f64::NEG_INFINITY)
                        .collect();
                    let largest = seen.iter().map(|(_, score)| *score).fold(f64::NEG_INFINITY, f64::max);
                    let total: f64 = seen.iter().map(|(_, score)| (score - largest).exp()).sum();
                    let out = &mut context[((b * tokens + t) * heads + n) * head_dim..][..head_dim];
                    for (s, score) in seen {
                        let probability = (score - largest).exp() / total;
                        let features = &value[cache(s)..][..head_dim];
                        out.iter_mut().zip(features).for_each(|(out, v)| *out += probability * f64::from(*v));
                    }
                }
            }
        }
        context
    }

    /// Every mask by itself and all together.
    pub fn masked(&self) -> Vec<Self> {
        let window = |window| Self { window: Some(window), ..self.clone() };
        vec![
            self.clone(),
            Self { causal: false, ..self.clone() },
            window(1),
            window(7),
            window(self.keys() + 3),
            Self { softcap: Some(0.7), ..self.clone() },
            Self { slopes: true, ..self.clone() },
            Self { hidden_keys: true, ..self.clone() },
            Self { hidden_keys: true, slopes: true, ..self.clone() },
            Self { hidden_pairs: true, ..self.clone() },
            Self { bias: true, ..self.clone() },
            Self {
                window: Some(13),
                softcap: Some(1.5),
                hidden_keys: true,
                hidden_pairs: true,
                bias: true,
                slopes: true,
                ..self.clone()
            },
        ]
    }
}
