//! Seeded tensors, comparison that knows NaN, tolerances, and attention in plain loops.

use std::path::PathBuf;

use burn::tensor::{Tensor, TensorData, backend::Backend};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Largest absolute error of values near 1, in f32.
pub const TOLERANCE: f64 = 1e-5;

/// A backend of the build, for what does not depend on which.
#[cfg(feature = "ndarray")]
pub type AnyBackend = burn_ndarray::NdArray;
#[cfg(not(feature = "ndarray"))]
pub type AnyBackend = burn_flex::Flex;

/// Runs each generic test on every CPU backend of the build.
macro_rules! on_each_cpu_backend {
    ($($test:ident),* $(,)?) => {
        #[cfg(feature = "ndarray")]
        mod ndarray {
            $(#[test] fn $test() { super::$test::<burn_ndarray::NdArray>(); })*
        }
        #[cfg(feature = "flex")]
        mod flex {
            $(#[test] fn $test() { super::$test::<burn_flex::Flex>(); })*
        }
    };
}
pub(crate) use on_each_cpu_backend;

/// Runs each generic test on every CPU backend of the build, and through fusion on a Vulkan device. On a CUDA device each runs if it
/// is asked for: `scripts/cuda.py` emulates one.
macro_rules! on_each_backend {
    ($($test:ident),* $(,)?) => {
        $crate::common::on_each_cpu_backend!($($test),*);
        #[cfg(feature = "vulkan")]
        mod wgpu {
            $(#[test] fn $test() { $crate::gpu::checked::<$crate::gpu::Fused>(super::$test::<$crate::gpu::Fused>); })*
        }
        #[cfg(feature = "cuda")]
        mod cuda {
            $(#[test] #[ignore = "needs a CUDA device"] fn $test() { super::$test::<burn_cuda::Cuda>(); })*
        }
    };
}
pub(crate) use on_each_backend;

/// A file or folder below `tests/golden`.
pub fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

/// Name and folder of every checkpoint in `tests/golden/models`.
pub fn golden_models() -> Vec<(String, PathBuf)> {
    checkpoints("models")
}

/// Name and folder of every checkpoint in `tests/golden/families`, which are smaller and have odd sizes.
pub fn golden_families() -> Vec<(String, PathBuf)> {
    checkpoints("families")
}

/// Name and folder of every checkpoint in `tests/golden/gguf`.
pub fn golden_ggufs() -> Vec<(String, PathBuf)> {
    checkpoints("gguf")
}

/// Name and folder of every encoder in `tests/golden/gguf_encoders`.
pub fn golden_gguf_encoders() -> Vec<(String, PathBuf)> {
    checkpoints("gguf_encoders")
}

/// Name and folder of every checkpoint in `tests/golden/encoders`.
pub fn golden_encoders() -> Vec<(String, PathBuf)> {
    checkpoints("encoders")
}

fn checkpoints(folder: &str) -> Vec<(String, PathBuf)> {
    let folders =
        std::fs::read_dir(golden(folder)).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let mut models: Vec<_> =
        folders.map(|path| (path.file_name().unwrap().to_str().unwrap().to_string(), path)).collect();
    models.sort();
    assert!(!models.is_empty(), "there are no checkpoints");
    models
}

/// Values in -1..1, the same for the same seed on every backend.
pub fn seeded<B: Backend, const D: usize>(shape: [usize; D], seed: u64) -> Tensor<B, D> {
    let mut random = StdRng::seed_from_u64(seed);
    if shape.contains(&0) {
        // Burn cannot send a CUDA device no data.
        return Tensor::empty(shape, &B::Device::default());
    }
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| random.random_range(-1.0..1.0)).collect();
    Tensor::from_data(TensorData::new(values, shape), &B::Device::default())
}

pub fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f64> {
    tensor.into_data().iter().collect()
}

/// The product of rows and a matrix in plain loops, in f64. Burn's own rounds f32 to TF32 on CUDA devices.
pub fn exact_product<B: Backend>(rows: Tensor<B, 3>, matrix: Tensor<B, 2>) -> Tensor<B, 3> {
    let ([batch, tokens, inputs], [_, outputs], device) = (rows.dims(), matrix.dims(), rows.device());
    let (rows, matrix) = (values(rows), values(matrix));
    let sum = |row: &[f64], output: usize| row.iter().enumerate().map(|(i, x)| x * matrix[i * outputs + output]).sum();
    let sums = rows.chunks(inputs).flat_map(|row| (0..outputs).map(move |output| sum(row, output)));
    let sums: Vec<f32> = sums.map(|sum: f64| sum as f32).collect();
    Tensor::from_data(TensorData::new(sums, [batch, tokens, outputs]), &device)
}

/// Whether Burn's own products round f32 to TF32, as on CUDA devices.
pub fn rounds_to_tf32<B: Backend>() -> bool {
    B::name(&Default::default()).contains("cuda")
}

/// Equal shapes, no NaN, and no difference above `tolerance`.
#[track_caller]
pub fn assert_near<B: Backend, const D: usize>(actual: Tensor<B, D>, expected: Tensor<B, D>, tolerance: f64) {
    assert_eq!(actual.dims(), expected.dims());
    let (actual, expected) = (values(actual), values(expected));
    for (at, (a, e)) in actual.iter().zip(&expected).enumerate() {
        assert!((a - e).abs() <= tolerance, "element {at}: {a} and {e}");
    }
}

/// Everything that attention in plain loops needs.
pub struct Loops<'a> {
    pub scale: f64,
    pub softcap: Option<f64>,
    pub slopes: Option<&'a [f32]>,
    pub bias: &'a dyn Fn([usize; 4]) -> f64,
    pub hides: &'a dyn Fn([usize; 4]) -> bool,
}

impl Loops<'_> {
    /// `[B, N, T, H]` × `[B, K, S, H]` → `[B, N, T, H]`, in f64, for queries that start at key `start`.
    pub fn attend<B: Backend>(&self, q: Tensor<B, 4>, k: Tensor<B, 4>, v: Tensor<B, 4>, start: usize) -> Tensor<B, 4> {
        self.attend_with_sinks(q, k, v, start, None)
    }

    /// The same, with a sink for each head.
    pub fn attend_with_sinks<B: Backend>(
        &self,
        q: Tensor<B, 4>,
        k: Tensor<B, 4>,
        v: Tensor<B, 4>,
        start: usize,
        sinks: Option<&[f32]>,
    ) -> Tensor<B, 4> {
        let ([batch, heads, tokens, dim], [_, kv_heads, keys, _]) = (q.dims(), k.dims());
        let device = q.device();
        let (q, k, v) = (values(q), values(k), values(v));
        let mut out = vec![0f32; batch * heads * tokens * dim];
        for b in 0..batch {
            for n in 0..heads {
                let kv = b * kv_heads + n / (heads / kv_heads);
                for t in 0..tokens {
                    let row = ((b * heads + n) * tokens + t) * dim;
                    let mut weights = vec![0f64; keys];
                    for (s, weight) in weights.iter_mut().enumerate() {
                        let at = [b, n, t, s];
                        if (self.hides)(at) {
                            continue;
                        }
                        let key = (kv * keys + s) * dim;
                        let mut score = self.scale * (0..dim).map(|d| q[row + d] * k[key + d]).sum::<f64>();
                        if let Some(cap) = self.softcap {
                            score = cap * (score / cap).tanh();
                        }
                        if let Some(slopes) = self.slopes {
                            score += f64::from(slopes[n]) * (s as f64 - (start + t) as f64);
                        }
                        *weight = (score + (self.bias)(at)).exp();
                    }
                    let sum = weights.iter().sum::<f64>() + sinks.map_or(0.0, |sinks| f64::from(sinks[n]).exp());
                    for (s, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
                        for d in 0..dim {
                            out[row + d] += (weight / sum * v[(kv * keys + s) * dim + d]) as f32;
                        }
                    }
                }
            }
        }
        Tensor::from_data(TensorData::new(out, [batch, heads, tokens, dim]), &device)
    }
}
