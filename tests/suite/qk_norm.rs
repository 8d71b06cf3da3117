//! The norm of queries and keys, and factors of queries by their position: against plain loops, in files, and on ranks.

use burn::module::Module;
use burn::record::{FullPrecisionSettings, NamedMpkFileRecorder};
use burn::tensor::{Tensor, TensorData};
use burn_deepspeed::load::{
    AttentionNames, Checkpoint, CheckpointWriter, HeadWeightNames, NormNames, QkNormNames, QkvLayout, QkvNames,
    SplitCheckpoint, WeightNames, WriteTensors,
};
use burn_deepspeed::ops::{Keys, SoftmaxContext};
use burn_deepspeed::weight::{Orientation, QueryKeyNorm};
use burn_deepspeed::{
    AttentionError, AttentionInit, AttentionMask, AttentionSpec, DataType, DeepSpeedInferenceConfig,
    DeepSpeedSelfAttention, InferenceBackend, KvCacheType, Operations, PositionEncoding, Positions, QkNorm, QkNormKind,
    QkNormWeights, QueryFactor, RotaryLayout, WantedOutputs, WeightError,
};

use crate::attention::randomised;
use crate::common::{AnyBackend, Loops, assert_near, on_each_backend, seeded, values};

/// Every kind with every form of weights, before the rotation and after it, and a norm of values as well.
pub fn norms() -> [QkNorm; 9] {
    use QkNormKind::{LayerNorm, Rms, RmsOfAllHeads};
    use QkNormWeights::{None, PerHead, Shared};
    let norm = |kind, weights| QkNorm::new(kind, weights, 1e-2);
    [
        norm(Rms, Shared),
        norm(Rms, Shared).with_plus_one(true),
        norm(Rms, None).with_after_rotation(true),
        norm(LayerNorm, PerHead),
        norm(LayerNorm, Shared).with_plus_one(true).with_after_rotation(true),
        norm(RmsOfAllHeads, PerHead),
        norm(RmsOfAllHeads, Shared).with_plus_one(true),
        norm(RmsOfAllHeads, None),
        norm(Rms, PerHead).with_values(true),
    ]
}

const ROTARIES: [Option<(RotaryLayout, usize)>; 5] = [
    Some((RotaryLayout::Half, 10)),
    Some((RotaryLayout::Interleaved, 10)),
    Some((RotaryLayout::Half, 4)),
    Some((RotaryLayout::Interleaved, 6)),
    None,
];

/// 6 query heads and 2 key heads of 10 features.
fn config(norm: Option<QkNorm>) -> DeepSpeedInferenceConfig {
    DeepSpeedInferenceConfig::new(24, 6)
        .with_dtype(DataType::Fp32)
        .with_head_dim(Some(10))
        .with_num_kv(Some(2))
        .with_rotary(RotaryLayout::Half, 4)
        .with_qk_norm(norm)
        .with_num_hidden_layers(Some(1))
        .with_max_out_tokens(9)
}

fn module<B: InferenceBackend>(config: &DeepSpeedInferenceConfig) -> DeepSpeedSelfAttention<B> {
    randomised(config.init_self_attention(0, &Default::default()).unwrap())
}

/// Heads of one side of a projection after norm, rotation and factor, in f64.
struct Plain<'a> {
    spec: &'a AttentionSpec,
    /// `[1 or heads, H]`.
    weights: Option<Vec<f64>>,
    /// Whether the heads are queries, which have factors.
    queries: bool,
}

impl Plain<'_> {
    /// The heads of a token at a position.
    fn token(&self, heads: &[f64], position: usize) -> Vec<f64> {
        let squares = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let of_all = squares(heads);
        let moved = heads.chunks(self.spec.head_dim).enumerate().flat_map(|(head, features)| {
            let normed = |x: Vec<f64>| {
                let Some(norm) = self.spec.qk_norm else { return x };
                let mean = x.iter().sum::<f64>() / x.len() as f64;
                let mean = if norm.kind == QkNormKind::LayerNorm { mean } else { 0.0 };
                let centred: Vec<f64> = x.iter().map(|x| x - mean).collect();
                let square = if norm.kind == QkNormKind::RmsOfAllHeads { of_all } else { squares(&centred) };
                let weight = |feature: usize| match &self.weights {
                    Some(weights) => weights[(head * x.len() + feature) % weights.len()],
                    None => 1.0,
                };
                let one = f64::from(u8::from(norm.plus_one));
                let root = (square + norm.epsilon).sqrt();
                centred.iter().enumerate().map(|(at, x)| x / root * (weight(at) + one)).collect()
            };
            let after = self.spec.qk_norm.is_some_and(|norm| norm.after_rotation);
            let features = features.to_vec();
            let features =
                if after { normed(self.rotated(features, position)) } else { self.rotated(normed(features), position) };
            let factor = self.spec.query_factor.filter(|_| self.queries).map_or(1.0, |factor| {
                let steps = ((position + factor.offset) as f64 / factor.interval as f64).floor();
                1.0 + factor.weight * (1.0 + steps).ln()
            });
            features.into_iter().map(move |x| x * factor)
        });
        moved.collect()
    }

    fn rotated(&self, features: Vec<f64>, position: usize) -> Vec<f64> {
        let PositionEncoding::Rotary(rotary) = &self.spec.position else { return features };
        let mut rotated = features.clone();
        for pair in 0..rotary.dim / 2 {
            let (first, second) = match rotary.layout {
                RotaryLayout::Half => (pair, pair + rotary.dim / 2),
                RotaryLayout::Interleaved => (2 * pair, 2 * pair + 1),
            };
            let angle = position as f64 * rotary.theta.powf(-2.0 * pair as f64 / rotary.dim as f64);
            let (a, b) = (features[first], features[second]);
            rotated[first] = a * angle.cos() - b * angle.sin();
            rotated[second] = b * angle.cos() + a * angle.sin();
        }
        rotated
    }
}

/// Queries, keys and values, `[B, heads, T, H]`, of a projection whose first token has position `first`.
pub fn plain_heads<B: InferenceBackend>(
    qkv: &Tensor<B, 3>,
    spec: &AttentionSpec,
    norm: Option<&QueryKeyNorm<B>>,
    first: usize,
) -> [Tensor<B, 4>; 3] {
    let [batch, tokens, width] = qkv.dims();
    let first_value = spec.first_value();
    let (all, queries, keys) = (values(qkv.clone()), spec.query_width(), spec.kv_width());
    let weights = |side: usize| norm.map(|norm| values(if side == 0 { norm.query() } else { norm.key().unwrap() }));
    let mut of_values = spec.clone();
    of_values.position = PositionEncoding::None;
    let unweighted = |norm: QkNorm| QkNorm::new(QkNormKind::Rms, QkNormWeights::None, norm.epsilon);
    of_values.qk_norm = spec.qk_norm.filter(|norm| norm.values).map(unweighted);
    let sides = [
        (0..queries, Plain { spec, weights: weights(0), queries: true }),
        (queries..queries + keys, Plain { spec, weights: weights(1), queries: false }),
        (first_value..first_value + keys, Plain { spec: &of_values, weights: None, queries: false }),
    ];
    sides.map(|(at, plain)| {
        let token = |index: usize| plain.token(&all[index * width..][..width][at.clone()], first + index % tokens);
        let moved: Vec<f32> = (0..batch * tokens).flat_map(token).map(|x| x as f32).collect();
        let shape = [batch, tokens, at.len() / spec.head_dim, spec.head_dim];
        Tensor::<B, 4>::from_data(TensorData::new(moved, shape), &Default::default()).swap_dims(1, 2)
    })
}

/// Context, keys and values of a step.
fn run<B: InferenceBackend>(
    qkv: Tensor<B, 3>,
    keys: Keys<'_, B>,
    module: &DeepSpeedSelfAttention<B>,
) -> (Tensor<B, 3>, (Tensor<B, 4>, Tensor<B, 4>)) {
    let (norm, spec, mask) = (module.query_key_norm(), module.spec(), AttentionMask::none());
    let (sums, sinks) = (None, None);
    let output = B::Ops::softmax_context(SoftmaxContext {
        qkv,
        norm,
        sums,
        sinks,
        keys,
        given: None,
        mask,
        spec,
        want_keys: true,
    });
    (output.context, output.keys.unwrap())
}

fn norm_rotation_and_factor_agree_with_plain_loops<B: InferenceBackend>() {
    let factors = [QueryFactor::llama4(0.7, 2), QueryFactor::ministral3(0.3, 3)].map(Some);
    let norms = norms().map(Some).into_iter().chain([None, None]);
    for (at, norm) in norms.enumerate() {
        let config = config(norm)
            .with_query_factor(factors.into_iter().chain([None]).nth(at % 3).flatten())
            .with_score_factor((at % 2 == 0).then_some(0.7));
        let config = match ROTARIES[at % 5] {
            Some((layout, dim)) => config.with_rotary(layout, dim),
            None => config.with_rotary_dim(None),
        };
        let module = module::<B>(&config);
        let (spec, norm) = (module.spec(), module.query_key_norm());
        let normalises_values = spec.qk_norm.is_some_and(|norm| norm.values);
        let qkv = seeded::<B, 3>([2, 7, spec.qkv_width()], 1);
        let expected = |first| {
            let [query, key, value] = plain_heads(&qkv, spec, norm, first);
            let hides = |[_, _, query, key]: [usize; 4]| key > query;
            let loops = Loops { scale: spec.scale, softcap: None, slopes: None, bias: &|_| 0.0, hides: &hides };
            (loops.attend(query, key.clone(), value.clone(), 0).swap_dims(1, 2).reshape([2, 7, 60]), key, value)
        };
        let positions = Positions::sequential(&[5, 5], 7);
        let (context, (key, value)) = run(qkv.clone(), Keys::Fresh(&positions), &module);
        let (expected_context, expected_key, expected_value) = expected(5);
        assert_near(key, expected_key, 1e-5);
        assert_near(value, expected_value, if normalises_values { 1e-6 } else { 0.0 });
        assert_near(context, expected_context, 1e-5);

        // a prompt, and what follows it, in a cache
        let (expected_context, expected_key, _) = expected(0);
        let mut cache = config.init_cache::<B>(2, &Default::default()).unwrap();
        let mut start = 0;
        for tokens in [4, 1, 2] {
            let mut step = cache.step(tokens).unwrap();
            let (context, (key, _)) = run(qkv.clone().narrow(1, start, tokens), Keys::Cached(step.layer(0)), &module);
            step.commit();
            assert_near(context, expected_context.clone().narrow(1, start, tokens), 1e-5);
            start += tokens;
            assert_near(key, expected_key.clone().narrow(2, 0, start), 1e-5);
        }
        if at % 4 > 0 {
            continue;
        }
        // int8 keeps what was normalised and rotated: half a scale is at most 1.4 · √10 / 254
        let config = config.clone().with_kv_cache_dtype(KvCacheType::INT8);
        let mut cache = config.init_cache::<B>(2, &Default::default()).unwrap();
        let mut step = cache.step(7).unwrap();
        let (context, (key, _)) = run(qkv.clone(), Keys::Cached(step.layer(0)), &module);
        assert_near(key, expected_key.clone(), 1.8e-2);
        assert_near(context, expected_context.clone(), 3e-2);
    }
}

/// Sums of squares that are given take the place of those of the heads.
fn given_sums_are_those_of_all_ranks<B: InferenceBackend>() {
    let norm = QkNorm::new(QkNormKind::RmsOfAllHeads, QkNormWeights::None, 0.0);
    let spec = config(Some(norm)).with_rotary_dim(None).resolve(0).unwrap();
    let qkv = seeded::<B, 3>([2, 3, spec.qkv_width()], 1);
    let positions = Positions::sequential(&[0, 0], 3);
    let run = |sums| {
        let (keys, mask, spec, qkv) = (Keys::Fresh(&positions), AttentionMask::none(), &spec, qkv.clone());
        let (norm, sinks) = (None, None);
        B::Ops::softmax_context(SoftmaxContext {
            qkv,
            norm,
            sums,
            sinks,
            keys,
            given: None,
            mask,
            spec,
            want_keys: true,
        })
        .keys
        .unwrap()
        .0
    };
    let sums = burn_deepspeed::ops::softmax_context::sums_of_squares(qkv.clone(), &spec);
    assert_eq!(sums.dims(), [2, 3, 2]);
    assert_near(run(Some(sums.clone())), run(None), 1e-5);
    assert_near(run(Some(sums * 4.0)), run(None) / 2.0, 1e-5);
}

on_each_backend!(norm_rotation_and_factor_agree_with_plain_loops, given_sums_are_those_of_all_ranks);

#[test]
#[cfg(feature = "autodiff")]
fn the_reference_agrees_with_plain_loops() {
    norm_rotation_and_factor_agree_with_plain_loops::<burn_autodiff::Autodiff<AnyBackend>>();
    given_sums_are_those_of_all_ranks::<burn_autodiff::Autodiff<AnyBackend>>();
}

/// Heads of other sizes, ragged rows, int8 caches and hidden keys.
#[cfg(feature = "autodiff")]
mod steps {
    use super::{DataType, DeepSpeedInferenceConfig, InferenceBackend, QueryFactor, norms};
    use crate::kernels::steps_of_agree_with_the_reference;

    fn agree<B: InferenceBackend>() {
        for (at, [heads, kv_heads, head_dim]) in [[6, 2, 8], [3, 3, 40], [4, 1, 96]].into_iter().enumerate() {
            for norm in norms().into_iter().skip(at).step_by(2) {
                let config = DeepSpeedInferenceConfig::new(24, heads)
                    .with_dtype(DataType::Fp32)
                    .with_head_dim(Some(head_dim))
                    .with_num_kv(Some(kv_heads))
                    .with_rotary_dim(Some(8))
                    .with_qk_norm(Some(norm))
                    .with_query_factor((at == 1).then_some(QueryFactor::llama4(0.5, 16)))
                    .with_num_hidden_layers(Some(1))
                    .with_max_out_tokens(90);
                // normalised values make larger outputs, up to 8
                steps_of_agree_with_the_reference::<B>(&config, if norm.values { 2e-5 } else { 1e-5 });
            }
        }
    }

    crate::common::on_each_cpu_backend!(agree);
}

fn names() -> AttentionNames {
    AttentionNames::new(
        QkvNames::fused("qkv", QkvLayout::PerGroup),
        WeightNames::of("output"),
        Orientation::OutputInput,
    )
    .with_norm(NormNames::of("norm"))
}

fn outputs(module: &DeepSpeedSelfAttention<AnyBackend>) -> Vec<f64> {
    let input = seeded([2, 5, 24], 7);
    values(module.forward_uncached(input, AttentionMask::none(), None).unwrap())
}

#[test]
fn records_keep_the_weights_of_the_norm() {
    let (device, folder) = (Default::default(), tempfile::tempdir().unwrap());
    let plain = module::<AnyBackend>(&config(None)).num_params();
    for (norm, parameters) in norms().into_iter().zip([20, 20, 0, 80, 20, 80, 20, 0]) {
        let module = module::<AnyBackend>(&config(Some(norm)));
        assert_eq!(module.num_params(), plain + parameters);
        let recorder = NamedMpkFileRecorder::<FullPrecisionSettings>::new();
        let path = folder.path().join("attention");
        module.clone().save_file(&path, &recorder).unwrap();
        let fresh = config(Some(norm)).init_self_attention::<AnyBackend>(0, &device).unwrap();
        assert_ne!(outputs(&fresh), outputs(&module));
        assert_eq!(outputs(&fresh.load_file(&path, &recorder, &device).unwrap()), outputs(&module));
    }
}

#[test]
fn new_weights_change_nothing() {
    for kind in [QkNormKind::Rms, QkNormKind::LayerNorm, QkNormKind::RmsOfAllHeads] {
        let module = |weights, plus_one| {
            let norm = QkNorm::new(kind, weights, 1e-5).with_plus_one(plus_one);
            let module = config(Some(norm)).init_self_attention::<AnyBackend>(0, &Default::default()).unwrap();
            let norm = module.query_key_norm().unwrap();
            (values(norm.query()), values(norm.key().unwrap()))
        };
        assert_eq!(module(QkNormWeights::Shared, false), (vec![1.0; 10], vec![1.0; 10]));
        assert_eq!(module(QkNormWeights::PerHead, true), (vec![0.0; 60], vec![0.0; 20]));
    }
}

/// The names that a norm may have in a file.
fn all_names(norm: QkNorm) -> Vec<AttentionNames> {
    let one = names().with_qk_norm(QkNormNames::of("q_norm", "k_norm"));
    let each = names().with_qk_norm(QkNormNames::of_each_head("q_norm.norms", "k_norm.norms"));
    if norm.weights == QkNormWeights::PerHead { vec![one, each] } else { vec![one] }
}

#[test]
fn files_keep_the_weights_of_the_norm_for_any_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for norm in norms() {
        let whole = module::<AnyBackend>(&config(Some(norm)));
        for names in all_names(norm) {
            let mut writer = CheckpointWriter::default();
            whole.write(&mut writer, &names).unwrap();
            writer.save(path("whole")).unwrap();
            let load = |config: &DeepSpeedInferenceConfig| {
                let checkpoint = Checkpoint::open(path("whole")).unwrap();
                let loaded = module::<AnyBackend>(config).load(&checkpoint, &names).unwrap();
                checkpoint.finish().unwrap();
                loaded
            };
            assert_eq!(outputs(&load(&config(Some(norm)))), outputs(&whole));

            // three ranks read the file; two of them share a key head
            let of_rank = |ranks, rank| {
                config(Some(norm)).with_uneven_heads(true).with_mp_size(ranks).with_local_rank(Some(rank))
            };
            let weights = |module: &DeepSpeedSelfAttention<AnyBackend>| {
                module.query_key_norm().map(|norm| (values(norm.query()), values(norm.key().unwrap())))
            };
            let rows = |all: &[f64], heads: std::ops::Range<usize>| match norm.weights {
                QkNormWeights::PerHead => all[heads.start * 10..heads.end * 10].to_vec(),
                _ => all.to_vec(),
            };
            for rank in 0..3 {
                let part = load(&of_rank(3, rank));
                let shard = part.spec().shard;
                let own =
                    |(query, key): (Vec<f64>, Vec<f64>)| (rows(&query, shard.queries()), rows(&key, shard.kv_heads()));
                assert_eq!(weights(&part), weights(&whole).map(own));
                let mut writer = CheckpointWriter::default();
                part.write(&mut writer, &names).unwrap();
                writer.save(path(&format!("rank{rank}"))).unwrap();
            }
            // two ranks read what three wrote
            for rank in 0..2 {
                let split = SplitCheckpoint::open([0, 1, 2].map(|rank| path(&format!("rank{rank}")))).unwrap();
                let part = module::<AnyBackend>(&of_rank(2, rank)).load_split(&split, &names).unwrap();
                assert_eq!(weights(&part), weights(&load(&of_rank(2, rank))));
            }
        }
    }
}

#[test]
fn a_norm_of_each_head_is_read_from_rows_or_from_one_row() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let norm = QkNorm::new(QkNormKind::Rms, QkNormWeights::PerHead, 1e-5);
    let names = names().with_qk_norm(QkNormNames::of("q_norm", "k_norm"));
    let whole = module::<AnyBackend>(&config(Some(norm)));
    let weights = whole.query_key_norm().unwrap();
    let save = |query: Tensor<AnyBackend, 2>, flat: bool| {
        let mut writer = CheckpointWriter::default();
        let plain = config(None).init_self_attention::<AnyBackend>(0, &Default::default()).unwrap();
        plain.write(&mut writer, &names).unwrap();
        let [rows, features] = query.dims();
        match flat {
            true => writer.tensor("q_norm.weight", query.reshape([rows * features])).unwrap(),
            false => writer.tensor("q_norm.weight", query).unwrap(),
        }
        writer.tensor("k_norm.weight", weights.key().unwrap()).unwrap();
        writer.save(&path).unwrap();
    };
    let load = || module::<AnyBackend>(&config(Some(norm))).load(&Checkpoint::open(&path).unwrap(), &names);
    for flat in [false, true] {
        save(weights.query(), flat);
        assert_eq!(values(load().unwrap().query_key_norm().unwrap().query()), values(weights.query()));
        save(weights.query().narrow(0, 0, 5), flat);
        let message = load().unwrap_err().to_string();
        assert!(message.contains("`q_norm.weight`") && message.contains("expects [6, 10]"), "{message}");
    }
}

#[test]
fn weights_of_a_norm_that_are_missing_or_unexpected_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let shared = QkNorm::new(QkNormKind::Rms, QkNormWeights::Shared, 1e-5);
    let named = || names().with_qk_norm(QkNormNames::of("q_norm", "k_norm"));
    let save = |norm, names: &AttentionNames| {
        let mut writer = CheckpointWriter::default();
        module::<AnyBackend>(&config(norm)).write(&mut writer, names)?;
        writer.save(&path)
    };
    let load = |norm, names: &AttentionNames| {
        let checkpoint = Checkpoint::open(&path).unwrap();
        module::<AnyBackend>(&config(norm)).load(&checkpoint, names).map(|_| ()).unwrap_err()
    };
    save(None, &names()).unwrap();
    assert!(matches!(load(Some(shared), &named()), WeightError::Missing { name, .. } if name == "q_norm.weight"));
    save(Some(shared), &named()).unwrap();
    for norm in [None, Some(QkNorm { weights: QkNormWeights::None, ..shared })] {
        let error = load(norm, &named());
        assert!(matches!(&error, WeightError::Unexpected { name, .. } if name == "q_norm.weight"), "{error}");
        assert!(error.to_string().contains("set `qk_norm`"));
    }
    assert!(matches!(load(Some(shared), &names()), WeightError::NoQkNormNames));
    let each = names().with_qk_norm(QkNormNames::of_each_head("q", "k"));
    assert!(load(Some(shared), &each).to_string().contains("such as `q.0.weight`; name one tensor"));
    assert!(matches!(save(Some(shared), &names()), Err(WeightError::NoQkNormNames)));
    assert!(matches!(save(Some(shared), &each), Err(WeightError::SharedHeadWeights(_))));
    let keys = HeadWeightNames::One("missing".into());
    let names = names().with_qk_norm(QkNormNames { query: HeadWeightNames::One("q_norm.weight".into()), key: keys });
    assert!(matches!(load(Some(shared), &names), WeightError::Missing { name, .. } if name == "missing"));
}

#[test]
fn a_norm_without_its_weights_is_a_panic() {
    let spec = |norm| config(Some(norm)).resolve(0).unwrap();
    let shared = QkNorm::new(QkNormKind::Rms, QkNormWeights::Shared, 1e-5);
    let run = |norm: QkNorm, weights: Option<[usize; 2]>, sums: Option<[usize; 3]>| {
        let spec = spec(norm);
        let weights = weights.map(|shape| QueryKeyNorm::<AnyBackend>::new(seeded(shape, 1), Some(seeded(shape, 2))));
        let positions = Positions::sequential(&[0, 0], 3);
        let context = SoftmaxContext {
            qkv: seeded([2, 3, spec.qkv_width()], 1),
            norm: weights.as_ref(),
            sums: sums.map(|shape| seeded(shape, 1)),
            sinks: None,
            keys: Keys::Fresh(&positions),
            given: None,
            mask: AttentionMask::none(),
            spec: &spec,
            want_keys: false,
        };
        let run =
            std::panic::AssertUnwindSafe(|| drop(<AnyBackend as InferenceBackend>::Ops::softmax_context(context)));
        *std::panic::catch_unwind(run).unwrap_err().downcast::<String>().unwrap()
    };
    assert!(run(shared, None, None).contains("`norm` is None, and the layer has a norm with weights"));
    let none = QkNorm { weights: QkNormWeights::None, ..shared };
    assert!(run(none, Some([1, 10]), None).contains("`norm` is given, and the layer has no norm with weights"));
    assert!(run(shared, Some([6, 10]), None).contains("query weights of the norm"));
    assert!(run(shared, Some([1, 10]), Some([2, 3, 2])).contains("`sums` are given"));
    let all = QkNorm { kind: QkNormKind::RmsOfAllHeads, ..shared };
    assert!(run(all, Some([1, 10]), Some([2, 1, 2])).contains("`sums`"));
}

#[cfg(feature = "local")]
mod ranks {
    use burn_deepspeed::parallel::local::LocalCommunicator;

    use super::*;
    use crate::ranks::{on_ranks, prompt_and_steps};

    /// Three ranks have two query heads each, and two of them share a key head.
    #[test]
    fn two_and_three_ranks_agree_with_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        for (at, norm) in norms().into_iter().enumerate() {
            let config =
                config(Some(norm)).with_uneven_heads(true).with_query_factor(Some(QueryFactor::llama4(0.5, 2)));
            let (alone, names) = (module::<AnyBackend>(&config), &all_names(norm)[0]);
            let mut writer = CheckpointWriter::default();
            alone.write(&mut writer, names).unwrap();
            writer.save(&path).unwrap();
            let expected = prompt_and_steps(&alone, &config);
            for ranks in [2, 3] {
                let outputs = on_ranks(LocalCommunicator::group(ranks), |communicator| {
                    let config = config.clone().for_rank_of(&*communicator);
                    let part = module::<AnyBackend>(&config).load(&Checkpoint::open(&path).unwrap(), names).unwrap();
                    // it waits for no other rank
                    part.warmup(1, &[3]).unwrap();
                    prompt_and_steps(&part.with_communicator(communicator).unwrap(), &config)
                });
                for output in outputs {
                    for (rank, alone) in output.iter().zip(&expected) {
                        assert!((rank - alone).abs() < 1e-5, "norm {at} on {ranks} ranks: {rank} and {alone}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_norm_of_all_heads_needs_the_other_ranks_before_anything_is_written() {
        let norm = QkNorm::new(QkNormKind::RmsOfAllHeads, QkNormWeights::Shared, 1e-5);
        let config = config(Some(norm)).with_mp_size(2).with_local_rank(Some(0));
        let (part, mut cache) = (module(&config), config.init_cache::<AnyBackend>(1, &Default::default()).unwrap());
        let mut step = cache.step(2).unwrap();
        let alone = AttentionError::NoCommunicator { rank: 0, ranks: 2 };
        let input = || seeded([1, 2, 24], 1);
        let error = part.forward(input(), AttentionMask::none(), step.layer(0)).map(|_| ()).unwrap_err();
        assert_eq!(error, alone);
        let keys = Keys::Cached(step.layer(0));
        let error = part.forward_partial(input(), AttentionMask::none(), keys, WantedOutputs::NONE);
        assert_eq!(error.map(|_| ()).unwrap_err(), alone);
        let layer = step.layer(0);
        let (key, value) = layer.storage();
        assert!([key, value].iter().all(|side| values(side.dense(9)).iter().all(|element| *element == 0.0)));
    }

    #[test]
    fn ranks_with_other_norms_are_an_error_on_both() {
        let errors = on_ranks(LocalCommunicator::group(2), |communicator| {
            let epsilon = if burn_deepspeed::Communicator::rank(&*communicator) == 0 { 1e-5 } else { 1e-6 };
            let norm = QkNorm::new(QkNormKind::RmsOfAllHeads, QkNormWeights::Shared, epsilon);
            let config = config(Some(norm)).for_rank_of(&*communicator);
            let part = module::<AnyBackend>(&config).with_communicator(communicator).unwrap();
            part.forward_uncached(seeded([1, 2, 24], 1), AttentionMask::none(), None).unwrap_err().to_string()
        });
        assert!(errors.iter().all(|error| error.contains("`qk_norm` is not the same")), "{errors:?}");
    }
}
