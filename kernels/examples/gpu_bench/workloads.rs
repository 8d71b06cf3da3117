//! The problems that are timed, with the bytes and the operations that each needs.

use burn_deepspeed_core::block::BlockFormat;
use burn_deepspeed_core::layout::Orientation;

use crate::launches::PREFILL;

/// Element types by their names on the command line.
pub const ELEMENTS: [&str; 2] = ["bf16", "f16"];

/// A problem under the name that `scripts/gpu_peers.py` knows too.
pub struct Workload {
    pub name: &'static str,
    pub problem: Problem,
}

/// What is added to the scores of a prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Addend {
    Nothing,
    /// ALiBi slopes.
    Slopes,
    /// A bias for every head, query and key, the same for all rows of the batch.
    Bias,
}

/// How the weights of a projection are kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Weights {
    /// In the elements of the input.
    Dense(Orientation),
    /// In one byte each, `[out, in]`, with a scale for each output.
    Int8,
    /// In quantised blocks, `[out, in]`.
    Blocks(BlockFormat),
}

#[derive(Debug, Clone, Copy)]
pub enum Problem {
    /// The roofline of memory: one large buffer to another.
    Copy {
        megabytes: usize,
    },
    /// A kernel that does almost nothing: the cost of a launch.
    Empty,
    Decode {
        batch: usize,
        heads: usize,
        kv_heads: usize,
        head: usize,
        keys: usize,
        /// Whether the cache is int8.
        int8: bool,
    },
    Prefill {
        batch: usize,
        heads: usize,
        head: usize,
        tokens: usize,
        causal: bool,
        addend: Addend,
        /// Whether keys and values are int8.
        int8: bool,
    },
    Softmax {
        heads: usize,
        tokens: usize,
        masked: bool,
        triangular: bool,
    },
    CacheWrite {
        batch: usize,
        tokens: usize,
        heads: usize,
        kv_heads: usize,
        head: usize,
        capacity: usize,
        /// Whether the cache is int8.
        int8: bool,
        /// Whether the features of each query and key are normalised, with weights that all heads share.
        norm: bool,
    },
    /// The sums of the squares of all queries and of all keys of a token.
    Squares {
        batch: usize,
        tokens: usize,
        heads: usize,
        kv_heads: usize,
        head: usize,
    },
    Pad {
        batch: usize,
        heads: usize,
        tokens: usize,
        head: usize,
        size: usize,
    },
    Norm {
        rows: usize,
        features: usize,
        rms: bool,
    },
    Gemv {
        rows: usize,
        inputs: usize,
        outputs: usize,
        normed: bool,
        weights: Weights,
    },
    /// A matrix of blocks as a dense one.
    Dequantise {
        inputs: usize,
        outputs: usize,
        format: BlockFormat,
    },
}

use Orientation::{InputOutput, OutputInput};

const fn decoding([batch, heads, kv_heads, head]: [usize; 4], keys: usize, int8: bool) -> Problem {
    Problem::Decode { batch, heads, kv_heads, head, keys, int8 }
}

const fn appending([batch, tokens]: [usize; 2], capacity: usize, int8: bool) -> Problem {
    Problem::CacheWrite { batch, tokens, heads: 32, kv_heads: 32, head: 128, capacity, int8, norm: false }
}

/// The same with the norm of Qwen 3.
const fn normed([batch, tokens]: [usize; 2], capacity: usize) -> Problem {
    Problem::CacheWrite { batch, tokens, heads: 32, kv_heads: 32, head: 128, capacity, int8: false, norm: true }
}

/// What the norm of OLMo 2 needs first.
const fn squares([batch, tokens]: [usize; 2]) -> Problem {
    Problem::Squares { batch, tokens, heads: 32, kv_heads: 32, head: 128 }
}

const fn prompt([batch, heads, head]: [usize; 3], tokens: usize, causal: bool, addend: Addend) -> Problem {
    Problem::Prefill { batch, heads, head, tokens, causal, addend, int8: false }
}

/// A causal prompt whose keys and values are read from an int8 cache.
const fn prompt_int8([batch, heads, head]: [usize; 3], tokens: usize) -> Problem {
    Problem::Prefill { batch, heads, head, tokens, causal: true, addend: Addend::Nothing, int8: true }
}

/// Norm and QKV projection of a model of 4096 features.
const fn qkv(rows: usize, weights: Weights) -> Problem {
    Problem::Gemv { rows, inputs: 4096, outputs: 12288, normed: true, weights }
}

/// Its output projection.
const fn output(rows: usize, weights: Weights) -> Problem {
    Problem::Gemv { rows, inputs: 4096, outputs: 4096, normed: false, weights }
}

/// The last projection of its MLP.
const fn down(rows: usize, weights: Weights) -> Problem {
    Problem::Gemv { rows, inputs: 14336, outputs: 4096, normed: false, weights }
}

/// Its weights made dense, for the product of a prompt.
const fn dense(format: BlockFormat) -> Problem {
    Problem::Dequantise { inputs: 4096, outputs: 4096, format }
}

const LLAMA: [usize; 3] = [1, 32, 128];
const LONG: [usize; 3] = [4, 16, 64];

/// The most informative ones first.
#[rustfmt::skip]
pub const WORKLOADS: [Workload; 52] = [
    Workload { name: "copy", problem: Problem::Copy { megabytes: 512 } },
    Workload { name: "launch", problem: Problem::Empty },
    Workload { name: "decode-64x32x8x128-4096", problem: decoding([64, 32, 8, 128], 4096, false) },
    Workload { name: "decode-64x32x8x128-4096-int8", problem: decoding([64, 32, 8, 128], 4096, true) },
    Workload { name: "decode-1x32x32x128-32768", problem: decoding([1, 32, 32, 128], 32768, false) },
    Workload { name: "decode-1x32x32x128-32768-int8", problem: decoding([1, 32, 32, 128], 32768, true) },
    Workload { name: "decode-1x32x32x128-2048", problem: decoding([1, 32, 32, 128], 2048, false) },
    Workload { name: "prefill-1x32x128-4096-causal", problem: prompt(LLAMA, 4096, true, Addend::Nothing) },
    Workload { name: "prefill-4x16x64-8192-full", problem: prompt(LONG, 8192, false, Addend::Nothing) },
    Workload { name: "prefill-2x8x40-4096-diffusers", problem: prompt([2, 8, 40], 4096, false, Addend::Nothing) },
    Workload { name: "prefill-1x8x64-512-causal", problem: prompt([1, 8, 64], 512, true, Addend::Nothing) },
    Workload { name: "softmax-32x2048x2048-plain", problem: Problem::Softmax { heads: 32, tokens: 2048, masked: false, triangular: false } },
    Workload { name: "softmax-32x2048x2048-triangular", problem: Problem::Softmax { heads: 32, tokens: 2048, masked: false, triangular: true } },
    Workload { name: "softmax-32x2048x2048-masked", problem: Problem::Softmax { heads: 32, tokens: 2048, masked: true, triangular: false } },
    Workload { name: "layernorm-4096x4096", problem: Problem::Norm { rows: 4096, features: 4096, rms: false } },
    Workload { name: "rmsnorm-4096x4096", problem: Problem::Norm { rows: 4096, features: 4096, rms: true } },
    Workload { name: "norm-qkv-4096-12288-out-in", problem: qkv(1, Weights::Dense(OutputInput)) },
    Workload { name: "norm-qkv-4096-12288-in-out", problem: qkv(1, Weights::Dense(InputOutput)) },
    Workload { name: "norm-qkv-4096-12288-int8", problem: qkv(1, Weights::Int8) },
    Workload { name: "output-4096-4096-out-in", problem: output(1, Weights::Dense(OutputInput)) },
    Workload { name: "output-4096-4096-in-out", problem: output(1, Weights::Dense(InputOutput)) },
    Workload { name: "output-4096-4096-int8", problem: output(1, Weights::Int8) },
    Workload { name: "output-4096-4096-q4_0", problem: output(1, Weights::Blocks(BlockFormat::Q4_0)) },
    Workload { name: "output-4096-4096-q8_0", problem: output(1, Weights::Blocks(BlockFormat::Q8_0)) },
    Workload { name: "output-4096-4096-q4_k", problem: output(1, Weights::Blocks(BlockFormat::Q4_K)) },
    Workload { name: "output-4096-4096-q6_k", problem: output(1, Weights::Blocks(BlockFormat::Q6_K)) },
    Workload { name: "norm-qkv-4096-12288-q4_k", problem: qkv(1, Weights::Blocks(BlockFormat::Q4_K)) },
    Workload { name: "norm-qkv-8x4096-12288-q4_k", problem: qkv(8, Weights::Blocks(BlockFormat::Q4_K)) },
    Workload { name: "output-8x4096-4096-q4_k", problem: output(8, Weights::Blocks(BlockFormat::Q4_K)) },
    Workload { name: "output-8x4096-4096-q6_k", problem: output(8, Weights::Blocks(BlockFormat::Q6_K)) },
    Workload { name: "output-8x14336-4096-q4_k", problem: down(8, Weights::Blocks(BlockFormat::Q4_K)) },
    Workload { name: "norm-qkv-8x4096-12288-out-in", problem: qkv(8, Weights::Dense(OutputInput)) },
    Workload { name: "norm-qkv-8x4096-12288-int8", problem: qkv(8, Weights::Int8) },
    Workload { name: "output-8x4096-4096-out-in", problem: output(8, Weights::Dense(OutputInput)) },
    Workload { name: "output-8x4096-4096-int8", problem: output(8, Weights::Int8) },
    Workload { name: "dequantise-4096-4096-q4_0", problem: dense(BlockFormat::Q4_0) },
    Workload { name: "dequantise-4096-4096-q4_k", problem: dense(BlockFormat::Q4_K) },
    Workload { name: "dequantise-4096-4096-q6_k", problem: dense(BlockFormat::Q6_K) },
    Workload { name: "cache-write-1x4096x32x32x128", problem: appending([1, 4096], 4096, false) },
    Workload { name: "cache-write-1x4096x32x32x128-int8", problem: appending([1, 4096], 4096, true) },
    Workload { name: "cache-write-64x1x32x32x128", problem: appending([64, 1], 16, false) },
    Workload { name: "cache-write-64x1x32x32x128-int8", problem: appending([64, 1], 16, true) },
    Workload { name: "cache-write-1x4096x32x32x128-norm", problem: normed([1, 4096], 4096) },
    Workload { name: "cache-write-64x1x32x32x128-norm", problem: normed([64, 1], 16) },
    Workload { name: "squares-1x4096x32x32x128", problem: squares([1, 4096]) },
    Workload { name: "squares-64x1x32x32x128", problem: squares([64, 1]) },
    Workload { name: "pad-2x8x4096x40-64", problem: Problem::Pad { batch: 2, heads: 8, tokens: 4096, head: 40, size: 64 } },
    Workload { name: "prefill-1x32x128-4096-causal-alibi", problem: prompt(LLAMA, 4096, true, Addend::Slopes) },
    Workload { name: "prefill-1x32x128-4096-causal-bias", problem: prompt(LLAMA, 4096, true, Addend::Bias) },
    Workload { name: "prefill-4x16x64-8192-full-alibi", problem: prompt(LONG, 8192, false, Addend::Slopes) },
    Workload { name: "prefill-4x16x64-8192-full-bias", problem: prompt(LONG, 8192, false, Addend::Bias) },
    Workload { name: "prefill-1x32x128-4096-causal-int8", problem: prompt_int8(LLAMA, 4096) },
];

/// Bytes of an element of f16 and bf16.
pub const HALF: usize = 2;
/// Bytes that move together between a device and its memory.
const SECTOR: usize = 32;

/// Bytes of a head in the cache; int8 has a scale.
fn cached(head: usize, int8: bool) -> usize {
    if int8 { head + size_of::<f32>() } else { head * HALF }
}

impl Workload {
    /// The engines that solve the problem.
    pub fn engines(&self) -> impl Iterator<Item = &'static str> {
        let names = match self.problem {
            Problem::Prefill { .. } => PREFILL.iter().map(|(name, _)| *name).collect(),
            _ => vec!["cube"],
        };
        names.into_iter()
    }

    /// The engines that an emulated device finishes in seconds.
    pub fn counted_engines(&self) -> impl Iterator<Item = (usize, &'static str)> {
        let long = matches!(self.problem, Problem::Prefill { tokens, .. } if tokens > 512);
        self.engines().enumerate().filter(move |(_, engine)| !(long && *engine == "simt"))
    }

    /// What must reach or leave memory at least, in bytes.
    pub fn bytes(&self) -> usize {
        match self.problem {
            Problem::Copy { megabytes } => 2 * (megabytes << 20),
            Problem::Empty => 0,
            Problem::Decode { batch, heads, kv_heads, head, keys, int8 } => {
                2 * batch * (kv_heads * keys * cached(head, int8) + heads * head * HALF)
            }
            Problem::Prefill { batch, heads, head, tokens, addend, int8, .. } => {
                let bias = if addend == Addend::Bias { heads * tokens * tokens } else { 0 };
                2 * batch * heads * tokens * (head * HALF + cached(head, int8)) + bias / self.triangle() * HALF
            }
            // Both halves of a triangle are written, one is read.
            Problem::Softmax { heads, tokens, masked, triangular } => {
                let matrix = heads * tokens * tokens * HALF;
                let mask = if masked { tokens * tokens * HALF } else { 0 };
                mask + if triangular { matrix + matrix / 2 } else { 2 * matrix }
            }
            Problem::CacheWrite { batch, tokens, heads, kv_heads, head, int8, norm, .. } => {
                let read = (heads + 2 * kv_heads) * head * HALF;
                let angles = tokens * head * size_of::<f32>();
                let weights = if norm { 2 * head * size_of::<f32>() } else { 0 };
                weights + angles + batch * tokens * (read + heads * head * HALF + 2 * kv_heads * cached(head, int8))
            }
            Problem::Squares { batch, tokens, heads, kv_heads, head } => {
                batch * tokens * ((heads + kv_heads) * head * HALF + 2 * size_of::<f32>())
            }
            Problem::Pad { batch, heads, tokens, head, size } => batch * heads * tokens * (head + size) * HALF,
            Problem::Norm { rows, features, .. } => 2 * rows * features * HALF,
            Problem::Gemv { rows, inputs, outputs, weights, .. } => {
                let scales = outputs * size_of::<f32>();
                let matrix = match weights {
                    Weights::Dense(_) => inputs * outputs * HALF,
                    Weights::Int8 => inputs * outputs + scales,
                    Weights::Blocks(format) => inputs * outputs / format.elements() * format.bytes(),
                };
                matrix + (rows * (inputs + outputs) + outputs) * HALF
            }
            Problem::Dequantise { inputs, outputs, format } => {
                inputs * outputs / format.elements() * format.bytes() + inputs * outputs * HALF
            }
        }
    }

    /// The same in whole sectors: the runtime lets rows begin at one, so short rows leave a part of their last sector, and so do the
    /// scales of a few tokens.
    pub fn bytes_in_sectors(&self) -> usize {
        let added = |row: usize| row.next_multiple_of(SECTOR) - row;
        let short = match self.problem {
            // Queries, keys and values. The context has all heads of a token in a row.
            Problem::Prefill { batch, heads, head, tokens, int8, .. } => {
                let cached = if int8 { head } else { head * HALF };
                batch * heads * tokens * (added(head * HALF) + 2 * added(cached))
            }
            Problem::Pad { batch, heads, tokens, head, size } => {
                batch * heads * tokens * (added(head * HALF) + added(size * HALF))
            }
            Problem::CacheWrite { batch, tokens, kv_heads, int8: true, .. } => {
                2 * batch * kv_heads * added(tokens * size_of::<f32>())
            }
            // Rows begin at 16 bytes.
            Problem::Squares { batch, tokens, .. } => batch * tokens * 2 * size_of::<f32>(),
            _ => 0,
        };
        self.bytes() + short
    }

    /// Whether blocks of different problems, in one row of the grid, touch the same sectors: those of a mask, or of the scales of
    /// neighbouring tokens.
    pub fn shares(&self) -> bool {
        match self.problem {
            Problem::Softmax { masked, .. } => masked,
            Problem::CacheWrite { tokens, int8, .. } => int8 && tokens > 1,
            _ => false,
        }
    }

    /// Products and sums of the matrices, counting each.
    pub fn flops(&self) -> usize {
        match self.problem {
            Problem::Decode { batch, heads, head, keys, .. } => 4 * batch * heads * keys * head,
            Problem::Prefill { batch, heads, head, tokens, .. } => {
                4 * batch * heads * tokens * tokens * head / self.triangle()
            }
            Problem::Gemv { rows, inputs, outputs, .. } => 2 * rows * inputs * outputs,
            _ => 0,
        }
    }

    pub fn exponentials(&self) -> usize {
        match self.problem {
            Problem::Decode { batch, heads, keys, .. } => batch * heads * keys,
            Problem::Prefill { batch, heads, tokens, .. } => batch * heads * tokens * tokens / self.triangle(),
            Problem::Softmax { heads, tokens, .. } => heads * tokens * tokens,
            _ => 0,
        }
    }

    /// 2 where half of the pairs are hidden.
    fn triangle(&self) -> usize {
        if matches!(self.problem, Problem::Prefill { causal: true, .. }) { 2 } else { 1 }
    }
}

impl Problem {
    /// The same with fewer rows and keys.
    pub fn small(self) -> Self {
        match self {
            Self::Copy { .. } => Self::Copy { megabytes: 1 },
            Self::Decode { heads, kv_heads, head, keys, int8, .. } => {
                Self::Decode { batch: 1, heads, kv_heads, head, keys: keys / 16, int8 }
            }
            Self::Prefill { batch, heads, head, tokens, causal, addend, int8 } => {
                Self::Prefill { batch, heads, head, tokens: tokens / 16, causal, addend, int8 }
            }
            Self::Softmax { tokens, masked, triangular, .. } => Self::Softmax { heads: 1, tokens, masked, triangular },
            Self::Norm { features, rms, .. } => Self::Norm { rows: 64, features, rms },
            other => other,
        }
    }
}
