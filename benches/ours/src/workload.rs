//! The problems that are timed, as `measure.py` describes them, and their inputs.

use std::path::PathBuf;

use burn_deepspeed::position::alibi;
use burn_deepspeed::weight::BlockFormat;
use serde::Deserialize;
use serde_json::Value;

/// A problem. Fields that only the report needs are not read.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Workload {
    /// Attention without projections.
    Attention(Heads),
    /// Norm, QKV, rotary positions, cache, attention and output projection.
    Layer(Layer),
    /// The sentences of `sentences.txt` by the encoder of a folder.
    Encoder {
        /// In the Hugging Face layout.
        folder: PathBuf,
        /// Sentences that are padded to one length and run at once.
        batch: usize,
    },
    /// A product of two square matrices.
    Matmul {
        /// Rows and columns.
        size: usize,
    },
    /// Any of these as a graph, in the form of its engine.
    Graph(Value),
    /// The sum of an array.
    Read {
        /// Numbers of four bytes.
        elements: usize,
    },
    /// Multiply-adds in registers.
    Peak {
        /// Multiplications of all threads, each with an addition.
        steps: usize,
    },
}

/// Sizes and masks of attention.
#[derive(Deserialize)]
pub struct Heads {
    /// Rows of the batch.
    pub batch: usize,
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// Queries of a row.
    pub queries: usize,
    /// Keys of a row.
    pub keys: usize,
    /// Each query sees its own key and the ones before it; the last query belongs to the last key.
    pub causal: bool,
    /// Keys that a query sees, itself included.
    pub window: Option<usize>,
    /// Whether ALiBi's biases are added.
    pub alibi: bool,
    /// Real keys of each row; the rest is padding.
    pub lengths: Option<Vec<usize>>,
}

/// Sizes of a layer without its MLP: LLaMA's, with what its relatives add.
#[derive(Deserialize)]
pub struct Layer {
    /// Features of a token.
    pub hidden: usize,
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// Tokens of a step.
    pub tokens: usize,
    /// Tokens in the cache before it.
    pub cached: usize,
    /// Keys that a query sees, itself included.
    pub window: Option<usize>,
    /// RMS norm of queries and keys.
    pub norm: bool,
    /// A sink in every head.
    pub sinks: bool,
    /// The blocks that the matrices are rounded to.
    pub blocks: Option<BlockFormat>,
}

/// Elements of a tensor, row-major, and its shape.
pub struct Dense<T> {
    /// All of them.
    pub elements: Vec<T>,
    /// Their number along each axis.
    pub shape: [usize; 4],
}

impl Heads {
    /// The queries, `[B, N, T, H]`.
    pub fn query(&self) -> Dense<f32> {
        Dense::noise(1, [self.batch, self.heads, self.queries, self.head_dim])
    }

    /// The keys, `[B, K, S, H]`.
    pub fn key(&self) -> Dense<f32> {
        Dense::noise(2, [self.batch, self.kv_heads, self.keys, self.head_dim])
    }

    /// The values, `[B, K, S, H]`.
    pub fn value(&self) -> Dense<f32> {
        Dense::noise(3, [self.batch, self.kv_heads, self.keys, self.head_dim])
    }

    /// What the products of queries and keys are multiplied with.
    pub fn scale(&self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }

    /// Index of the key that belongs to the first query.
    pub fn start(&self) -> usize {
        self.keys.saturating_sub(self.queries)
    }

    /// Whether the triangle is all that is hidden.
    pub fn plain_causal(&self) -> bool {
        self.causal && self.window.is_none() && self.lengths.is_none()
    }

    fn hides(&self, row: usize, query: usize, key: usize) -> bool {
        let at = self.start() + query;
        (self.causal && key > at)
            || self.window.is_some_and(|window| key + window <= at)
            || self.lengths.as_ref().is_some_and(|lengths| key >= lengths[row])
    }

    /// The hidden pairs, true hides: `[B or 1, 1, T, S]`; `None` if every query sees every key.
    pub fn hidden(&self) -> Option<Dense<bool>> {
        let shape = [self.lengths.as_ref().map_or(1, Vec::len), 1, self.queries, self.keys];
        let hidden = Dense::from_places(shape, |[row, _, query, key]| self.hides(row, query, key));
        hidden.elements.contains(&true).then_some(hidden)
    }

    /// ALiBi's bias, `[1, N, T, S]`.
    pub fn bias(&self) -> Option<Dense<f32>> {
        let slopes = alibi::slopes(self.heads);
        self.alibi.then(|| {
            Dense::from_places([1, self.heads, self.queries, self.keys], |[_, head, query, key]| {
                slopes[head] * (key as f32 - (self.start() + query) as f32)
            })
        })
    }

    /// The real keys, 1 or 0: `[B, S]`.
    pub fn padding(&self) -> Option<Vec<i64>> {
        let lengths = self.lengths.as_ref()?;
        Some(lengths.iter().flat_map(|&length| (0..self.keys).map(move |key| i64::from(key < length))).collect())
    }
}

impl<T> Dense<T> {
    fn from_places(shape: [usize; 4], value: impl Fn([usize; 4]) -> T) -> Self {
        let [batch, heads, queries, keys] = shape;
        let mut elements = Vec::with_capacity(shape.iter().product());
        for row in 0..batch {
            for head in 0..heads {
                for query in 0..queries {
                    elements.extend((0..keys).map(|key| value([row, head, query, key])));
                }
            }
        }
        Self { elements, shape }
    }
}

impl Dense<f32> {
    /// Noise of deviation 1.
    pub fn noise(seed: u32, shape: [usize; 4]) -> Self {
        Self { elements: noise(seed, shape.iter().product(), 1.0), shape }
    }
}

/// Numbers between ±√3 · `deviation`, a hash of seed and index; equal to `noise` of `problems.py`.
pub fn noise(seed: u32, count: usize, deviation: f64) -> Vec<f32> {
    let scale = (3f64.sqrt() * deviation) as f32;
    let hash = |index: usize| {
        let mut bits = (index as u32).wrapping_add(seed.wrapping_mul(0x9E37_79B9));
        bits = (bits ^ (bits >> 16)).wrapping_mul(0x7FEB_352D);
        bits = (bits ^ (bits >> 15)).wrapping_mul(0x846C_A68B);
        bits ^ (bits >> 16)
    };
    (0..count).map(|index| ((hash(index) >> 8) as f32 / (1 << 23) as f32 - 1.0) * scale).collect()
}
