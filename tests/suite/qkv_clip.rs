//! The limit of queries, keys and values, and the factor of ALiBi slopes: against their parts.

use burn::tensor::{Tensor, TensorData};
use burn_deepspeed::ops::{Keys, SoftmaxContext};
use burn_deepspeed::{
    AttentionInit, AttentionMask, ConfigError, DataType, DeepSpeedInferenceConfig, DeepSpeedSelfAttention,
    InferenceBackend, NormType, Operations, Positions, QkNorm, QkNormKind, QkNormWeights, RotaryLayout,
};

use crate::attention::randomised;
use crate::common::{assert_near, on_each_backend, seeded, values};

const CLIP: f64 = 0.3;

/// 6 query heads and 2 key heads of 10 features.
fn config() -> DeepSpeedInferenceConfig {
    DeepSpeedInferenceConfig::new(24, 6)
        .with_dtype(DataType::Fp32)
        .with_norm_type(NormType::RMSNorm)
        .with_head_dim(Some(10))
        .with_num_kv(Some(2))
        .with_num_hidden_layers(Some(2))
        .with_max_out_tokens(9)
}

fn module<B: InferenceBackend>(config: &DeepSpeedInferenceConfig, layer: usize) -> DeepSpeedSelfAttention<B> {
    randomised(config.init_self_attention(layer, &Default::default()).unwrap())
}

/// The limit comes before norm and rotation: with a norm over all heads, whose sum it changes, in one go and in steps.
fn a_module_with_a_limit_agrees_with_its_parts<B: InferenceBackend>() {
    let norm = QkNorm::new(QkNormKind::RmsOfAllHeads, QkNormWeights::PerHead, 1e-5);
    let config = config().with_rotary(RotaryLayout::Half, 4).with_qk_norm(Some(norm)).with_qkv_clip(Some(CLIP));
    let module = module::<B>(&config, 0);
    let input = seeded::<B, 3>([2, 7, 24], 3);
    let positions = Positions::sequential(&[0, 0], 7);
    let projected = B::Ops::qkv_gemm(input.clone(), module.norm(), module.qkv(), false).qkv;
    let [batch, tokens, width] = projected.dims();
    let projected = values(projected);
    assert!(projected.iter().any(|x| x.abs() > 2.0 * CLIP) && projected.iter().any(|x| x.abs() < CLIP / 2.0));
    let limited: Vec<f32> = projected.into_iter().map(|x| x.clamp(-CLIP, CLIP) as f32).collect();
    let qkv = Tensor::from_data(TensorData::new(limited, [batch, tokens, width]), &Default::default());
    let context = B::Ops::softmax_context(SoftmaxContext {
        qkv,
        norm: module.query_key_norm(),
        sums: None,
        sinks: None,
        keys: Keys::Fresh(&positions),
        given: None,
        mask: AttentionMask::none(),
        spec: module.spec(),
        want_keys: false,
    });
    let expected = B::Ops::linear(context.context, module.output());
    assert_near(module.forward_uncached(input.clone(), AttentionMask::none(), None).unwrap(), expected.clone(), 1e-5);

    let mut cache = config.init_cache::<B>(2, &Default::default()).unwrap();
    let mut start = 0;
    for tokens in [4, 1, 2] {
        let mut step = cache.step(tokens).unwrap();
        let input = input.clone().narrow(1, start, tokens);
        let output = module.forward(input, AttentionMask::none(), step.layer(0)).unwrap();
        step.commit();
        assert_near(output, expected.clone().narrow(1, start, tokens), 1e-5);
        start += tokens;
    }
}

/// Layers whose slopes differ, in one step, against a bias.
fn slopes_have_the_factor_of_their_layer<B: InferenceBackend>() {
    let (device, input) = (Default::default(), seeded::<B, 3>([1, 5, 24], 3));
    let mut cache = config().init_cache::<B>(1, &device).unwrap();
    let mut step = cache.step(5).unwrap();
    for (layer, factor) in [(0, 1.0), (1, 0.25)] {
        let config = config().with_bigscience_bloom(true).with_alibi_factor(factor);
        let module = module::<B>(&config, layer);
        let output = module.forward(input.clone(), AttentionMask::none(), step.layer(layer)).unwrap();
        let slopes = burn_deepspeed::position::alibi::slopes(6);
        let bias = slopes.iter().flat_map(|slope| {
            (0..25).map(move |pair| f64::from(*slope) * factor * ((pair % 5) as f64 - (pair / 5) as f64))
        });
        let bias: Vec<f32> = bias.map(|bias| bias as f32).collect();
        let bias = Tensor::<B, 4>::from_data(TensorData::new(bias, [1, 6, 5, 5]), &device);
        let plain = config.with_bigscience_bloom(false).with_alibi_factor(1.0);
        let plain = self::module::<B>(&plain, layer);
        let expected = plain.forward_uncached(input.clone(), AttentionMask::none().with_bias(bias), None).unwrap();
        assert_near(output, expected.clone(), 1e-5);
        let fresh = module.forward_uncached(input.clone(), AttentionMask::none(), None).unwrap();
        assert_near(fresh, expected, 1e-5);
    }
    step.commit();
}

on_each_backend!(a_module_with_a_limit_agrees_with_its_parts, slopes_have_the_factor_of_their_layer);

#[test]
fn limits_and_factors_are_above_zero() {
    for value in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        for (key, config) in [
            ("qkv_clip", config().with_qkv_clip(Some(value))),
            ("alibi_factor", config().with_bigscience_bloom(true).with_alibi_factor(value)),
        ] {
            let error = config.resolve(0).unwrap_err();
            assert!(matches!(error, ConfigError::OutOfRange { key: found, .. } if found == key), "{error}");
        }
    }
    let saved = config().with_qkv_clip(Some(CLIP)).with_alibi_factor(0.5);
    assert_eq!(DeepSpeedInferenceConfig::from_json_str(&saved.to_string()), Ok(saved));
    let none = DeepSpeedInferenceConfig::from_json_str(r#"{ "hidden_size": 24, "heads": 6, "qkv_clip": -1 }"#).unwrap();
    assert_eq!((none.qkv_clip, none.alibi_factor), (None, 1.0));
}

#[test]
fn diffusers_attention_refuses_a_limit() {
    let config = config().with_qkv_clip(Some(CLIP));
    let error = config.init_diffusers::<crate::common::AnyBackend>(0, &Default::default()).unwrap_err();
    assert!(matches!(error, ConfigError::WrongModule { remedy: "unset `qkv_clip`", .. }), "{error}");
}
