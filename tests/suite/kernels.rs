//! The fast paths against the reference, and why they decline.

use std::num::NonZeroUsize;

use burn::tensor::{Bool, Tensor, TensorData};
use burn_deepspeed::cache::CacheTypes;
use burn_deepspeed::ops::{ContextProblem, Declined, Plan};
use burn_deepspeed::{
    AttentionInit, AttentionMask, DataType, DeepSpeedInferenceConfig, ElementType, InferenceBackend, KvCacheType,
    Operations, Parallelism,
};

#[cfg(feature = "autodiff")]
use crate::attention::randomised;
use crate::cache::{cache_of, feed, kinds, module_of};
use crate::common::{on_each_cpu_backend, seeded};

/// On `Autodiff` every operation runs on the reference, with which the kernels of every backend are compared.
#[cfg(feature = "autodiff")]
pub fn steps_agree_with_the_reference<B: InferenceBackend>(
    heads: &[[usize; 3]],
    windows: &[(Option<usize>, Option<f64>)],
    tolerance: f64,
) {
    for &[heads, kv_heads, head_dim] in heads {
        for &(window, softcap) in windows {
            let config = DeepSpeedInferenceConfig::new(24, heads)
                .with_dtype(DataType::Fp32)
                .with_head_dim(Some(head_dim))
                .with_num_kv(Some(kv_heads))
                .with_rotary_dim(Some(8))
                .with_local_attention(window.is_some())
                .with_window_size(window.unwrap_or(1))
                .with_softcap(softcap)
                .with_num_hidden_layers(Some(1))
                .with_max_out_tokens(90);
            steps_of_agree_with_the_reference::<B>(&config, tolerance);
        }
    }
}

/// Steps of one configuration with every kind of cache, with and without hidden keys.
#[cfg(feature = "autodiff")]
pub fn steps_of_agree_with_the_reference<B: InferenceBackend>(config: &DeepSpeedInferenceConfig, tolerance: f64) {
    use crate::common::{AnyBackend, assert_near, values};

    type Reference = burn_autodiff::Autodiff<AnyBackend>;
    let kinds = || kinds::<B>().into_iter().map(|(types, slack)| (types, if slack < 1e-4 { tolerance } else { slack }));
    for ((types, tolerance), padded) in kinds().flat_map(|kind| [(kind, false), (kind, true)]) {
        let config = config.clone().with_kv_cache_dtype(types);
        let expected = steps::<Reference>(&config, padded).inner();
        let actual = steps::<B>(&config, padded);
        let shape = actual.dims();
        let actual: Vec<f32> = values(actual).into_iter().map(|value| value as f32).collect();
        let actual = Tensor::from_data(TensorData::new(actual, shape), &Default::default());
        assert_near::<AnyBackend, 3>(actual, expected, tolerance);
    }
}

/// The outputs for the real tokens of a prompt and three steps with ragged rows, on a rotary module and on a BLOOM.
#[cfg(feature = "autodiff")]
fn steps<B: InferenceBackend>(config: &DeepSpeedInferenceConfig, padded: bool) -> Tensor<B, 3> {
    let (device, hidden) = (Default::default(), config.hidden_size);
    let bloom = config.clone().with_bigscience_bloom(true).with_rotary_dim(None);
    let bloom = randomised(bloom.init_bloom::<B>(0, &device).unwrap());
    let rotary = randomised(config.init_self_attention::<B>(0, &device).unwrap());
    let mut outputs = Vec::new();
    for module in 0..2 {
        let mut cache = config.init_cache::<B>(2, &device).unwrap();
        for (seed, new) in [(1, [70, 66]), (2, [1, 1]), (3, [3, 4]), (4, [1, 0])] {
            let width = new.into_iter().max().unwrap();
            let input = seeded::<B, 3>([2, width, hidden], seed);
            let mut step = cache.step_ragged(width, &new).unwrap();
            let keys = step.keys();
            let hides: Vec<bool> = (0..2 * keys).map(|at| at % keys < 4 * (at / keys) || at % keys == 9).collect();
            let hides = Tensor::<B, 2, Bool>::from_data(TensorData::new(hides, [2, keys]), &device);
            let mask = if padded { AttentionMask::hide(hides) } else { AttentionMask::none() };
            let output = match module {
                0 => rotary.forward(input, mask, step.layer(0)).unwrap(),
                _ => bloom.forward(input, mask, step.layer(0)).unwrap(),
            };
            step.commit();
            let valid = |row: usize| output.clone().slice([row..row + 1, 0..new[row], 0..hidden]);
            outputs.extend((0..2).filter(|row| new[*row] > 0).map(valid));
        }
    }
    Tensor::cat(outputs, 1)
}

#[cfg(feature = "autodiff")]
fn decoding_steps_agree_with_the_reference<B: InferenceBackend>() {
    let windows = [(None, None), (Some(65), None), (Some(7), Some(0.5))];
    steps_agree_with_the_reference::<B>(&[[6, 2, 8], [3, 3, 40], [4, 1, 80], [2, 1, 160]], &windows, 1e-5);
}

#[cfg(feature = "autodiff")]
on_each_cpu_backend!(
    decoding_steps_agree_with_the_reference,
    kernels_say_why_they_decline,
    a_padded_step_of_nothing_is_nothing,
    a_sequence_in_a_batch_is_bitwise_the_sequence_alone
);
#[cfg(not(feature = "autodiff"))]
on_each_cpu_backend!(
    kernels_say_why_they_decline,
    a_padded_step_of_nothing_is_nothing,
    a_sequence_in_a_batch_is_bitwise_the_sequence_alone
);

/// A padded step of no tokens on an empty cache has nothing to attend to, and no column for its mask.
fn a_padded_step_of_nothing_is_nothing<B: InferenceBackend>() {
    let device = Default::default();
    let config = DeepSpeedInferenceConfig::new(48, 6)
        .with_dtype(DataType::Fp32)
        .with_bigscience_bloom(true)
        .with_num_hidden_layers(Some(1));
    let bloom = config.init_bloom::<B>(0, &device).unwrap();
    let mut cache = config.init_cache::<B>(2, &device).unwrap();
    let mut step = cache.step(0).unwrap();
    let no_keys = Tensor::<B, 2, Bool>::from_data(TensorData::new(Vec::<bool>::new(), [2, 0]), &device);
    let output = bloom.forward(seeded([2, 0, 48], 1), AttentionMask::keep(no_keys), step.layer(0)).unwrap();
    assert_eq!(output.dims(), [2, 0, 48]);
}

/// 20 sequences, so that the batch has more rows than a product takes together: prompt and steps are bitwise those of a
/// sequence alone, and the same on any number of threads.
fn a_sequence_in_a_batch_is_bitwise_the_sequence_alone<B: InferenceBackend>() {
    for (types, _) in kinds::<B>() {
        bitwise_alike::<B>(types);
    }
}

fn bitwise_alike<B: InferenceBackend>(types: KvCacheType) {
    let module = module_of::<B>(types);
    let cache = |batch| cache_of::<B>(types, batch);
    let sequence = |tensor: Tensor<B, 3>| tensor.narrow(0, 7, 1);
    let bits = |tensor: Tensor<B, 3>| tensor.into_data().iter().map(f32::to_bits).collect::<Vec<_>>();
    let three = Parallelism::threads(NonZeroUsize::new(3).unwrap()).unwrap();
    assert_eq!(three.count(), 3);
    let (mut batch, mut alone, mut threads) = (cache(20), cache(1), cache(20));
    for (seed, tokens) in [5, 1, 17, 1].into_iter().enumerate() {
        let input = seeded::<B, 3>([20, tokens, 48], seed as u64);
        let all = feed(&module, &mut batch, input.clone());
        let one = feed(&module, &mut alone, sequence(input.clone()));
        assert_eq!(bits(sequence(all.clone())), bits(one), "{tokens} tokens");
        let on_three = three.run(|| feed(&module, &mut threads, input));
        assert_eq!(bits(on_three), bits(all), "{tokens} tokens on three threads");
    }
}

fn kernels_say_why_they_decline<B: InferenceBackend>() {
    use ElementType::{BF16, F16, F32, F64, I8};
    let fast = [
        "qkv_gemm",
        "softmax_context",
        "latent_context",
        "masked_attention",
        "normalise_and_rotate",
        "context_gate",
        "linear",
        "vector_matmul",
        "residual_norm",
        "activation",
        "gated_activation",
        "gelu",
    ];
    assert_eq!(B::Ops::fast_operations(), fast);
    let device = B::Device::default();
    let good = ContextProblem::new(F32, 1, 64, Some(F32.into()));
    assert_eq!(B::Ops::plan_softmax_context(&good, &device), Plan::Kernel("cpu::decode"));
    for problem in [
        ContextProblem { cache: None, ..good },
        ContextProblem { tokens: 8, ..good },
        ContextProblem { cache: Some(CacheTypes { key: I8, value: F32 }), ..good },
    ] {
        for (tokens, kernel) in [(problem.tokens, "cpu::decode"), (9, "cpu::flash")] {
            let problem = ContextProblem { tokens, ..problem };
            assert_eq!(B::Ops::plan_softmax_context(&problem, &device), Plan::Kernel(kernel));
            assert_eq!(B::Ops::plan_masked_attention(&problem, &device), Plan::Kernel(kernel));
        }
    }
    for dtype in [F32, F16, BF16] {
        for cache in [F32, F16, BF16, I8] {
            let problem = ContextProblem { dtype, cache: Some(cache.into()), ..good };
            assert_eq!(B::Ops::plan_softmax_context(&problem, &device), Plan::Kernel("cpu::decode"));
        }
    }
    let double = ContextProblem { dtype: F64, cache: None, ..good };
    for (problem, reason) in [
        (double, Declined::ElementType(F64)),
        (ContextProblem { cache: Some(F64.into()), ..good }, Declined::CacheType { dtype: F32, cache: F64 }),
    ] {
        assert_eq!(B::Ops::plan_softmax_context(&problem, &device), Plan::Reference(reason));
    }
    assert_eq!(B::Ops::plan_masked_attention(&double, &device), Plan::Reference(Declined::ElementType(F64)));
}

/// Both are within a rounding of each other.
#[test]
#[cfg(feature = "flex")]
fn operations_on_16_bits_agree_with_the_reference() {
    use burn::tensor::{DType, FloatDType};
    use burn_deepspeed::spec::NormSpec;
    use burn_deepspeed::weight::{FusedNorm, Orientation, Weight};
    use burn_deepspeed::{Activation, Reference};
    use burn_flex::Flex;
    type Fast = <Flex as InferenceBackend>::Ops;

    for (float, dtype, tolerance) in [(FloatDType::F16, DType::F16, 2e-3), (FloatDType::BF16, DType::BF16, 2e-2)] {
        let near = |fast: Tensor<Flex, 3>, reference: Tensor<Flex, 3>| {
            assert_eq!((fast.dtype(), reference.dtype()), (dtype, dtype));
            crate::common::assert_near(fast.cast(FloatDType::F32), reference.cast(FloatDType::F32), tolerance);
        };
        let of = |shape, seed| seeded::<Flex, 3>(shape, seed).cast(float);
        for tokens in [1, 3, 20] {
            let (input, other) = (of([2, tokens, 48], 1), of([2, tokens, 48], 2));
            for function in [Activation::Gelu, Activation::GeluTanh, Activation::Silu] {
                near(
                    Fast::activation(input.clone(), function),
                    <Reference as Operations<Flex>>::activation(input.clone(), function),
                );
                near(
                    Fast::gated_activation(input.clone(), other.clone(), function),
                    <Reference as Operations<Flex>>::gated_activation(input.clone(), other.clone(), function),
                );
            }
            near(
                Fast::context_gate(input.clone(), other.clone()),
                <Reference as Operations<Flex>>::context_gate(input.clone(), other.clone()),
            );
            for rms in [false, true] {
                let [gamma, beta] = [3, 4].map(|seed| of([1, 1, 48], seed).reshape([48]));
                let norm = FusedNorm::new(gamma, (!rms).then_some(beta), NormSpec { epsilon: 1e-5, rms });
                near(
                    Fast::residual_norm(input.clone(), other.clone(), &norm),
                    <Reference as Operations<Flex>>::residual_norm(input.clone(), other.clone(), &norm),
                );
            }
            for orientation in [Orientation::InputOutput, Orientation::OutputInput] {
                let [rows, columns] = orientation.shape(48, 33);
                let matrix = of([1, rows, columns], 5).reshape([rows, columns]) * 0.2;
                let weight = Weight::new(matrix, Some(of([1, 1, 33], 6).reshape([33])), orientation);
                for weight in [weight.clone(), weight.quantize(Default::default()).unwrap()] {
                    near(
                        Fast::linear(input.clone(), &weight),
                        <Reference as Operations<Flex>>::linear(input.clone(), &weight),
                    );
                    near(
                        Fast::vector_matmul(input.clone(), &weight),
                        <Reference as Operations<Flex>>::vector_matmul(input.clone(), &weight),
                    );
                }
            }
        }
    }
}

#[test]
#[cfg(all(feature = "autodiff", feature = "ndarray"))]
fn autodiff_runs_the_reference() {
    use burn_deepspeed::Differentiable;
    type A = burn_autodiff::Autodiff<burn_ndarray::NdArray>;
    assert!(<Differentiable as Operations<A>>::fast_operations().is_empty());
    let attention = crate::attention::llama().init_self_attention::<A>(0, &Default::default()).unwrap();
    let plan = attention.explain(1, true);
    assert_eq!(plan, Plan::Reference(Declined::NoKernel));
}
