//! The fast paths against the reference, and why they decline.

#[cfg(feature = "autodiff")]
use burn::tensor::{Bool, Tensor, TensorData};
use burn_deepspeed::ops::{ContextProblem, Declined, Plan};
use burn_deepspeed::{AttentionMask, InferenceBackend};

use crate::attention::llama;
use crate::common::{on_each_backend, seeded};

/// On `Autodiff` every operation is the reference, so it judges the kernels of the backend inside.
#[cfg(feature = "autodiff")]
fn decoding_steps_agree_with_the_reference<B: InferenceBackend>() {
    use crate::attention::randomised;
    use crate::common::assert_near;
    use burn_autodiff::Autodiff;
    use burn_deepspeed::{DataType, DeepSpeedInferenceConfig};

    fn run<B: InferenceBackend>(config: &DeepSpeedInferenceConfig, padded: bool) -> Tensor<B, 3> {
        let device = Default::default();
        let hidden = config.hidden_size;
        let bloom = randomised(
            config.clone().with_bigscience_bloom(true).with_rotary_dim(None).init_bloom::<B>(0, &device).unwrap(),
        );
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

    for (heads, kv_heads, head_dim) in [(6, 2, 8), (3, 3, 40), (4, 1, 80), (2, 1, 160)] {
        for (window, softcap) in [(None, None), (Some(65), None), (Some(7), Some(0.5))] {
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
            for padded in [false, true] {
                let expected = run::<Autodiff<B>>(&config, padded).inner();
                assert_near(run::<B>(&config, padded), expected, 1e-5);
            }
        }
    }
}

#[cfg(feature = "autodiff")]
on_each_backend!(decoding_steps_agree_with_the_reference, kernels_say_why_they_decline);
#[cfg(not(feature = "autodiff"))]
on_each_backend!(kernels_say_why_they_decline);

fn kernels_say_why_they_decline<B: InferenceBackend>() {
    use burn::tensor::DType;
    assert_eq!(B::fast_operations(), ["softmax_context"]);
    let good = ContextProblem { dtype: DType::F32, tokens: 1, cached: true, hides_pairs: false, has_bias: false };
    assert_eq!(B::plan_softmax_context(&good), Plan::Kernel("cpu::decode"));
    for (problem, reason) in [
        (ContextProblem { dtype: DType::F16, ..good }, Declined::ElementType(DType::F16)),
        (ContextProblem { cached: false, ..good }, Declined::Uncached),
        (ContextProblem { tokens: 5, ..good }, Declined::Tokens { tokens: 5, limit: 4 }),
        (ContextProblem { hides_pairs: true, ..good }, Declined::HiddenPairs),
        (ContextProblem { has_bias: true, ..good }, Declined::Bias),
    ] {
        assert_eq!(B::plan_softmax_context(&problem), Plan::Reference(reason));
    }
    let attention = llama().init_self_attention::<B>(0, &Default::default()).unwrap();
    let biased = AttentionMask::none().with_bias(seeded([1, 1, 1, 1], 1));
    assert_eq!(attention.explain(1, true, &biased).to_string(), "reference: the mask adds a bias to the scores");
}

#[test]
#[cfg(all(feature = "autodiff", feature = "ndarray"))]
fn autodiff_runs_the_reference() {
    type A = burn_autodiff::Autodiff<burn_ndarray::NdArray>;
    assert!(A::fast_operations().is_empty());
    let attention = llama().init_self_attention::<A>(0, &Default::default()).unwrap();
    let plan = attention.explain(1, true, &AttentionMask::none());
    assert_eq!(plan, Plan::Reference(Declined::NoKernel));
}
