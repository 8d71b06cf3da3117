//! A cache is used only by the layer that it was built for, and arguments that do not fit write nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::{Tensor, backend::Backend};
use burn_deepspeed::ops::SoftmaxContext;
use burn_deepspeed::{
    AttentionError, AttentionInit, AttentionMask, InferenceBackend, Keys, KvCache, KvCacheType, Operations,
    WantedOutputs,
};

use crate::attention::{llama, randomised};
use crate::cache::{cache, feed, module};
use crate::common::{on_each_cpu_backend, seeded, values};

/// All keys and values of the first layer, those of unused slots too.
fn stored<B: Backend>(cache: &mut KvCache<B>) -> [Vec<f64>; 2] {
    let capacity = cache.capacity();
    let mut step = cache.step(0).unwrap();
    let layer = step.layer(0);
    let (key, value) = layer.storage();
    [key, value].map(|side| values(side.dense(capacity)))
}

fn a_cache_of_another_layer_is_an_error_that_writes_nothing<B: InferenceBackend>() {
    let (floats, int8) = (KvCacheType::default(), KvCacheType::INT8);
    for (num_kv, head_dim, types, found) in [
        (1, 8, floats, "the layer has key/value heads: 2 and the cache was built for 1;"),
        (6, 8, floats, "the layer has key/value heads: 2 and the cache was built for 6;"),
        (2, 16, floats, "the layer has a head size of 8 and the cache was built for 16;"),
        (1, 16, floats, "the layer has key/value heads: 2 and the cache was built for 1;"), // as many elements per token
        (2, 8, int8, "the layer has keys of type F32 and the cache was built for I8;"),
        (2, 8, KvCacheType { key: int8.key, value: None }, "has keys of type F32 and the cache was built for I8;"),
        (2, 8, KvCacheType { key: None, value: int8.value }, "has values of type F32 and the cache was built for I8;"),
    ] {
        let config = llama().with_num_kv(Some(num_kv)).with_head_dim(Some(head_dim)).with_kv_cache_dtype(types);
        let own = randomised(config.init_self_attention::<B>(0, &Default::default()).unwrap());
        let mut cache = config.init_cache::<B>(2, &Default::default()).unwrap();
        feed(&own, &mut cache, seeded([2, 3, 48], 1));
        let before = stored(&mut cache);
        let module = module::<B>();
        for tokens in [1, 9, 0] {
            let mut step = cache.step(tokens).unwrap();
            let (input, mask) = (|| seeded::<B, 3>([2, tokens, 48], 2), AttentionMask::none);
            let mut errors = vec![module.forward(input(), mask(), step.layer(0)).unwrap_err()];
            let keys = Keys::Cached(step.layer(0));
            errors.push(module.forward_detailed(input(), mask(), keys, WantedOutputs::ALL).unwrap_err());
            let keys = Keys::Cached(step.layer(0));
            errors.push(module.forward_partial(input(), mask(), keys, WantedOutputs::NONE).unwrap_err());
            for error in errors {
                assert!(matches!(error, AttentionError::CacheMismatch { .. }), "{error}");
                let text = error.to_string();
                assert!(text.contains(found), "{text}");
            }
        }
        assert_eq!(stored(&mut cache), before);
        // the layer that the cache was built for goes on, and so does this one once it takes these element types
        feed(&own, &mut cache, seeded([2, 1, 48], 3));
        let module = module.with_kv_cache_dtype(types);
        let fits = (num_kv, head_dim) == (2, 8);
        let output = module.forward(seeded([2, 1, 48], 4), AttentionMask::none(), cache.step(1).unwrap().layer(0));
        assert_eq!(output.is_ok(), fits);
    }
}

fn an_input_that_does_not_fit_the_step_panics_before_it_writes<B: InferenceBackend>() {
    let module = module::<B>();
    let mut cache = cache::<B>(3);
    feed(&module, &mut cache, seeded([3, 4, 48], 1));
    let before = stored(&mut cache);
    for (shape, tokens, expected) in [
        ([2, 1, 48], 1, "[2, 1], expected [3, 1]"),
        ([4, 9, 48], 9, "[4, 9], expected [3, 9]"),
        ([3, 2, 48], 1, "[3, 2], expected [3, 1]"),
        ([3, 1, 48], 9, "[3, 1], expected [3, 9]"),
        ([3, 0, 48], 1, "[3, 0], expected [3, 1]"),
        ([3, 1, 40], 1, "[3, 1, 40], expected [3, 1, 48]"),
    ] {
        let mut step = cache.step(tokens).unwrap();
        let layer = step.layer(0);
        let run = || module.forward(seeded(shape, 2), AttentionMask::none(), layer);
        let panic = catch_unwind(AssertUnwindSafe(run)).err().unwrap();
        let text = panic.downcast_ref::<String>().unwrap();
        assert!(text.contains(expected), "{text}");
    }
    assert_eq!(stored(&mut cache), before);
    feed(&module, &mut cache, seeded([3, 1, 48], 3));
}

/// Operations take any cache and return no `Result`: one with other heads is a wrong shape to them.
fn an_operation_panics_at_a_cache_of_other_heads_before_it_writes<B: InferenceBackend>() {
    let spec = llama().resolve(0).unwrap();
    for (num_kv, head_dim) in [(1, 8), (6, 8), (2, 16), (1, 16)] {
        let config = llama().with_num_kv(Some(num_kv)).with_head_dim(Some(head_dim));
        let mut cache = config.init_cache::<B>(2, &Default::default()).unwrap();
        for tokens in [1, 9] {
            let mut step = cache.step(tokens).unwrap();
            let qkv = seeded::<B, 3>([2, tokens, spec.qkv_width()], 1);
            let (keys, mask) = (Keys::Cached(step.layer(0)), AttentionMask::none());
            let spec = &spec;
            let (norm, sums, sinks) = (None, None, None);
            let context = SoftmaxContext { qkv, norm, sums, sinks, keys, given: None, mask, spec, want_keys: false };
            let run = || B::Ops::softmax_context(context);
            assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        }
        assert!(stored(&mut cache).iter().flatten().all(|element| *element == 0.0));
    }
}

fn tokens_of_a_wrong_shape_are_not_appended<B: InferenceBackend>() {
    let mut cache = cache::<B>(2);
    for (key, value) in [([2, 2, 1, 9], [2, 2, 1, 8]), ([2, 2, 1, 8], [2, 3, 1, 8]), ([2, 2, 2, 8], [2, 2, 2, 8])] {
        let mut step = cache.step(1).unwrap();
        let mut layer = step.layer(0);
        let tensor = |shape| Tensor::<B, 4>::ones(shape, &Default::default());
        assert!(catch_unwind(AssertUnwindSafe(|| layer.append(tensor(key), tensor(value)))).is_err());
    }
    assert!(stored(&mut cache).iter().flatten().all(|element| *element == 0.0));
}

on_each_cpu_backend!(
    a_cache_of_another_layer_is_an_error_that_writes_nothing,
    an_input_that_does_not_fit_the_step_panics_before_it_writes,
    an_operation_panics_at_a_cache_of_other_heads_before_it_writes,
    tokens_of_a_wrong_shape_are_not_appended,
);

#[test]
#[should_panic(expected = "layer 1 of a cache with 1 layers")]
fn a_layer_that_the_cache_does_not_have_is_a_panic() {
    let mut cache = cache::<crate::common::AnyBackend>(1);
    let mut step = cache.step(1).unwrap();
    step.layer(1);
}
