//! Every argument of attention and cache write that does not fit is named before anything is launched, and bounds that only the
//! device knows lead to nothing outside of the tensors.

use burn_deepspeed_core::kv_source::KvSource;
use burn_deepspeed_core::layout::RotaryLayout;
use burn_deepspeed_core::qk_norm::QkNormKind;
use burn_deepspeed_kernels::cube::cache_write::{self, CacheWrite, HeadNorm, Rotation, Squares, Sums};
use burn_deepspeed_kernels::cube::prefill::{mma, simt};
use burn_deepspeed_kernels::cube::{
    Attention, CacheTensor, HiddenKeys, MaskArguments, Rules, TensorHandle, Unsupported, decode,
};

use crate::lab::{Element, Gpu, Lab, Tensor, lab};
use crate::refused::refuses;

const RULES: Rules = Rules { causal: true, window: None, softcap: None, start: 2, end: 5 };

fn floats(lab: &Lab, shape: &[usize]) -> Tensor {
    lab.floats(&vec![1.0; shape.iter().product()], shape, Element::F32, 1)
}

/// A tensor of a shape that its buffer of 4 elements is far too short for.
fn beyond(lab: &Lab, shape: &[usize]) -> Tensor {
    let short = lab.integers(&[0; 4], &[4]);
    let whole = floats(lab, shape);
    TensorHandle::new(short.handle, shape.to_vec(), whole.strides().to_vec(), Element::F32.storage())
}

/// The three kernels on one problem.
fn kernels(lab: &Lab, problem: Attention<'_, Gpu>) -> [Result<(), Unsupported>; 3] {
    [
        decode::launch(&lab.client, &lab.machine, problem, None).map(|_| ()),
        simt::launch(&lab.client, &lab.machine, problem),
        mma::launch(&lab.client, &lab.machine, problem, mma::Engine::Emulated),
    ]
}

#[track_caller]
fn all_refuse(lab: &Lab, expected: &str, problem: Attention<'_, Gpu>) {
    refuses(&format!("decode: {expected}"), || decode::launch(&lab.client, &lab.machine, problem, None));
    refuses(&format!("prefill::simt: {expected}"), || simt::launch(&lab.client, &lab.machine, problem));
    refuses(&format!("prefill::mma: {expected}"), || {
        mma::launch(&lab.client, &lab.machine, problem, mma::Engine::Emulated)
    });
}

/// Tensors of 2 rows, 4 query heads over 2 key heads, 3 tokens, 7 slots, heads of 8 features.
struct Tensors {
    lab: Lab,
    query: Tensor,
    cache: Tensor,
    context: Tensor,
    masks: MaskArguments<Gpu>,
}

impl Tensors {
    fn new() -> Self {
        let lab = lab(false);
        let query = floats(&lab, &[2, 4, 3, 8]);
        let cache = floats(&lab, &[2, 2, 7, 8]);
        let context = lab.output(&[2, 4, 3, 8], Element::F32, 1);
        Self { lab, query, cache, context, masks: MaskArguments::new(RULES) }
    }

    fn attention(&self) -> Attention<'_, Gpu> {
        Attention {
            query: &self.query,
            key: CacheTensor::floats(&self.cache),
            value: CacheTensor::floats(&self.cache),
            context: &self.context,
            scale: 1.0,
            sinks: None,
            masks: &self.masks,
            keys: 5,
        }
    }
}

#[test]
fn attention_names_the_tensor_that_does_not_fit() {
    let tensors = Tensors::new();
    let (lab, fits) = (&tensors.lab, tensors.attention());
    let other = |shape: &[usize]| floats(lab, shape);
    all_refuse(lab, "`query` has shape [2, 4, 3], expected 4 axes", Attention { query: &other(&[2, 4, 3]), ..fits });
    all_refuse(
        lab,
        "`query` has 3 heads, expected a multiple of the 2",
        Attention { query: &other(&[2, 3, 3, 8]), ..fits },
    );
    all_refuse(
        lab,
        "`context` has shape [2, 4, 2, 8], expected [2, 4, 3, 8]",
        Attention { context: &other(&[2, 4, 2, 8]), ..fits },
    );
    // The cache of another model, or of another batch.
    for shape in [[1, 2, 7, 8], [3, 2, 7, 8], [2, 2, 7, 16], [2, 2, 7, 4]] {
        let cache = other(&shape);
        let cache = CacheTensor::floats(&cache);
        all_refuse(lab, &format!("`key` has shape {shape:?}, expected [2, 2, 7, 8]"), Attention { key: cache, ..fits });
    }
    for shape in [[1, 2, 7, 8], [2, 1, 7, 8], [2, 2, 6, 8], [2, 4, 7, 8]] {
        let cache = other(&shape);
        let cache = CacheTensor::floats(&cache);
        let expected = format!("`value` has shape {shape:?}, expected [2, 2, 7, 8]");
        all_refuse(lab, &expected, Attention { value: cache, ..fits });
    }
    for shape in [&[2][..], &[5], &[4, 1]] {
        let expected = format!("`sinks` has shape {shape:?}, expected [4]");
        all_refuse(lab, &expected, Attention { sinks: Some(&other(shape)), ..fits });
    }
    let halves = lab.output(&[4], Element::F16, 1);
    for answer in kernels(lab, Attention { sinks: Some(&halves), ..fits }) {
        assert!(matches!(answer, Err(Unsupported::MixedTypes { tensor: "sinks", .. })), "{answer:?}");
    }
    all_refuse(lab, "`keys` is 8, expected at most 7", Attention { keys: 8, ..fits });

    let int8 = lab.bytes(&[1; 224], &[2, 2, 7, 8], 1);
    for shape in [&[2, 2, 6][..], &[2, 1, 7], &[2, 2, 7, 1]] {
        let scales = other(shape);
        let cache = CacheTensor::int8(&int8, &scales);
        let expected = format!("has shape {shape:?}, expected [2, 2, 7]");
        all_refuse(lab, &format!("`key_scales` {expected}"), Attention { key: cache, ..fits });
        all_refuse(lab, &format!("`value_scales` {expected}"), Attention { value: cache, ..fits });
    }
    let beyond = |shape: &[usize]| beyond(lab, shape);
    let (query, cache) = (beyond(&[2, 4, 3, 8]), beyond(&[2, 2, 7, 8]));
    all_refuse(lab, "`query` has shape [2, 4, 3, 8] and strides", Attention { query: &query, ..fits });
    all_refuse(lab, "`context` has shape [2, 4, 3, 8] and strides", Attention { context: &query, ..fits });
    all_refuse(lab, "`key` has shape [2, 2, 7, 8] and strides", Attention { key: CacheTensor::floats(&cache), ..fits });

    let in_f16 = lab.output(&[2, 4, 3, 8], Element::F16, 1);
    for answer in kernels(lab, Attention { context: &in_f16, ..fits }) {
        assert!(matches!(answer, Err(Unsupported::MixedTypes { tensor: "context", .. })), "{answer:?}");
    }
    let columns = TensorHandle::new(tensors.query.handle.clone(), vec![2, 4, 3, 8], vec![96, 24, 1, 3], in_f16.dtype);
    for answer in kernels(lab, Attention { query: &columns, ..fits }) {
        assert!(answer.is_err(), "{answer:?}");
    }
    let long = other(&[2, 2, 7, 513]);
    let long = Attention { value: CacheTensor::floats(&long), context: &other(&[2, 4, 3, 513]), ..fits };
    for answer in kernels(lab, long) {
        assert_eq!(answer, Err(Unsupported::HeadDim { head_dim: 513, limit: 512 }));
    }
    // Nothing was launched.
    assert!(lab.read(&tensors.context).iter().all(|value| value.is_nan()));
}

#[test]
fn attention_names_the_mask_that_does_not_fit() {
    let tensors = Tensors::new();
    let (lab, fits) = (&tensors.lab, tensors.attention());
    let plain = || MaskArguments::<Gpu>::new(RULES);
    let refused =
        |expected: &str, masks: MaskArguments<Gpu>| all_refuse(lab, expected, Attention { masks: &masks, ..fits });
    let flags = |shape: &[usize]| lab.integers(&vec![0; shape.iter().product()], shape);

    refused("`end` is 6, expected at most 5", MaskArguments::new(Rules { end: 6, ..RULES }));
    refused("`start` is 4294967295", MaskArguments::new(Rules { start: u32::MAX, ..RULES }));
    for shape in [&[1, 2][..], &[2, 3], &[4]] {
        refused(
            &format!("`bounds` has shape {shape:?}, expected [2, 2]"),
            MaskArguments { bounds: Some(flags(shape)), ..plain() },
        );
    }
    for shape in [&[3, 5][..], &[2, 4], &[2, 5, 1]] {
        let hidden_keys = Some(HiddenKeys { hidden: flags(shape), positions: None });
        refused(&format!("`hidden_keys` has shape {shape:?}"), MaskArguments { hidden_keys, ..plain() });
        let hidden_keys = Some(HiddenKeys { hidden: flags(&[2, 5]), positions: Some(flags(shape)) });
        refused(&format!("`positions` has shape {shape:?}"), MaskArguments { hidden_keys, ..plain() });
    }
    for shape in [&[3, 1, 1, 1][..], &[1, 2, 1, 1], &[1, 1, 2, 1], &[1, 1, 1, 4], &[1, 1, 5]] {
        let expected = format!("has shape {shape:?}, expected [2, 4, 3, 5] or 1");
        refused(&format!("`hidden_pairs` {expected}"), MaskArguments { hidden_pairs: Some(flags(shape)), ..plain() });
        refused(&format!("`bias` {expected}"), MaskArguments { bias: Some(floats(lab, shape)), ..plain() });
    }
    for shape in [&[2][..], &[5], &[4, 1]] {
        refused(
            &format!("`slopes` has shape {shape:?}, expected [4]"),
            MaskArguments { slopes: Some(floats(lab, shape)), ..plain() },
        );
    }

    let mixed = |masks: MaskArguments<Gpu>, name: &str| {
        for answer in kernels(lab, Attention { masks: &masks, ..fits }) {
            assert!(matches!(answer, Err(Unsupported::MixedTypes { tensor, .. }) if tensor == name), "{answer:?}");
        }
    };
    mixed(MaskArguments { bounds: Some(floats(lab, &[2, 2])), ..plain() }, "bounds");
    mixed(MaskArguments { slopes: Some(flags(&[4])), ..plain() }, "slopes");
    let hidden_keys = Some(HiddenKeys { hidden: flags(&[2, 5]), positions: Some(floats(lab, &[2, 5])) });
    mixed(MaskArguments { hidden_keys, ..plain() }, "positions");
    let hidden_keys = Some(HiddenKeys { hidden: flags(&[2, 5]), positions: None });
    let hidden_pairs = Some(lab.bytes(&[0; 1], &[1, 1, 1, 1], 1));
    mixed(MaskArguments { hidden_keys, hidden_pairs, ..plain() }, "hidden_pairs");
    assert!(lab.read(&tensors.context).iter().all(|value| value.is_nan()));
}

#[test]
fn bounds_beyond_the_keys_end_with_them() {
    let tensors = Tensors::new();
    let (lab, fits) = (&tensors.lab, tensors.attention());
    // Values that are 1 where they may be read.
    let mut values = vec![1.0; 2 * 2 * 7 * 8];
    for head in values.chunks_mut(7 * 8) {
        head[5 * 8..].fill(f32::NAN);
    }
    let cache = lab.floats(&values, &[2, 2, 7, 8], Element::F32, 1);
    let cache = CacheTensor::floats(&cache);
    for bounds in [[2, u32::MAX, 2, 1 << 31], [2, 7, 1 << 20, 6], [u32::MAX - 1, 5, 2, 6]] {
        let mut masks = MaskArguments::new(Rules { causal: false, ..RULES });
        masks.bounds = Some(lab.integers(&bounds, &[2, 2]));
        for at in 0..3 {
            let context = lab.output(&[2, 4, 3, 8], Element::F32, 1);
            let problem = Attention { key: cache, value: cache, context: &context, masks: &masks, ..fits };
            let answer = match at {
                0 => decode::launch(&lab.client, &lab.machine, problem, Some(2)).map(|_| ()),
                1 => simt::launch(&lab.client, &lab.machine, problem),
                _ => mma::launch(&lab.client, &lab.machine, problem, mma::Engine::Emulated),
            };
            assert_eq!(answer, Ok(()));
            let context = lab.read(&context);
            assert!(context.iter().all(|value| (value - 1.0).abs() < 1e-6), "{bounds:?}, kernel {at}: {context:?}");
        }
    }
}

/// A write of 2 rows, 4 query heads, 2 key heads, 3 tokens, 7 slots, heads of 8 features.
struct Write {
    lab: Lab,
    qkv: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rotation: Rotation<Gpu>,
}

impl Write {
    fn new() -> Self {
        let lab = lab(true);
        let (qkv, query) = (floats(&lab, &[2, 3, 64]), lab.output(&[2, 4, 3, 8], Element::F32, 1));
        let [key, value] = [(); 2].map(|()| lab.output(&[2, 2, 7, 8], Element::F32, 1));
        let table = floats(&lab, &[1, 3, 2]);
        let rotation = Rotation { layout: RotaryLayout::Half, cos: table.clone(), sin: table };
        Self { lab, qkv, query, key, value, rotation }
    }

    fn arguments(&self) -> CacheWrite<'_, Gpu> {
        CacheWrite {
            qkv: &self.qkv,
            source: KvSource::Own,
            query: &self.query,
            key: CacheTensor::floats(&self.key),
            value: CacheTensor::floats(&self.value),
            norm: None,
            rotation: Some(&self.rotation),
            factors: None,
            bounds: None,
            start: 4,
            end: 7,
        }
    }
}

#[test]
fn a_cache_write_names_the_tensor_that_does_not_fit() {
    let write = Write::new();
    let (lab, fits) = (&write.lab, write.arguments());
    let refused = |expected: &str, arguments: CacheWrite<'_, Gpu>| {
        refuses(&format!("cache_write: {expected}"), || cache_write::launch(&lab.client, &lab.machine, arguments));
    };
    let other = |shape: &[usize]| floats(lab, shape);
    for shape in [&[2, 3, 63][..], &[2, 2, 64], &[1, 3, 64], &[6, 64]] {
        refused(&format!("`qkv` has shape {shape:?}, expected [2, 3, 64]"), CacheWrite { qkv: &other(shape), ..fits });
    }
    for (source, width) in [(KvSource::KeysAreValues, 48), (KvSource::Layer(0), 32)] {
        let expected = format!("`qkv` has shape [2, 3, 64], expected [2, 3, {width}]");
        refused(&expected, CacheWrite { source, ..fits });
    }
    refused("`query` has shape [2, 3, 32], expected 4 axes", CacheWrite { query: &other(&[2, 3, 32]), ..fits });
    for shape in [[1, 2, 7, 8], [2, 2, 7, 4], [2, 1, 7, 8], [2, 2, 6, 8]] {
        let cache = other(&shape);
        let cache = CacheTensor::floats(&cache);
        let expected = format!("`value` has shape {shape:?}, expected [2, 2, 7, 8]");
        refused(&expected, CacheWrite { value: cache, ..fits });
    }
    for shape in [[1, 2, 7, 8], [2, 2, 7, 16]] {
        let cache = other(&shape);
        let cache = CacheTensor::floats(&cache);
        refused(&format!("`key` has shape {shape:?}, expected [2, 2, 7, 8]"), CacheWrite { key: cache, ..fits });
    }
    let int8 = lab.bytes(&[1; 224], &[2, 2, 7, 8], 1);
    let scales = other(&[2, 2, 6]);
    let cache = CacheTensor::int8(&int8, &scales);
    refused("`key_scales` has shape [2, 2, 6], expected [2, 2, 7]", CacheWrite { key: cache, ..fits });
    refused("`value_scales` has shape [2, 2, 6], expected [2, 2, 7]", CacheWrite { value: cache, ..fits });
    refused("`end` is 8, expected at most 7 slots", CacheWrite { end: 8, ..fits });
    refused("`start` is 4294967294", CacheWrite { start: u32::MAX - 1, ..fits });
    let bounds = lab.integers(&[0; 6], &[2, 3]);
    refused("`bounds` has shape [2, 3], expected [2, 2]", CacheWrite { bounds: Some(&bounds), ..fits });

    let norm = |weights, sums| HeadNorm {
        kind: QkNormKind::Rms,
        epsilon: 0.0,
        plus_one: false,
        after_rotation: false,
        values: false,
        weights,
        sums,
    };
    let sums = |shape: &[usize]| Some(Sums { sums: other(shape), features: [32, 16] });
    for [query, key] in [[[3, 8], [2, 8]], [[4, 7], [2, 8]], [[4, 8], [4, 8]], [[1, 8], [1, 4]]] {
        let wrong = norm(Some([other(&query), other(&key)]), None);
        let name = if query == [4, 8] || query == [1, 8] { "key_weights" } else { "query_weights" };
        refused(&format!("`{name}` has shape"), CacheWrite { norm: Some(&wrong), ..fits });
    }
    let wrong = norm(None, sums(&[2, 3, 2]));
    refused("`sums` is given, and the norm is over each head", CacheWrite { norm: Some(&wrong), ..fits });
    let of_all = |sums| HeadNorm { kind: QkNormKind::RmsOfAllHeads, ..norm(None, sums) };
    refused("`sums` is None, and the norm is over all heads", CacheWrite { norm: Some(&of_all(None)), ..fits });
    let wrong = of_all(sums(&[2, 3, 1]));
    refused("`sums` has shape [2, 3, 1], expected [2, 3, 2]", CacheWrite { norm: Some(&wrong), ..fits });
    let wrong = HeadNorm { after_rotation: true, ..of_all(sums(&[2, 3, 2])) };
    refused("`after_rotation` is true", CacheWrite { norm: Some(&wrong), ..fits });
    let wrong = HeadNorm { values: true, ..of_all(sums(&[2, 3, 2])) };
    refused("`values` is true, expected false", CacheWrite { norm: Some(&wrong), ..fits });
    for shape in [&[2, 2][..], &[3, 3], &[2, 3, 1]] {
        refused("`factors` has shape", CacheWrite { factors: Some(&other(shape)), ..fits });
    }
    let half = lab.floats(&[1.0; 6], &[2, 3], Element::F16, 1);
    let mixed = cache_write::launch(&lab.client, &lab.machine, CacheWrite { factors: Some(&half), ..fits });
    assert!(matches!(mixed, Err(Unsupported::MixedTypes { tensor: "factors", .. })));
    let squares = Squares { qkv: &write.qkv, features: [60, 8], sums: &other(&[2, 3, 2]) };
    refuses("squares: `features` are 60 and 8, expected at most the 64 of `qkv`", || {
        cache_write::launch_squares(&lab.client, &lab.machine, squares)
    });

    let rotation = |cos: Tensor, sin: Tensor| Rotation { layout: RotaryLayout::Interleaved, cos, sin };
    let table = || other(&[2, 3, 2]);
    for shape in [[3, 3, 2], [2, 1, 2], [2, 3, 5]] {
        let wrong = rotation(other(&shape), other(&shape));
        refused("`cos` has", CacheWrite { rotation: Some(&wrong), ..fits });
        let wrong = rotation(table(), other(&shape));
        refused("`sin` has shape", CacheWrite { rotation: Some(&wrong), ..fits });
    }
    let padded = lab.floats(&[1.0; 12], &[2, 3, 2], Element::F32, 4);
    let wrong = rotation(table(), padded);
    refused("`sin` has strides [12, 4, 1], expected those of `cos`", CacheWrite { rotation: Some(&wrong), ..fits });
    for tensor in [&write.query, &write.key, &write.value] {
        assert!(lab.read(tensor).iter().all(|value| value.is_nan()), "something was launched");
    }
}

#[test]
fn tokens_without_a_slot_are_dropped() {
    let write = Write::new();
    let (lab, fits) = (&write.lab, write.arguments());
    let int8 = || lab.bytes(&[99; 224], &[2, 2, 7, 8], 1);
    let scales = || lab.floats(&[9.0; 28], &[2, 2, 7], Element::F32, 1);
    for bounds in [[6, u32::MAX, 7, 10], [100, 103, u32::MAX - 1, u32::MAX], [1 << 31, 1 << 31, 6, 8]] {
        let bounds = lab.integers(&bounds, &[2, 2]);
        let fits = CacheWrite { bounds: Some(&bounds), ..fits };
        assert_eq!(cache_write::launch(&lab.client, &lab.machine, fits), Ok(()));
        let (elements, own) = (int8(), scales());
        let cache = CacheTensor::int8(&elements, &own);
        assert_eq!(
            cache_write::launch(&lab.client, &lab.machine, CacheWrite { key: cache, value: cache, ..fits }),
            Ok(())
        );
        // `read` looks at what is between and after the rows.
        let (elements, own) = (lab.read(&elements), lab.read(&own));
        for slot in (0..28).filter(|slot| slot % 7 < 6) {
            assert!(own[slot] == 9.0 && elements[slot * 8..][..8] == [99.0; 8], "slot {slot}");
        }
        for tensor in [&write.key, &write.value] {
            let cache = lab.read(tensor);
            assert!((0..28).filter(|slot| slot % 7 < 6).all(|slot| cache[slot * 8].is_nan()));
        }
    }
}
