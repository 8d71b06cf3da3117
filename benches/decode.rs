//! One attention step against a filled cache: the kernel compared with the tensor operations that it replaces.
//!
//! ```text
//! cargo bench --features autodiff --bench decode
//! ```
//!
//! On `Autodiff` the reference runs; the gradients are not tracked, since nothing requires them.

use burn::module::Module;
use burn::tensor::Tensor;
use burn_autodiff::Autodiff;
use burn_deepspeed::{
    AttentionInit, AttentionMask, DataType, DeepSpeedInferenceConfig, DeepSpeedSelfAttention, InferenceBackend, KvCache,
};
use burn_ndarray::NdArray;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

/// A layer with small projections, so that attention itself is what is timed: 12 query heads over 4 of 64 features.
fn layer<B: InferenceBackend>(history: usize) -> (DeepSpeedSelfAttention<B>, KvCache<B>) {
    let config = DeepSpeedInferenceConfig::new(64, 12)
        .with_dtype(DataType::Fp32)
        .with_head_dim(Some(64))
        .with_num_kv(Some(4))
        .with_num_hidden_layers(Some(1))
        .with_max_out_tokens(history + 64);
    let device = B::Device::default();
    let build = || -> Result<_, burn_deepspeed::ConfigError> {
        Ok((config.init_self_attention::<B>(0, &device)?.no_grad(), config.init_cache::<B>(1, &device)?))
    };
    let (layer, mut cache) = build().expect("the configuration is valid");
    cache.step(history).expect("the cache has room").commit();
    (layer, cache)
}

fn step<B: InferenceBackend>(layer: &DeepSpeedSelfAttention<B>, cache: &mut KvCache<B>, tokens: usize) -> Tensor<B, 3> {
    let input = Tensor::ones([1, tokens, 64], &Default::default());
    // the step is dropped, so that every round finds the same history
    let mut step = cache.step(tokens).expect("the cache has room");
    layer.forward(input, AttentionMask::none(), step.layer(0)).expect("one rank")
}

fn decode(criterion: &mut Criterion) {
    for history in [128usize, 1024, 8192] {
        let mut group = criterion.benchmark_group(format!("history {history}"));
        for tokens in [1usize, 2, 4] {
            let (fast, mut cache) = layer::<NdArray>(history);
            group.bench_function(BenchmarkId::new("kernel", tokens), |b| b.iter(|| step(&fast, &mut cache, tokens)));
            let (reference, mut cache) = layer::<Autodiff<NdArray>>(history);
            group.bench_function(BenchmarkId::new("reference", tokens), |b| {
                b.iter(|| step(&reference, &mut cache, tokens));
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_secs(2));
    targets = decode
}
criterion_main!(benches);
