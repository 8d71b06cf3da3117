//! No tokens give no tokens: every module, with a cache and without, with padding masks and without.

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use burn_deepspeed::{
    AttentionInit, AttentionMask, DeepSpeedInferenceConfig, DeepSpeedSelfAttention, InferenceBackend, Keys, Positions,
    QkNorm, QkNormKind, QkNormWeights, QueryFactor, WantedOutputs,
};

use crate::attention::{llama, randomised};
use crate::cache::feed;
use crate::common::{assert_near, on_each_backend, seeded, values};

/// The padding mask of a tokenizer for rows of `keys` tokens.
fn padding<B: Backend>(batch: usize, keys: usize) -> AttentionMask<B> {
    if batch * keys == 0 {
        return AttentionMask::from_padding(Tensor::<B, 2, Int>::empty([batch, keys], &Default::default()));
    }
    let real: Vec<i64> = (0..batch * keys).map(|at| i64::from(at % 3 != 0)).collect();
    AttentionMask::from_padding(Tensor::<B, 2, Int>::from_data(
        TensorData::new(real, [batch, keys]),
        &Default::default(),
    ))
}

fn nothing<B: Backend>(batch: usize) -> Tensor<B, 3> {
    seeded([batch, 0, 48], 1)
}

/// Rotary positions, ALiBi, an encoder without a norm, separate projections, and a norm of queries and keys with a factor.
fn configs() -> [DeepSpeedInferenceConfig; 6] {
    [
        llama(),
        llama().with_rotary_dim(None).with_bigscience_bloom(true),
        llama().with_rotary_dim(None).with_triangular_masking(false).with_pre_layer_norm(false),
        llama().with_set_empty_params(true),
        llama()
            .with_qk_norm(Some(QkNorm::new(QkNormKind::RmsOfAllHeads, QkNormWeights::PerHead, 1e-5)))
            .with_query_factor(Some(QueryFactor::llama4(0.5, 2))),
        llama().with_sinks(true).with_context_gate(true),
    ]
}

fn modules<B: Backend>() -> [DeepSpeedSelfAttention<B>; 6] {
    configs().map(|config| randomised(config.init_self_attention(0, &Default::default()).unwrap()))
}

fn no_tokens_without_a_cache<B: InferenceBackend>() {
    for module in modules::<B>() {
        for batch in [0, 1, 3] {
            let given = Positions::sequential(&vec![5; batch], 0);
            for positions in [None, Some(&given)] {
                let plain = module.forward_uncached(nothing(batch), AttentionMask::none(), positions).unwrap();
                let padded = module.forward_uncached(nothing(batch), padding(batch, 0), positions).unwrap();
                assert_eq!((plain.dims(), padded.dims()), ([batch, 0, 48], [batch, 0, 48]));
            }
        }
        let positions = Positions::sequential(&[0, 0], 0);
        for wanted in [WantedOutputs::NONE, WantedOutputs::ALL] {
            let keys = || Keys::Fresh(&positions);
            let all = module.forward_detailed(nothing(2), padding(2, 0), keys(), wanted).unwrap();
            assert_eq!(all.output.dims(), [2, 0, 48]);
            assert_eq!(all.key.map(|key| key.dims()), wanted.keys.then_some([2, 2, 0, 8]));
            assert_eq!(all.value.map(|value| value.dims()), wanted.keys.then_some([2, 2, 0, 8]));
            assert_eq!(all.context.map(|context| context.dims()), wanted.context.then_some([2, 0, 48]));
            let normed = wanted.inp_norm && module.norm().is_some();
            assert_eq!(all.inp_norm.map(|norm| norm.dims()), normed.then_some([2, 0, 48]));
            let part = module.forward_partial(nothing(2), AttentionMask::none(), keys(), wanted).unwrap();
            assert_eq!(part.output.dims(), [2, 0, 48]);
        }
    }
}

fn no_tokens_with_a_cache<B: InferenceBackend>() {
    for (config, module) in configs().into_iter().zip(modules::<B>()) {
        let fresh = || config.init_cache::<B>(2, &Default::default()).unwrap();
        let (mut cache, mut other) = (fresh(), fresh());
        for (seed, tokens) in [(1, 0), (2, 5), (3, 0), (4, 1), (5, 0)] {
            let keys = cache.len() + tokens;
            if tokens == 0 {
                for mask in [AttentionMask::none(), padding(2, keys)] {
                    let positions = Positions::sequential(&[7, 7], 0);
                    let mut step = cache.step(0).unwrap().with_positions(positions).unwrap();
                    let cached = Keys::Cached(step.layer(0));
                    let all = module.forward_detailed(nothing(2), mask, cached, WantedOutputs::ALL).unwrap();
                    step.commit();
                    assert_eq!(all.output.dims(), [2, 0, 48]);
                    assert_eq!(all.key.unwrap().dims(), [2, 2, keys, 8]);
                    assert_eq!(all.value.unwrap().dims(), [2, 2, keys, 8]);
                }
                let mut step = cache.step_ragged(0, &[0, 0]).unwrap();
                let output = module.forward(nothing(2), AttentionMask::none(), step.layer(0)).unwrap();
                assert_eq!(output.dims(), [2, 0, 48]);
            } else {
                let input = seeded::<B, 3>([2, tokens, 48], seed);
                let output = feed(&module, &mut cache, input.clone());
                assert_near(output, feed(&module, &mut other, input), 0.0);
            }
        }
        assert_eq!(cache.lengths(), [6, 6]);
        module.warmup(2, &[0]).unwrap();
        module.warmup(0, &[0, 3]).unwrap();
        module.warmup(1, &[]).unwrap();
    }
}

fn no_tokens_in_a_diffusion_model<B: InferenceBackend>() {
    let (config, device) = (llama().with_num_kv(None).with_rotary_dim(None), Default::default());
    let own = randomised(config.init_diffusers::<B>(0, &device).unwrap());
    let separate = randomised(config.clone().with_set_empty_params(true).init_diffusers::<B>(0, &device).unwrap());
    let cross = randomised(config.init_diffusers_cross::<B>(20, 0, &device).unwrap());
    for batch in [0, 2] {
        for mask in [AttentionMask::none, || padding(2, 0)] {
            if batch == 0 && mask().hidden_keys().is_some() {
                continue;
            }
            for module in [&own, &separate] {
                assert_eq!(module.forward(nothing(batch), None, mask()).unwrap().dims(), [batch, 0, 48]);
                assert_eq!(module.forward_partial(nothing(batch), None, mask()).dims(), [batch, 0, 48]);
            }
        }
    }
    let context = || seeded::<B, 3>([2, 7, 20], 2);
    for mask in [AttentionMask::none(), padding(2, 7)] {
        assert_eq!(cross.forward(nothing(2), Some(context()), mask.clone()).unwrap().dims(), [2, 0, 48]);
        let keys = cross.context_keys(context());
        assert_eq!(cross.forward_with_keys(nothing(2), &keys, mask).unwrap().dims(), [2, 0, 48]);
    }
    // queries without a context see nothing: the bias of the output projection is left
    let empty = || seeded::<B, 3>([2, 0, 20], 3);
    let keys = cross.context_keys(empty());
    assert_eq!(keys.tensors().0.dims(), [2, 6, 0, 8]);
    for mask in [AttentionMask::none(), padding(2, 0)] {
        let input = seeded::<B, 3>([2, 3, 48], 4);
        let output = cross.forward(input.clone(), Some(empty()), mask.clone()).unwrap();
        let bias = values(cross.output_bias().unwrap());
        assert_eq!(values(output.clone()), bias.repeat(6));
        assert_near(cross.forward_with_keys(input, &keys, mask).unwrap(), output, 0.0);
    }
}

on_each_backend!(no_tokens_without_a_cache, no_tokens_with_a_cache, no_tokens_in_a_diffusion_model);
