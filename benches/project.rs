//! Norm and projection, 1024 features to 3072, in both orientations: the kernels compared with the tensor operations that they
//! replace.
//!
//! ```text
//! cargo bench --bench project
//! ```

use burn::tensor::{DType, Distribution, Tensor};
use burn_deepspeed::ops::qkv_gemm::reference;
use burn_deepspeed::spec::NormSpec;
use burn_deepspeed::weight::{FusedNorm, Orientation, QkvWeight, Weight};
use burn_deepspeed::{CpuOps, Operations, ops};
use burn_ndarray::NdArray;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

const INPUTS: usize = 1024;
const OUTPUTS: usize = 3072;

fn project(criterion: &mut Criterion) {
    let device = Default::default();
    let random = |shape| Tensor::<NdArray, 3>::random(shape, Distribution::Default, &device);
    let norm = FusedNorm::init(INPUTS, false, NormSpec { rms: true, epsilon: 1e-6 }, DType::F32, &device);
    for orientation in [Orientation::OutputInput, Orientation::InputOutput] {
        let matrix = random([1, INPUTS, OUTPUTS]).reshape(orientation.shape(INPUTS, OUTPUTS));
        let qkv = QkvWeight::Fused(Weight::new(matrix, None, orientation));
        let mut group = criterion.benchmark_group(format!("{orientation:?}"));
        for tokens in [1usize, 4, 16, 32, 64, 512] {
            let input = random([1, tokens, INPUTS]);
            group.bench_function(BenchmarkId::new("kernel", tokens), |bencher| {
                bencher.iter(|| CpuOps::qkv_gemm(input.clone(), Some(&norm), &qkv, false));
            });
            group.bench_function(BenchmarkId::new("reference", tokens), |bencher| {
                bencher.iter(|| reference(input.clone(), Some(&norm), &qkv, false));
            });
        }
        group.finish();
    }
}

/// A norm by itself: a product with one output.
fn norm(criterion: &mut Criterion) {
    let device = Default::default();
    let norm = FusedNorm::init(INPUTS, false, NormSpec { rms: false, epsilon: 1e-6 }, DType::F32, &device);
    let one = Weight::new(Tensor::ones([INPUTS, 1], &device), None, Orientation::InputOutput);
    let one = QkvWeight::Fused(one);
    let input = Tensor::<NdArray, 3>::random([8, 512, INPUTS], Distribution::Default, &device);
    let mut group = criterion.benchmark_group("norm");
    group.bench_function("kernel", |bencher| {
        bencher.iter(|| CpuOps::qkv_gemm(input.clone(), Some(&norm), &one, false));
    });
    group.bench_function("reference", |bencher| {
        bencher.iter(|| ops::qkv_gemm::normalise(input.clone(), &norm));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(std::time::Duration::from_secs(1));
    targets = project, norm
}
criterion_main!(benches);
