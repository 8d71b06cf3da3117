//! Keys that are values, and layers that read the keys and values of an earlier one: against plain loops, in files, and on ranks.

use burn::tensor::Tensor;
use burn_deepspeed::load::{
    AttentionNames, Checkpoint, CheckpointWriter, NormNames, QkNormNames, QkvLayout, QkvNames, WeightNames,
};
use burn_deepspeed::ops::{Keys, SoftmaxContext};
use burn_deepspeed::weight::{Int8Blocks, Orientation, QueryKeyNorm};
use burn_deepspeed::{
    AttentionError, AttentionInit, AttentionMask, ConfigError, DataType, DeepSpeedInferenceConfig,
    DeepSpeedSelfAttention, InferenceBackend, KvCache, KvCacheType, KvSource, NormType, Operations, Positions, QkNorm,
    QkNormKind, QkNormWeights, RotaryLayout, WantedOutputs, WeightError,
};

use crate::attention::randomised;
use crate::common::{AnyBackend, Loops, assert_near, on_each_backend, seeded, values};
use crate::qk_norm::plain_heads;

/// 6 query heads and 2 key heads of 10 features.
fn config(source: KvSource) -> DeepSpeedInferenceConfig {
    DeepSpeedInferenceConfig::new(24, 6)
        .with_dtype(DataType::Fp32)
        .with_norm_type(NormType::RMSNorm)
        .with_head_dim(Some(10))
        .with_num_kv(Some(2))
        .with_rotary(RotaryLayout::Half, 4)
        .with_qk_norm(Some(NORM))
        .with_kv_source(source)
        .with_max_out_tokens(9)
}

const NORM: QkNorm = QkNorm {
    kind: QkNormKind::Rms,
    weights: QkNormWeights::Shared,
    epsilon: 1e-2,
    plus_one: false,
    after_rotation: false,
    values: true,
};

/// The layers of a small Gemma 4: the last two read the keys of one that has its own, and of one whose keys are values.
const SOURCES: [KvSource; 4] = [KvSource::Own, KvSource::KeysAreValues, KvSource::Layer(0), KvSource::Layer(1)];

fn layer<B: InferenceBackend>(index: usize) -> DeepSpeedSelfAttention<B> {
    randomised(config(SOURCES[index]).init_self_attention(index, &Default::default()).unwrap())
}

fn cache<B: InferenceBackend>(batch: usize, types: KvCacheType) -> KvCache<B> {
    let layers = [0, 1, 2, 3].map(|index| config(SOURCES[index]).with_kv_cache_dtype(types).resolve(index).unwrap());
    KvCache::for_layers(&layers, batch, &Default::default()).unwrap()
}

/// The context, keys and values of an operation.
fn run<B: InferenceBackend>(
    module: &DeepSpeedSelfAttention<B>,
    qkv: Tensor<B, 3>,
    (keys, given): (Keys<'_, B>, Option<[Tensor<B, 4>; 2]>),
) -> (Tensor<B, 3>, (Tensor<B, 4>, Tensor<B, 4>)) {
    let output = B::Ops::softmax_context(SoftmaxContext {
        qkv,
        norm: module.query_key_norm(),
        sums: None,
        sinks: None,
        keys,
        given,
        mask: AttentionMask::none(),
        spec: module.spec(),
        want_keys: true,
    });
    (output.context, output.keys.unwrap())
}

fn a_layer_agrees_with_plain_loops<B: InferenceBackend>() {
    for (reader, source) in [(2, 0), (3, 1)] {
        let (own, reads) = (layer::<B>(source), layer::<B>(reader));
        let qkv = seeded::<B, 3>([2, 7, own.spec().qkv_width()], 1);
        assert_eq!(qkv.dims()[2], [100, 80][source]);
        let query = seeded::<B, 3>([2, 7, reads.spec().qkv_width()], 2);
        assert_eq!(query.dims()[2], 60);
        // The same with all heads in one projection.
        let joined = Tensor::cat(vec![query.clone(), qkv.clone().narrow(2, 60, qkv.dims()[2] - 60)], 2);
        let (of_own, of_reader) = (own.query_key_norm().unwrap(), reads.query_key_norm().unwrap());
        assert!(of_reader.key().is_none());
        let norm = QueryKeyNorm::new(of_reader.query(), of_own.key());
        let loops = |qkv: &Tensor<B, 3>, norm, first| {
            let [query, key, value] = plain_heads(qkv, own.spec(), Some(norm), first);
            let hides = |[_, _, query, key]: [usize; 4]| key > query;
            let loops = Loops { scale: own.spec().scale, softcap: None, slopes: None, bias: &|_| 0.0, hides: &hides };
            let context = loops.attend(query, key.clone(), value.clone(), 0);
            (context.swap_dims(1, 2).reshape([2, 7, 60]), key, value)
        };

        let positions = Positions::sequential(&[5, 5], 7);
        let (context, (key, value)) = run(&own, qkv.clone(), (Keys::Fresh(&positions), None));
        let expected = loops(&qkv, of_own, 5);
        assert_near(context, expected.0, 1e-5);
        assert_near(key.clone(), expected.1, 1e-5);
        assert_near(value.clone(), expected.2, 1e-5);
        let given = Some([key.clone(), value.clone()]);
        let (context, returned) = run(&reads, query.clone(), (Keys::Fresh(&positions), given));
        assert_near(context, loops(&joined, &norm, 5).0, 1e-5);
        assert_near(returned.0, key, 0.0);
        assert_near(returned.1, value, 0.0);

        for (types, tolerance) in [(KvCacheType::default(), 1e-5), (KvCacheType::INT8, 5e-2)] {
            let (expected_own, expected_reader) = (loops(&qkv, of_own, 0).0, loops(&joined, &norm, 0).0);
            let (mut cache, mut start) = (cache::<B>(2, types), 0);
            for tokens in [4, 1, 2] {
                let mut step = cache.step(tokens).unwrap();
                let new = |tensor: &Tensor<B, 3>| tensor.clone().narrow(1, start, tokens);
                let (context, written) = run(&own, new(&qkv), (Keys::Cached(step.layer(source)), None));
                assert_near(context, new(&expected_own), tolerance);
                let (context, read) = run(&reads, new(&query), (Keys::Cached(step.layer(reader)), None));
                assert_near(context, new(&expected_reader), tolerance);
                assert_near(read.0, written.0, 0.0);
                assert_near(read.1, written.1, 0.0);
                step.commit();
                start += tokens;
            }
        }
    }
}

/// The outputs of a row through all layers, each added to its input.
fn outputs<B: InferenceBackend>(cache: &mut KvCache<B>, input: Tensor<B, 3>) -> Tensor<B, 3> {
    let mut step = cache.step(input.dims()[1]).unwrap();
    let output = (0..4).fold(input, |x, index| {
        x.clone() + layer::<B>(index).forward(x, AttentionMask::none(), step.layer(index)).unwrap()
    });
    step.commit();
    output
}

/// In pieces, with rows that move, and without a cache.
fn a_stack_of_layers_is_the_same_with_and_without_a_cache<B: InferenceBackend>() {
    let input = seeded::<B, 3>([2, 7, 24], 3);
    let mut whole = cache::<B>(2, KvCacheType::default());
    let expected = outputs(&mut whole, input.clone());

    let mut pieces = cache::<B>(2, KvCacheType::default());
    assert_near(outputs(&mut pieces, input.clone().narrow(1, 0, 4)), expected.clone().narrow(1, 0, 4), 1e-5);
    pieces.reorder(&[1, 0]).unwrap();
    let swapped = Tensor::cat(vec![input.clone().narrow(0, 1, 1), input.clone().narrow(0, 0, 1)], 0);
    let swapped_output = Tensor::cat(vec![expected.clone().narrow(0, 1, 1), expected.clone().narrow(0, 0, 1)], 0);
    assert_near(outputs(&mut pieces, swapped.narrow(1, 4, 3)), swapped_output.narrow(1, 4, 3), 1e-5);

    // a sequence that was read alone joins the batch, and its last two tokens are read again
    let mut alone = cache::<B>(1, KvCacheType::default());
    outputs(&mut alone, input.clone().narrow(0, 1, 1));
    pieces.replace_row(1, &alone, 0).unwrap();
    pieces.truncate(5);
    let again = input.clone().narrow(0, 1, 1).narrow(1, 5, 2).repeat_dim(0, 2);
    let again = outputs(&mut pieces, again);
    let expected_again = expected.clone().narrow(0, 1, 1).narrow(1, 5, 2).repeat_dim(0, 2);
    assert_near(again, expected_again, 1e-5);

    let (mut x, mut known) = (input, Vec::<[Tensor<B, 4>; 2]>::new());
    for (index, source) in SOURCES.into_iter().enumerate() {
        let (module, mask) = (layer::<B>(index), AttentionMask::none());
        let output = match source {
            KvSource::Layer(source) => module.forward_given(x.clone(), mask, known[source].clone(), None).unwrap(),
            _ => {
                let positions = Positions::sequential(&[0, 0], 7);
                let wanted = WantedOutputs::NONE.with_keys(true);
                let output = module.forward_detailed(x.clone(), mask, Keys::Fresh(&positions), wanted).unwrap();
                known.push([output.key.unwrap(), output.value.unwrap()]);
                output.output
            }
        };
        x = x + output;
    }
    assert_near(x, expected, 1e-5);
}

on_each_backend!(a_layer_agrees_with_plain_loops, a_stack_of_layers_is_the_same_with_and_without_a_cache);

#[test]
#[cfg(feature = "autodiff")]
fn the_reference_agrees_with_plain_loops() {
    a_layer_agrees_with_plain_loops::<burn_autodiff::Autodiff<AnyBackend>>();
    a_stack_of_layers_is_the_same_with_and_without_a_cache::<burn_autodiff::Autodiff<AnyBackend>>();
}

#[test]
fn a_layer_without_keys_takes_no_memory_and_warms_up() {
    let two = [0, 1].map(|index| config(SOURCES[index]).resolve(index).unwrap());
    let two = KvCache::<AnyBackend>::bytes_for_layers(&two, 3, &Default::default()).unwrap();
    let cache = cache::<AnyBackend>(3, KvCacheType::default());
    assert_eq!((cache.memory_bytes(), cache.layers()), (two, 4));
    for index in 0..4 {
        layer::<AnyBackend>(index).warmup(2, &[3, 0, 1]).unwrap();
    }
    let cached = layer::<AnyBackend>(2).explain(1, true).to_string();
    assert_eq!(cached, layer::<AnyBackend>(0).explain(1, true).to_string());
    // weights are int8 as those of other layers
    let module = layer::<AnyBackend>(2).quantize(Int8Blocks::PerOutput).unwrap();
    assert_eq!(module.qkv().first().int8().unwrap().shape(), [60, 24]);
}

#[test]
fn keys_that_are_not_there_are_an_error_that_says_where_they_come_from() {
    let (reads, input) = (layer::<AnyBackend>(2), || seeded([1, 3, 24], 1));
    let error = reads.forward_uncached(input(), AttentionMask::none(), None).unwrap_err();
    assert_eq!(error, AttentionError::NoGivenKeys { layer: 2, keys_of: 0 });
    assert!(error.to_string().contains("call `forward_given` with the keys and values that layer 0 returned"));

    let mut cache = cache::<AnyBackend>(1, KvCacheType::default());
    for _ in 0..2 {
        // in the second step, too: keys of the first are not those of the second
        let mut step = cache.step(3).unwrap();
        let error = reads.forward(input(), AttentionMask::none(), step.layer(2)).unwrap_err();
        assert_eq!(error, AttentionError::LayerNotRun { layer: 2, keys_of: 0 });
        let keys = Keys::Cached(step.layer(2));
        let partial = reads.forward_partial(input(), AttentionMask::none(), keys, WantedOutputs::NONE);
        assert_eq!(partial.unwrap_err(), error);
        layer::<AnyBackend>(0).forward(input(), AttentionMask::none(), step.layer(0)).unwrap();
        reads.forward(input(), AttentionMask::none(), step.layer(2)).unwrap();
        step.commit();
    }
    let own = layer::<AnyBackend>(0);
    let given = [1, 2].map(|seed| seeded([1, 2, 3, 10], seed));
    let run = || drop(own.forward_given(input(), AttentionMask::none(), given.clone(), None));
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_err();
    let panic = panic.downcast::<String>().unwrap();
    assert!(panic.ends_with("keys of another layer are given, and the layer has its own or a cache"), "{panic}");
}

#[test]
fn a_cache_refuses_sources_that_it_cannot_have() {
    let of = |configs: &[DeepSpeedInferenceConfig]| {
        let specs: Vec<_> = configs.iter().map(|config| config.resolve(3).unwrap()).collect();
        KvCache::<AnyBackend>::for_layers(&specs, 1, &Default::default()).map(drop)
    };
    let shared = |layer, keys_of, problem| Err(ConfigError::SharedLayer { layer, keys_of, problem });
    let (own, reads) = (config(KvSource::Own), |source| config(KvSource::Layer(source)));
    assert_eq!(of(&[own.clone(), reads(0), reads(0)]), Ok(()));
    assert_eq!(of(&[own.clone(), reads(1)]), shared(1, 1, "is not a layer before it"));
    assert_eq!(of(&[reads(0)]), shared(0, 0, "is not a layer before it"));
    assert_eq!(of(&[own.clone(), reads(0), reads(1)]), shared(2, 1, "has none of its own"));
    let other = "has other key/value heads, another head size or other element types";
    assert_eq!(of(&[own.clone(), reads(0).with_num_kv(Some(3))]), shared(1, 0, other));
    assert_eq!(of(&[own.clone().with_kv_cache_dtype(KvCacheType::INT8), reads(0)]), shared(1, 0, other));
    let limit = "a layer before the one that reads its keys";
    let later = |layer: usize| reads(layer).resolve(2).unwrap_err();
    let out_of_range = |value: &str| ConfigError::OutOfRange { key: "kv_source.layer", value: value.into(), limit };
    assert_eq!([2, 7].map(later), ["2", "7"].map(out_of_range));
    // one layer more, and the rows do not fit into each other
    let specs = [own.resolve(0).unwrap(), reads(0).resolve(1).unwrap()];
    let mut long = KvCache::<AnyBackend>::for_layers(&specs, 1, &Default::default()).unwrap();
    let short = KvCache::<AnyBackend>::for_layers(&specs[..1], 1, &Default::default()).unwrap();
    let error = long.replace_row(0, &short, 0).unwrap_err().to_string();
    assert!(error.contains("and 1 layers that read the keys of others"), "{error}");
}

#[test]
fn settings_that_exclude_each_other_are_refused() {
    let values = |kind| config(KvSource::Own).with_qk_norm(Some(QkNorm { kind, ..NORM })).resolve(0);
    for kind in [QkNormKind::LayerNorm, QkNormKind::RmsOfAllHeads] {
        assert!(matches!(values(kind), Err(ConfigError::Contradiction { key: "qk_norm.values", .. })));
    }
    let key_bias = config(KvSource::KeysAreValues).with_key_bias(false).resolve(0);
    assert!(matches!(key_bias, Err(ConfigError::Contradiction { key: "kv_source", .. })));
    let saved = config(KvSource::Layer(5));
    assert_eq!(DeepSpeedInferenceConfig::from_json_str(&saved.to_string()).unwrap(), saved);
    let device = Default::default();
    for source in [KvSource::KeysAreValues, KvSource::Layer(0)] {
        let config = config(source).with_qk_norm(None).with_rotary_dim(None);
        let error = config.init_diffusers::<AnyBackend>(1, &device).map(drop).unwrap_err();
        assert!(matches!(error, ConfigError::WrongModule { remedy: "set `kv_source` to own", .. }), "{error}");
    }
}

fn names(qkv: QkvNames) -> AttentionNames {
    AttentionNames::new(qkv, WeightNames::of("o_proj"), Orientation::OutputInput)
        .with_norm(NormNames::of("norm"))
        .with_qk_norm(QkNormNames::of("q_norm", "k_norm"))
}

#[test]
fn files_hold_the_projections_that_a_layer_has() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let separate = names(QkvNames::separate("attn", ["q_proj", "k_proj", "v_proj"]));
    for index in [1, 2, 3] {
        let module = layer::<AnyBackend>(index);
        let mut writer = CheckpointWriter::default();
        module.write(&mut writer, &separate).unwrap();
        writer.save(&path).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let has_keys = index == 1;
        assert_eq!(["attn.k_proj.weight", "k_norm.weight"].map(|name| checkpoint.contains(name)), [has_keys; 2]);
        assert!(!checkpoint.contains("attn.v_proj.weight"));
        let fresh = || config(SOURCES[index]).init_self_attention::<AnyBackend>(index, &Default::default()).unwrap();
        let read = fresh().load(&checkpoint, &separate).unwrap();
        checkpoint.finish().unwrap();
        assert_eq!(values(read.qkv().first().matrix()), values(module.qkv().first().matrix()));
        let norms = |module: &DeepSpeedSelfAttention<AnyBackend>| {
            let norm = module.query_key_norm().unwrap();
            (values(norm.query()), norm.key().map(values))
        };
        assert_eq!(norms(&read), norms(&module));

        let fused = names(QkvNames::fused("qkv", QkvLayout::Concat));
        let error = fresh().load(&checkpoint, &fused).map(drop).unwrap_err();
        assert!(matches!(error, WeightError::NotSeparateNames));
        let error = module.write(&mut CheckpointWriter::default(), &fused).unwrap_err();
        assert!(matches!(error, WeightError::NotSeparateNames));
    }
    // keys of a layer that reads those of another are not left unsaid
    let mut writer = CheckpointWriter::default();
    layer::<AnyBackend>(0).write(&mut writer, &separate).unwrap();
    writer.save(&path).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let config = config(KvSource::Layer(0));
    config.init_self_attention::<AnyBackend>(2, &Default::default()).unwrap().load(&checkpoint, &separate).unwrap();
    let error = checkpoint.finish().unwrap_err().to_string();
    assert!(error.contains("k_proj.weight") && error.contains("v_proj.weight"), "{error}");
}

/// Three ranks have two query heads each, and two of them share a key head.
#[test]
fn ranks_agree_with_one() {
    use burn_deepspeed::parallel::local::LocalCommunicator;

    let folder = tempfile::tempdir().unwrap();
    let paths = [0, 1, 2, 3].map(|index| folder.path().join(index.to_string()));
    let separate = names(QkvNames::separate("attn", ["q_proj", "k_proj", "v_proj"]));
    for (index, path) in paths.iter().enumerate() {
        let mut writer = CheckpointWriter::default();
        layer::<AnyBackend>(index).write(&mut writer, &separate).unwrap();
        writer.save(path).unwrap();
    }
    let input = |tokens| seeded::<AnyBackend, 3>([2, tokens, 24], tokens as u64);
    let mut alone = cache::<AnyBackend>(2, KvCacheType::default());
    let expected = [5, 1].map(|tokens| values(outputs(&mut alone, input(tokens))));
    for ranks in [2, 3] {
        let found = crate::ranks::on_ranks(LocalCommunicator::group(ranks), |communicator| {
            let config = |index: usize| config(SOURCES[index]).with_uneven_heads(true).for_rank_of(&*communicator);
            let layers = [0, 1, 2, 3].map(|index: usize| {
                let module = config(index).init_self_attention::<AnyBackend>(index, &Default::default()).unwrap();
                let module = module.load(&Checkpoint::open(&paths[index]).unwrap(), &separate).unwrap();
                module.with_communicator(communicator.clone()).unwrap()
            });
            let specs = [0, 1, 2, 3].map(|index| config(index).resolve(index).unwrap());
            let mut cache = KvCache::for_layers(&specs, 2, &Default::default()).unwrap();
            [5, 1].map(|tokens| {
                let mut step = cache.step(tokens).unwrap();
                let output = layers.iter().enumerate().fold(input(tokens), |x, (index, layer)| {
                    x.clone() + layer.forward(x, AttentionMask::none(), step.layer(index)).unwrap()
                });
                step.commit();
                values(output)
            })
        });
        for output in found {
            for (rank, alone) in output.iter().flatten().zip(expected.iter().flatten()) {
                assert!((rank - alone).abs() < 1e-5, "{ranks} ranks: {rank} and {alone}");
            }
        }
    }
}
