//! The KV cache: what fits, what is written where, and what nobody sees.

use burn::tensor::{Bool, Tensor, backend::Backend};
use burn_deepspeed::{AttentionError, AttentionMask, DeepSpeedSelfAttention, InferenceBackend, KvCache, Positions};

use crate::attention::{llama, randomised};
use crate::common::{assert_near, on_each_backend, seeded};

pub fn module<B: Backend>() -> DeepSpeedSelfAttention<B> {
    randomised(llama().init_self_attention(0, &Default::default()).unwrap())
}

pub fn cache<B: Backend>(batch: usize) -> KvCache<B> {
    llama().init_cache(batch, &Default::default()).unwrap()
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
    // the cache is as it was: going on gives what a cache that never overflowed gives
    let mut other = self::cache::<B>(2);
    feed(&module, &mut other, input.clone().narrow(1, 0, 30));
    let next = input.narrow(1, 30, 2);
    assert_near(feed(&module, &mut cache, next.clone()), feed(&module, &mut other, next), 0.0);
    assert_eq!(cache.lengths(), [32, 32]);
}

fn a_dropped_step_was_never_there<B: InferenceBackend>() {
    let (module, mut cache) = (module::<B>(), cache::<B>(1));
    feed(&module, &mut cache, seeded([1, 4, 48], 1));
    let mut step = cache.step(5).unwrap();
    module.forward(seeded::<B, 3>([1, 5, 48], 2) * f32::NAN, AttentionMask::none(), step.layer(0)).unwrap();
    drop(step);
    assert_eq!(cache.lengths(), [4]);
    let mut other = self::cache::<B>(1);
    feed(&module, &mut other, seeded([1, 4, 48], 1));
    let next = seeded::<B, 3>([1, 2, 48], 3);
    assert_near(feed(&module, &mut cache, next.clone()), feed(&module, &mut other, next), 1e-6);
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
    let module = module::<B>();
    let prompt = seeded::<B, 3>([3, 5, 48], 1);
    let next = seeded::<B, 3>([4, 2, 48], 2);
    let mut beams = cache::<B>(3);
    feed(&module, &mut beams, prompt.clone());
    beams.reorder(&[2, 0, 0, 1]).unwrap();
    assert_eq!(beams.batch(), 4);
    let output = feed(&module, &mut beams, next.clone());
    for (row, source) in [2, 0, 0, 1].into_iter().enumerate() {
        let mut alone = cache::<B>(1);
        feed(&module, &mut alone, prompt.clone().narrow(0, source, 1));
        let expected = feed(&module, &mut alone, next.clone().narrow(0, row, 1));
        assert_near(output.clone().narrow(0, row, 1), expected, 1e-6);
    }
    let error = beams.reorder(&[0, 4]).unwrap_err();
    assert_eq!(error, AttentionError::NoSuchRow { row: 4, batch: 4 });
    assert_eq!(beams.lengths(), [7; 4]);
}

/// Rows of different length: each is what it would be alone, and joins and leaves alone.
fn ragged_rows_are_the_rows_alone<B: InferenceBackend>() {
    let module = module::<B>();
    let mut cache = cache::<B>(3);
    let mut alone: Vec<KvCache<B>> = (0..3).map(|_| self::cache(1)).collect();
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
            assert_near(output.clone().slice([row..row + 1, 0..count, 0..48]), expected, 1e-5);
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
    let mut other = self::cache::<B>(2);
    feed(&module, &mut other, seeded([2, 6, 48], 99));
    cache.replace_row(1, &other, 1).unwrap();
    alone[1].replace_row(0, &other, 1).unwrap();
    assert_eq!(cache.lengths(), [3, 6, 9]);
    go(&mut cache, &mut alone, [2, 4, 1]);
}

fn a_left_padded_row_is_the_row_alone<B: InferenceBackend>() {
    let module = module::<B>();
    let pads = [0usize, 3, 6];
    let input = seeded::<B, 3>([3, 9, 48], 1);
    let mask = |keys: usize| {
        let keep = pads.iter().flat_map(|&pad| (0..keys).map(move |slot| slot >= pad)).collect::<Vec<_>>();
        let data = burn::tensor::TensorData::new(keep, [3, keys]);
        Tensor::<B, 2, Bool>::from_data(data, &Default::default())
    };
    let mut cache = cache::<B>(3);
    let mut alone: Vec<KvCache<B>> = (0..3).map(|_| self::cache(1)).collect();
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
                assert_near(own(&output, first), expected, 1e-5);
            }
        }
    }
}

on_each_backend!(
    a_full_cache_refuses_before_it_writes,
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
    use burn_ndarray::{NdArray, NdArrayTensor};

    fn address(tensor: &Tensor<NdArray, 4>) -> *const f32 {
        match tensor.clone().into_primitive() {
            TensorPrimitive::Float(NdArrayTensor::F32(storage)) => storage.view().as_ptr(),
            _ => panic!("not f32"),
        }
    }

    #[test]
    fn steps_write_into_the_same_memory() {
        let (module, mut cache) = (module::<NdArray>(), cache::<NdArray>(2));
        let mut addresses = Vec::new();
        for (seed, tokens) in [(1, 7), (2, 1), (3, 1), (4, 5), (5, 1)] {
            let mut step = cache.step(tokens).unwrap();
            module.forward(seeded([2, tokens, 48], seed), AttentionMask::none(), step.layer(0)).unwrap();
            let layer = step.layer(0);
            let (key, value) = layer.storage();
            addresses.push((address(key), address(value)));
            step.commit();
        }
        assert!(addresses.windows(2).all(|pair| pair[0] == pair[1]), "{addresses:?}");
    }
}

#[test]
fn memory_is_known_before_it_is_taken() {
    let config = llama().with_num_hidden_layers(Some(5));
    let bytes = config.cache_memory_bytes(3).unwrap();
    assert_eq!(bytes, 2 * 5 * 3 * 2 * 8 * 32 * 4);
    assert_eq!(config.init_cache::<crate::common::AnyBackend>(3, &Default::default()).unwrap().memory_bytes(), bytes);
    // two ranks hold one key/value head each
    let half = config.with_mp_size(2).with_local_rank(Some(0)).cache_memory_bytes(3).unwrap();
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
