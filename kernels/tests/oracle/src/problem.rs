//! A problem of attention, its inputs, and its solution.

use burn_deepspeed_core::visibility::Window;

use crate::noise;

/// One attention problem, with every mask that a kernel may be given.
#[derive(Debug, Clone)]
pub struct Problem {
    /// Rows of the batch.
    pub batch: usize,
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Queries of a row.
    pub tokens: usize,
    /// Slots of a row of the cache.
    pub capacity: usize,
    /// Features of a query and of a key.
    pub head_dim: usize,
    /// Features of a value.
    pub value_dim: usize,
    /// Whether a value is the first features of its key.
    pub keys_are_values: bool,
    /// Slot of the first query of each row.
    pub starts: Vec<usize>,
    /// Keys of each row.
    pub ends: Vec<usize>,
    /// Whether keys after the slot of a query are hidden from it.
    pub causal: bool,
    /// The keys near a query that it sees; without a window, all of them.
    pub window: Option<Window>,
    /// What scores are capped at.
    pub softcap: Option<f32>,
    /// Whether [`hidden`](Self::hidden) hides keys.
    pub hidden_keys: bool,
    /// Whether [`pairs`](Self::pairs) hides pairs.
    pub hidden_pairs: bool,
    /// Whether [`biases`](Self::biases) are added.
    pub bias: bool,
    /// Whether the bias has the elements of the queries, and not f32.
    pub bias_of_elements: bool,
    /// Whether ALiBi adds [`slopes`](Self::slopes).
    pub slopes: bool,
    /// The sink of the first head; those of the others differ.
    pub sink: Option<f32>,
    /// Every fifth query sees scores that differ by much more than others.
    pub steep: bool,
    /// How much more the score of each key is than that of the key before. With 0, one key more or less changes little.
    pub slant: f32,
    /// What products are multiplied with, in place of `1 / √head_dim`.
    pub scale: Option<f32>,
    /// What values are multiplied with. Results are compared after a division by it.
    pub magnitude: f32,
}

impl Problem {
    /// Causal attention of `tokens` new tokens, the last ones of each row of `ends` keys.
    pub fn new([heads, kv_heads, tokens, capacity, head_dim]: [usize; 5], ends: &[usize]) -> Self {
        Self {
            batch: ends.len(),
            heads,
            kv_heads,
            tokens,
            capacity,
            head_dim,
            value_dim: head_dim,
            keys_are_values: false,
            starts: ends.iter().map(|end| end.saturating_sub(tokens)).collect(),
            ends: ends.to_vec(),
            causal: true,
            window: None,
            softcap: None,
            hidden_keys: false,
            hidden_pairs: false,
            bias: false,
            bias_of_elements: false,
            slopes: false,
            sink: None,
            steep: false,
            slant: 0.0,
            scale: None,
            magnitude: 1.0,
        }
    }

    /// What products are multiplied with.
    pub fn scale(&self) -> f32 {
        self.scale.unwrap_or(1.0 / (self.head_dim as f32).sqrt())
    }

    /// Keys of the longest row.
    pub fn keys(&self) -> usize {
        self.ends.iter().copied().max().expect("a problem has rows")
    }

    /// The queries, `[B, N, T, H]`, each number rounded.
    pub fn query(&self, round: impl Fn(f32) -> f32) -> Vec<f32> {
        let len = self.batch * self.heads * self.tokens * self.head_dim;
        let factor = |row: usize| if self.steep && row.is_multiple_of(5) { 400.0 } else { 2.0 };
        let mut query = noise(len, 1);
        query.iter_mut().enumerate().for_each(|(at, value)| *value *= factor(at / self.head_dim));
        if self.slant != 0.0 {
            query.iter_mut().step_by(self.head_dim).for_each(|value| *value = 16.0 * self.slant / self.scale());
        }
        query.into_iter().map(round).collect()
    }

    /// Features of a key (seed 2) or of a value (seed 3).
    pub fn features(&self, seed: u64) -> usize {
        if seed == 2 { self.head_dim } else { self.value_dim }
    }

    /// Keys (seed 2) or values (seed 3); NaN in every slot after the end of its row and in every hidden one.
    pub fn cache(&self, round: impl Fn(f32) -> f32, seed: u64) -> Vec<f32> {
        let size = self.features(seed);
        let mut cache = noise(self.batch * self.kv_heads * self.capacity * size, seed);
        if self.slant != 0.0 && seed == 2 {
            let first = cache.iter_mut().step_by(size).enumerate();
            first.for_each(|(slot, value)| *value = (slot % self.capacity) as f32 / 16.0);
        }
        if seed == 3 {
            cache.iter_mut().for_each(|value| *value *= self.magnitude);
        }
        let hidden = self.hidden();
        for (slot, features) in cache.chunks_mut(size).enumerate() {
            let (row, key) = (slot / self.capacity / self.kv_heads, slot % self.capacity);
            let dead = key >= self.ends[row] || self.hidden_keys && hidden[row * self.keys() + key];
            features.iter_mut().for_each(|value| *value = if dead { f32::NAN } else { round(*value) });
        }
        cache
    }

    /// The first keys of each row, a different number in each, and one in the middle.
    pub fn hidden(&self) -> Vec<bool> {
        let keys = self.keys();
        (0..self.batch * keys).map(|at| at % keys < 2 * (at / keys) + 1 || at % keys == 9).collect()
    }

    /// The hidden pairs, `[T, S]`.
    pub fn pairs(&self) -> Vec<bool> {
        (0..self.tokens * self.keys()).map(|at| (at * 7 + at / 5) % 4 == 0).collect()
    }

    /// The biases, `[N, T, S]`: numbers of any element type, and some `-inf`.
    pub fn biases(&self) -> Vec<f32> {
        let mut bias = noise(self.heads * self.tokens * self.keys(), 5);
        bias.iter_mut().for_each(|value| *value = (*value * 128.0).round() / 128.0);
        bias.iter_mut().step_by(11).for_each(|value| *value = f32::NEG_INFINITY);
        bias
    }

    /// A slope for each head.
    pub fn slopes(&self) -> Vec<f32> {
        (0..self.heads).map(|head| 0.5f32.powi(head as i32 + 1)).collect()
    }

    /// A sink for each head.
    pub fn sinks(&self) -> Option<Vec<f32>> {
        self.sink.map(|sink| (0..self.heads).map(|head| sink + 0.7 * head as f32).collect())
    }

    /// The position of every key: the kept ones before it.
    pub fn positions(&self) -> Vec<i32> {
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

    /// The first slot of each row that is not hidden: that of its first token.
    pub fn origins(&self) -> Vec<usize> {
        let hidden = self.hidden();
        let rows = hidden.chunks(self.keys());
        rows.map(|row| row.iter().position(|hidden| !hidden).unwrap_or(row.len())).collect()
    }

    /// Whether the window of a query at slot `at` has slot `s`; the first token of the row is in slot `origin`.
    fn in_window(&self, origin: usize, at: usize, s: usize) -> bool {
        match self.window {
            None => true,
            Some(Window::Back(keys)) => s + keys > at,
            Some(Window::Around(reach)) => s.abs_diff(at) <= reach,
            Some(Window::Chunk(size)) => {
                let chunk = |slot: usize| (slot as i128 - origin as i128).div_euclid(size as i128);
                chunk(s) == chunk(at)
            }
        }
    }

    /// `[B, N, T, H]` and caches to `[B, T, N·Hv]`.
    pub fn solve(&self, query: &[f32], key: &[f32], value: &[f32]) -> Vec<f64> {
        let Self { batch, heads, kv_heads, tokens, capacity, head_dim, value_dim, .. } = *self;
        let (keys, hidden, pairs, biases) = (self.keys(), self.hidden(), self.pairs(), self.biases());
        let (slopes, positions, sinks) = (self.slopes(), self.positions(), self.sinks());
        let mut context = vec![0.0; batch * tokens * heads * value_dim];
        let origins = if self.hidden_keys { self.origins() } else { vec![0; batch] };
        for b in 0..batch {
            for n in 0..heads {
                for t in 0..tokens {
                    let at = self.starts[b] + t;
                    let row = &query[((b * heads + n) * tokens + t) * head_dim..][..head_dim];
                    let slot = |s: usize| (b * kv_heads + n / (heads / kv_heads)) * capacity + s;
                    let visible = |s: usize| {
                        !(self.causal && s > at)
                            && self.in_window(origins[b], at, s)
                            && !(self.hidden_keys && hidden[b * keys + s])
                            && !(self.hidden_pairs && pairs[t * keys + s])
                    };
                    let score = |s: usize| {
                        let features = &key[slot(s) * head_dim..][..head_dim];
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
                    let mut seen: Vec<(usize, f64)> = (0..self.ends[b].min(keys))
                        .filter(|s| visible(*s))
                        .map(|s| (s, score(s)))
                        .filter(|(_, score)| *score != f64::NEG_INFINITY)
                        .collect();
                    // An infinite one, too, takes everything or nothing.
                    let sink = sinks.as_ref().map(|sinks| f64::from(sinks[n]).clamp(-1e300, 1e300));
                    let largest = seen.iter().map(|(_, score)| *score).chain(sink).fold(f64::NEG_INFINITY, f64::max);
                    let mut total = sink.map_or(0.0, |sink| (sink - largest).exp());
                    for (_, score) in &mut seen {
                        *score = (*score - largest).exp();
                        total += *score;
                    }
                    let out = &mut context[((b * tokens + t) * heads + n) * value_dim..][..value_dim];
                    for (s, part) in seen {
                        let probability = part / total;
                        let features = &value[slot(s) * value_dim..][..value_dim];
                        out.iter_mut().zip(features).for_each(|(out, v)| *out += probability * f64::from(*v));
                    }
                }
            }
        }
        context
    }

    /// This problem, with much larger scores in some rows, and with scores that grow and fall from key to key.
    pub fn slanted(&self, slant: f32) -> [Self; 4] {
        let with = |slant| Self { slant, ..self.clone() };
        [self.clone(), Self { steep: true, ..self.clone() }, with(slant), with(-slant)]
    }

    /// Sinks near the scores, and far above and below all of them.
    pub fn sunk(&self) -> Vec<Self> {
        let sinks =
            [0.5, 30.0, -30.0, 200.0, -200.0, 1e30, -1e30, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY];
        sinks.map(|sink| Self { sink: Some(sink), ..self.clone() }).to_vec()
    }

    /// Every mask by itself and all together.
    pub fn masked(&self) -> Vec<Self> {
        let window = |keys| Self { window: Some(Window::Back(keys)), ..self.clone() };
        // The position of a query after the end of its row is unspecified. ALiBi moves all of its scores by it, which only a sink shows.
        let inside = self.starts.iter().zip(&self.ends).all(|(start, end)| start + self.tokens <= *end);
        vec![
            self.clone(),
            Self { causal: false, ..self.clone() },
            // A key and a sink.
            Self { sink: Some(-0.5), ..window(1) },
            window(7),
            window(self.keys() + 3),
            Self { softcap: Some(0.7), ..self.clone() },
            Self { slopes: true, ..self.clone() },
            Self { hidden_keys: true, ..self.clone() },
            Self { hidden_keys: true, slopes: true, ..self.clone() },
            Self { hidden_pairs: true, ..self.clone() },
            Self { bias: true, ..self.clone() },
            Self {
                window: Some(Window::Back(13)),
                softcap: Some(1.5),
                hidden_keys: true,
                hidden_pairs: true,
                bias: true,
                slopes: true,
                sink: inside.then_some(0.5),
                ..self.clone()
            },
        ]
    }
}

impl Problem {
    /// Windows on both sides, and chunks, alone and together with other masks.
    pub fn windows(&self) -> Vec<Self> {
        let around = |reach| Self { window: Some(Window::Around(reach)), causal: false, ..self.clone() };
        let chunk = |size| Self { window: Some(Window::Chunk(size)), ..self.clone() };
        let with_masks = |window: Self| Self {
            softcap: Some(1.5),
            hidden_keys: true,
            hidden_pairs: true,
            bias: true,
            slopes: true,
            ..window
        };
        vec![
            around(0),
            around(6),
            around(usize::MAX),
            Self { hidden_keys: true, ..around(17) },
            with_masks(around(21)),
            chunk(1),
            chunk(16),
            chunk(usize::MAX),
            Self { hidden_keys: true, ..chunk(13) },
            Self { causal: false, hidden_keys: true, ..chunk(19) },
            with_masks(chunk(23)),
        ]
    }
}
