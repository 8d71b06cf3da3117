//! The KV cache: capacity, where tokens are written, and which slots no query reads.

use burn::tensor::{Bool, Tensor, backend::Backend};
use burn_deepspeed::ops::Keys;
use burn_deepspeed::{
    AttentionError, AttentionInit, AttentionMask, ConfigError, DataType, DeepSpeedSelfAttention, FromTensor,
    InferenceBackend, KvCache, KvCacheType, Positions, WantedOutputs,
};

use crate::attention::{llama, randomised};
use crate::common::{assert_near, on_each_backend, seeded, values};

pub fn module<B: Backend>() -> DeepSpeedSelfAttention<B> {
    module_of(KvCacheType::default())
}

/// The layer that uses a cache of these types; its weights are the same for all of them.
pub fn module_of<B: Backend>(types: KvCacheType) -> DeepSpeedSelfAttention<B> {
    randomised(llama().with_kv_cache_dtype(types).init_self_attention(0, &Default::default()).unwrap())
}

pub fn cache<B: Backend>(batch: usize) -> KvCache<B> {
    cache_of(KvCacheType::default(), batch)
}

pub fn cache_of<B: Backend>(types: KvCacheType, batch: usize) -> KvCache<B> {
    llama().with_kv_cache_dtype(types).init_cache(batch, &Default::default()).unwrap()
}

/// Every kind of cache, and the difference allowed between two ways to compute one result: a feature halfway between two
/// integers may be rounded either way.
pub fn kinds<B: Backend>() -> Vec<(KvCacheType, f64)> {
    let int8 = Some(DataType::Int8);
    let mut kinds = vec![
        (KvCacheType::default(), 1e-5),
        (KvCacheType::INT8, 4e-3),
        (KvCacheType { key: int8, value: None }, 4e-3),
        (KvCacheType { key: None, value: int8 }, 4e-3),
        (DataType::Fp16.into(), 4e-3),
        (KvCacheType { key: int8, value: Some(DataType::Bf16) }, 1e-2),
    ];
    // A device on the CPU takes minutes to compile kernels for more, and their own tests have them all.
    if B::name(&Default::default()).contains("cubecl") {
        kinds.truncate(2);
    }
    kinds
}

pub fn feed<B: InferenceBackend>(
    module: &DeepSpeedSelfAttention<B>,
    cache: &mut KvCache<B>,
    input: Tensor<B, 3>,
) -> Tensor<B, 3> {
    let mut step = cache.step(input.dims()[1]).unwrap();
    let output = module.forward(input, AttentionMask::none(), step.layer(0)).unwrap();
    step.commit();
    output
}

fn a_full_cache_refuses_before_it_writes<B: InferenceBackend>() {
    let (module, mut cache) = (module::<B>(), cache::<B>(2));
    let input = seeded::<B, 3>([2, 33, 48], 1);
    feed(&module, &mut cache, input.clone().narrow(1, 0, 30));
    let error = cache.step(3).err().unwrap();
    assert_eq!(error, AttentionError::CacheFull { row: 0, used: 30, requested: 3, capacity: 32 });
    assert!(error.to_string().contains("`max_out_tokens` to at least 33"), "{error}");
    // the cache is as it was: the next step gives the same as with a cache that never overflowed
    let mut other = self::cache::<B>(2);
    feed(&module, &mut other, input.clone().narrow(1, 0, 30));
    let next = input.narrow(1, 30, 2);
    assert_near(feed(&module, &mut cache, next.clone()), feed(&module, &mut other, next), 0.0);
    assert_eq!(cache.lengths(), [32, 32]);
}

fn a_dropped_step_was_never_there<B: InferenceBackend>() {
    for (types, _) in kinds::<B>() {
        let (module, mut cache) = (module_of::<B>(types), cache_of::<B>(types, 1));
        feed(&module, &mut cache, seeded([1, 4, 48], 1));
        let mut step = cache.step(5).unwrap();
        let broken = seeded::<B, 3>([1, 5, 48], 2) * f32::NAN;
        let output = module.forward(broken, AttentionMask::none(), step.layer(0)).unwrap();
        assert!(values(output).into_iter().all(f64::is_nan));
        drop(step);
        assert_eq!(cache.lengths(), [4]);
        let mut other = cache_of::<B>(types, 1);
        feed(&module, &mut other, seeded([1, 4, 48], 1));
        let next = seeded::<B, 3>([1, 2, 48], 3);
        assert_near(feed(&module, &mut cache, next.clone()), feed(&module, &mut other, next), 1e-6);
    }
}

fn reset_and_truncate_forget<B: InferenceBackend>() {
    let module = module::<B>();
    let (a, b) = (seeded::<B, 3>([2, 6, 48], 1), seeded::<B, 3>([2, 3, 48], 2));
    let fresh = feed(&module, &mut cache(2), b.clone());
    let mut cache = cache::<B>(2);
    feed(&module, &mut cache, a.clone());
    cache.reset();
    assert!(cache.is_empty());
    assert_near(feed(&module, &mut cache, b.clone()), fresh.clone(), 1e-6);

    cache.reset();
    feed(&module, &mut cache, a.clone());
    let expected = feed(&module, &mut cache, b.clone());
    cache.truncate(6);
    assert_eq!(cache.lengths(), [6, 6]);
    assert_near(feed(&module, &mut cache, b.clone()), expected, 1e-6);
    cache.truncate(0);
    assert_near(feed(&module, &mut cache, b), fresh, 1e-6);
    cache.truncate_row(1, 2).unwrap();
    assert_eq!(cache.lengths(), [3, 2]);
    let error = cache.truncate_row(1, 3).unwrap_err();
    assert_eq!(error, AttentionError::TruncateBeyondEnd { row: 1, used: 2, length: 3 });
}

fn reordered_beams_are_the_sequences_themselves<B: InferenceBackend>() {
    for (types, slack) in kinds::<B>() {
        let module = module_of::<B>(types);
        let prompt = seeded::<B, 3>([3, 5, 48], 1);
        let next = seeded::<B, 3>([4, 2, 48], 2);
        let mut beams = cache_of::<B>(types, 3);
        feed(&module, &mut beams, prompt.clone());
        beams.reorder(&[2, 0, 0, 1]).unwrap();
        assert_eq!(beams.batch(), 4);
        let output = feed(&module, &mut beams, next.clone());
        for (row, source) in [2, 0, 0, 1].into_iter().enumerate() {
            let mut alone = cache_of::<B>(types, 1);
            feed(&module, &mut alone, prompt.clone().narrow(0, source, 1));
            let expected = feed(&module, &mut alone, next.clone().narrow(0, row, 1));
            assert_near(output.clone().narrow(0, row, 1), expected, slack);
        }
        let error = beams.reorder(&[0, 4]).unwrap_err();
        assert_eq!(error, AttentionError::NoSuchRow { row: 4, batch: 4 });
        assert_eq!(beams.lengths(), [7; 4]);
    }
}

/// Layers with other heads, head sizes and element types in one cache: each computes what it does with a cache of its own.
fn layers_of_different_sizes_share_a_cache<B: InferenceBackend>() {
    let device = Default::default();
    let wide = llama().with_num_kv(Some(1)).with_head_dim(Some(16)).with_rotary_dim(Some(16));
    let configs = [llama(), wide.clone(), wide.with_kv_cache_dtype(KvCacheType::INT8)];
    let modules = configs.each_ref().map(|config| randomised(config.init_self_attention::<B>(0, &device).unwrap()));
    let specs = modules.each_ref().map(|module| module.spec().clone());
    let mut cache = KvCache::<B>::for_layers(&specs, 2, &device).unwrap();
    let mut alone = specs.each_ref().map(|spec| KvCache::<B>::new(spec, 1, 2, &device).unwrap());
    let bytes: Vec<_> = alone.iter().map(KvCache::memory_bytes).collect();
    assert_eq!(bytes, [2 * 2 * 2 * 8 * 32 * 4, 2 * 2 * 16 * 32 * 4, 2 * 2 * 32 * (16 + 4)]);
    assert_eq!(cache.memory_bytes(), bytes.iter().sum::<usize>());
    assert_eq!(KvCache::<B>::bytes_for_layers(&specs, 2, &device).unwrap(), cache.memory_bytes());

    for (seed, tokens) in [(1, 6), (2, 1), (3, 3)] {
        let input = seeded::<B, 3>([2, tokens, 48], seed);
        let mut step = cache.step(tokens).unwrap();
        for (index, (module, alone)) in modules.iter().zip(&mut alone).enumerate() {
            let together = module.forward(input.clone(), AttentionMask::none(), step.layer(index)).unwrap();
            assert_near(together, feed(module, alone, input.clone()), 0.0);
        }
        let error = modules[0].forward(input, AttentionMask::none(), step.layer(1)).unwrap_err();
        assert!(matches!(error, AttentionError::CacheMismatch { .. }), "{error}");
        step.commit();
        cache.reorder(&[1, 0]).unwrap();
        alone.iter_mut().for_each(|alone| alone.reorder(&[1, 0]).unwrap());
    }

    // A row moves to another cache with the keys and values of every layer.
    let mut other = KvCache::<B>::for_layers(&specs, 1, &device).unwrap();
    other.replace_row(0, &cache, 1).unwrap();
    let input = seeded::<B, 3>([1, 2, 48], 4);
    let mut step = other.step(2).unwrap();
    for (index, (module, alone)) in modules.iter().zip(&mut alone).enumerate() {
        let moved = module.forward(input.clone(), AttentionMask::none(), step.layer(index)).unwrap();
        let expected = feed(module, alone, Tensor::cat(vec![input.clone(); 2], 0));
        assert_near(moved, expected.narrow(0, 1, 1), 1e-6);
    }
    drop(step);
    let swapped = [specs[1].clone(), specs[0].clone(), specs[2].clone()];
    let error = KvCache::<B>::for_layers(&swapped, 1, &device).unwrap().replace_row(0, &cache, 1).unwrap_err();
    assert!(error.to_string().contains("1 layers of 1 heads × 32 tokens × 16 features"), "{error}");
}

#[test]
fn layers_of_one_cache_hold_the_same_tokens() {
    type B = crate::common::AnyBackend;
    let spec = llama().resolve(0).unwrap();
    let mut longer = spec.clone();
    longer.max_out_tokens = 33;
    let error = KvCache::<B>::for_layers(&[spec.clone(), spec, longer], 1, &Default::default()).unwrap_err();
    assert_eq!(error, ConfigError::LayerCapacity { layer: 2, capacity: 33, first: 32 });
    assert!(KvCache::<B>::for_layers(&[], 1, &Default::default()).unwrap().is_empty());
}

/// Rows of different length: each is what it would be alone, and joins and leaves alone.
fn ragged_rows_are_the_rows_alone<B: InferenceBackend>() {
    for (types, slack) in kinds::<B>() {
        let module = module_of::<B>(types);
        let mut cache = cache_of::<B>(types, 3);
        let mut alone: Vec<KvCache<B>> = (0..3).map(|_| cache_of(types, 1)).collect();
        let mut seed = 10;
        let mut go = |cache: &mut KvCache<B>, alone: &mut Vec<KvCache<B>>, new: [usize; 3]| {
            seed += 1;
            let width = new.into_iter().max().unwrap();
            let input = seeded::<B, 3>([3, width, 48], seed);
            let mut step = cache.step_ragged(width, &new).unwrap();
            let output = module.forward(input.clone(), AttentionMask::none(), step.layer(0)).unwrap();
            step.commit();
            assert!(output.clone().is_finite().all().into_data().iter::<bool>().all(|finite| finite));
            for (row, count) in new.into_iter().enumerate().filter(|(_, count)| *count > 0) {
                let own = input.clone().slice([row..row + 1, 0..count, 0..48]);
                let expected = feed(&module, &mut alone[row], own);
                assert_near(output.clone().slice([row..row + 1, 0..count, 0..48]), expected, slack);
            }
        };
        go(&mut cache, &mut alone, [5, 2, 0]);
        go(&mut cache, &mut alone, [1, 1, 7]);
        go(&mut cache, &mut alone, [1, 1, 1]);
        assert_eq!(cache.lengths(), [7, 4, 8]);
        // a sequence ends, another takes its place
        cache.reset_row(0).unwrap();
        alone[0].reset();
        go(&mut cache, &mut alone, [3, 1, 1]);
        // one that was prefilled by itself joins
        let mut other = cache_of::<B>(types, 2);
        feed(&module, &mut other, seeded([2, 6, 48], 99));
        cache.replace_row(1, &other, 1).unwrap();
        alone[1].replace_row(0, &other, 1).unwrap();
        assert_eq!(cache.lengths(), [3, 6, 9]);
        go(&mut cache, &mut alone, [2, 4, 1]);
    }
}

fn a_left_padded_row_is_the_row_alone<B: InferenceBackend>() {
    for (types, slack) in kinds::<B>() {
        let module = module_of::<B>(types);
        let pads = [0usize, 3, 6];
        let input = seeded::<B, 3>([3, 9, 48], 1);
        let mask = |keys: usize| {
            let keep = pads.iter().flat_map(|&pad| (0..keys).map(move |slot| slot >= pad)).collect::<Vec<_>>();
            let data = burn::tensor::TensorData::new(keep, [3, keys]);
            Tensor::<B, 2, Bool>::from_data(data, &Default::default())
        };
        let mut cache = cache_of::<B>(types, 3);
        let mut alone: Vec<KvCache<B>> = (0..3).map(|_| cache_of(types, 1)).collect();
        for (start, tokens) in [(0, 7), (7, 1), (8, 1)] {
            let keys = start + tokens;
            let positions = Positions::from_padding_mask(mask(keys).int(), tokens);
            let mut step = cache.step(tokens).unwrap().with_positions(positions).unwrap();
            let new = input.clone().narrow(1, start, tokens);
            let output = module.forward(new, AttentionMask::keep(mask(keys)), step.layer(0)).unwrap();
            step.commit();
            for (row, &pad) in pads.iter().enumerate() {
                let first = pad.saturating_sub(start);
                if first < tokens {
                    let own = |tensor: &Tensor<B, 3>, from: usize| {
                        tensor.clone().slice([row..row + 1, from..from + tokens - first, 0..48])
                    };
                    let expected = feed(&module, &mut alone[row], own(&input, start + first));
                    assert_near(own(&output, first), expected, slack);
                }
            }
        }
    }
}

/// What the cache holds is off by no more than half a scale, which is the largest magnitude of a head over 127.
fn cached_tokens_are_off_by_no_more_than_half_a_scale<B: InferenceBackend>() {
    let keys = |types: KvCacheType| {
        let module = module_of::<B>(types);
        let mut cache = cache_of::<B>(types, 2);
        feed(&module, &mut cache, seeded([2, 17, 48], 1));
        let mut step = cache.step(1).unwrap();
        let wanted = WantedOutputs::NONE.with_keys(true);
        let input = seeded([2, 1, 48], 2);
        let keys = Keys::Cached(step.layer(0));
        let output = module.forward_detailed(input, AttentionMask::none(), keys, wanted).unwrap();
        [output.key.unwrap(), output.value.unwrap()].map(|side| (side.dims(), values(side)))
    };
    let exact = keys(KvCacheType::default());
    for (types, _) in kinds::<B>() {
        let sides = keys(types).into_iter().zip(&exact).zip([types.key, types.value]);
        for (((shape, found), (exact_shape, wanted)), dtype) in sides {
            assert_eq!(shape, *exact_shape);
            for (found, wanted) in found.chunks(8).zip(wanted.chunks(8)) {
                let largest = wanted.iter().fold(0.0f64, |largest, feature| largest.max(feature.abs()));
                let bound = if dtype.is_some() { 0.5001 * largest / 127.0 } else { 1e-6 };
                assert!(found.iter().zip(wanted).all(|(found, wanted)| (found - wanted).abs() <= bound));
            }
        }
    }
}

on_each_backend!(
    cached_tokens_are_off_by_no_more_than_half_a_scale,
    a_full_cache_refuses_before_it_writes,
    layers_of_different_sizes_share_a_cache,
    a_dropped_step_was_never_there,
    reset_and_truncate_forget,
    reordered_beams_are_the_sequences_themselves,
    ragged_rows_are_the_rows_alone,
    a_left_padded_row_is_the_row_alone,
);

#[cfg(feature = "ndarray")]
mod in_place {
    use super::*;
    use burn::tensor::TensorPrimitive;
    use burn_deepspeed::cache::Stored;
    use burn_ndarray::{NdArray, NdArrayTensor};

    const VALUES_IN_INT8: KvCacheType = KvCacheType { key: None, value: Some(DataType::Int8) };

    fn address<const D: usize>(tensor: &Tensor<NdArray, D>) -> *const f32 {
        match tensor.clone().into_primitive() {
            TensorPrimitive::Float(NdArrayTensor::F32(storage)) => storage.view().as_ptr(),
            _ => panic!("not f32"),
        }
    }

    #[test]
    fn steps_write_into_the_same_memory() {
        let (module, mut cache) = (module_of::<NdArray>(VALUES_IN_INT8), cache_of::<NdArray>(VALUES_IN_INT8, 2));
        let mut addresses = Vec::new();
        for (seed, tokens) in [(1, 7), (2, 1), (3, 1), (4, 5), (5, 1)] {
            let mut step = cache.step(tokens).unwrap();
            module.forward(seeded([2, tokens, 48], seed), AttentionMask::none(), step.layer(0)).unwrap();
            let layer = step.layer(0);
            let (key, value) = layer.storage();
            let (Stored::Dense(key), Stored::Int8 { elements, scales }) = (key, value) else { panic!("other types") };
            let NdArrayTensor::I8(elements) = elements.clone().into_primitive() else { panic!("not int8") };
            addresses.push((address(key), elements.view().as_ptr(), address(scales)));
            step.commit();
        }
        assert!(addresses.windows(2).all(|pair| pair[0] == pair[1]), "{addresses:?}");
    }
}

#[test]
fn memory_is_known_before_it_is_taken() {
    let config = llama().with_num_hidden_layers(Some(5));
    type B = crate::common::AnyBackend;
    let bytes = config.cache_memory_bytes::<B>(3, &Default::default()).unwrap();
    assert_eq!(bytes, 2 * 5 * 3 * 2 * 8 * 32 * 4);
    assert_eq!(config.init_cache::<B>(3, &Default::default()).unwrap().memory_bytes(), bytes);
    // with int8 matrices a CPU keeps keys and values in f32
    let int8 = config.clone().with_dtype(DataType::Int8);
    assert_eq!(int8.cache_memory_bytes::<B>(3, &Default::default()).unwrap(), bytes);
    assert_eq!(int8.init_cache::<B>(3, &Default::default()).unwrap().memory_bytes(), bytes);
    for (types, tokens) in [
        (KvCacheType::INT8, 2 * 12),
        (kinds::<B>()[2].0, 12 + 32),
        (DataType::Fp16.into(), 2 * 16),
        (kinds::<B>()[5].0, 12 + 16),
    ] {
        let config = config.clone().with_kv_cache_dtype(types);
        let bytes = config.cache_memory_bytes::<B>(3, &Default::default()).unwrap();
        assert_eq!(bytes, 5 * 3 * 2 * 32 * tokens);
        assert_eq!(config.init_cache::<B>(3, &Default::default()).unwrap().memory_bytes(), bytes);
    }
    // two ranks hold one key/value head each
    let half = config.with_mp_size(2).with_local_rank(Some(0)).cache_memory_bytes::<B>(3, &Default::default()).unwrap();
    assert_eq!(half, bytes / 2);
}

#[test]
fn a_step_that_does_not_fit_the_batch_is_an_error() {
    let mut cache = cache::<crate::common::AnyBackend>(2);
    let error = cache.step_ragged(3, &[1, 2, 3]).err().unwrap();
    assert_eq!(error, AttentionError::RowCount { what: "the step", given: 3, batch: 2 });
    let error = cache.step_ragged(2, &[1, 3]).err().unwrap();
    assert_eq!(error, AttentionError::StepTooNarrow { row: 1, requested: 3, width: 2 });
    let error = cache.step(2).unwrap().with_positions(Positions::sequential(&[0], 2)).err().unwrap();
    assert!(error.to_string().contains("are 1 × 2 and the step has 2 rows of 2"), "{error}");
    let negative = Tensor::<crate::common::AnyBackend, 2, burn::tensor::Int>::from_data([[0, -1]], &Default::default());
    assert!(matches!(Positions::from_tensor(negative), Err(AttentionError::Positions { .. })));
    let mut other = llama().with_max_out_tokens(16).init_cache(1, &Default::default()).unwrap();
    assert!(matches!(other.replace_row(0, &cache, 0), Err(AttentionError::CacheShape { .. })));
    assert!(matches!(other.reset_row(1), Err(AttentionError::NoSuchRow { row: 1, batch: 1 })));
}
