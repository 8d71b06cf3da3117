//! Attention on several ranks gives the result of one rank, and a rank that fails is an error on all of them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use burn::tensor::{Tensor, TensorData};
use burn_deepspeed::load::{
    AttentionNames, Checkpoint, CheckpointWriter, NormNames, QkNormNames, QkvLayout, QkvNames, WeightNames,
};
use burn_deepspeed::parallel::local::LocalCommunicator;
use burn_deepspeed::weight::{Int8Blocks, Orientation};
use burn_deepspeed::{
    AttentionError, AttentionInit, AttentionMask, CommunicationError, Communicator, ConfigError, DataType,
    DeepSpeedDiffusersAttention, DeepSpeedInferenceConfig, DeepSpeedSelfAttention, InferenceBackend, OfBackend,
    WindowKind,
};
use burn_deepspeed_examples::scaling as model;
use proptest::prelude::*;

use crate::attention::{llama, randomised};
use crate::common::{AnyBackend, on_each_cpu_backend, seeded, values};
use crate::ranks::on_ranks;

fn names() -> AttentionNames {
    let qkv = QkvNames::fused("qkv", QkvLayout::PerGroup);
    AttentionNames::new(qkv, WeightNames::of("output"), Orientation::OutputInput)
        .with_norm(NormNames::of("norm"))
        .with_qk_norm(QkNormNames::of("q_norm", "k_norm"))
        .with_sinks("sinks")
}

/// One of the two modules.
#[allow(clippy::large_enum_variant, reason = "a test holds one at a time")]
enum Module<B: InferenceBackend> {
    Cached(DeepSpeedSelfAttention<B>),
    Diffusers(DeepSpeedDiffusersAttention<B>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    Bloom,
    Diffusers,
}

impl<B: InferenceBackend> Module<B> {
    fn init(kind: Kind, config: &DeepSpeedInferenceConfig) -> Self {
        let device = Default::default();
        match kind {
            Kind::Plain => Self::Cached(randomised(config.init_self_attention(0, &device).unwrap())),
            Kind::Bloom => Self::Cached(randomised(config.init_bloom(0, &device).unwrap())),
            Kind::Diffusers => Self::Diffusers(randomised(config.init_diffusers(0, &device).unwrap())),
        }
    }

    fn quantize(self) -> Self {
        let blocks = Int8Blocks::PerOutput;
        match self {
            Self::Cached(module) => Self::Cached(module.quantize(blocks).unwrap()),
            Self::Diffusers(module) => Self::Diffusers(module.quantize(blocks).unwrap()),
        }
    }

    fn save(&self, path: &Path) {
        let mut writer = CheckpointWriter::default();
        match self {
            Self::Cached(module) => module.write(&mut writer, &names()).unwrap(),
            Self::Diffusers(module) => module.write(&mut writer, &names()).unwrap(),
        }
        writer.save(path).unwrap();
    }

    fn on_rank(self, path: &Path, communicator: Arc<LocalCommunicator>) -> Self {
        let checkpoint = Checkpoint::open(path).unwrap();
        match self {
            Self::Cached(module) => {
                Self::Cached(module.load(&checkpoint, &names()).unwrap().with_communicator(communicator).unwrap())
            }
            Self::Diffusers(module) => {
                Self::Diffusers(module.load(&checkpoint, &names()).unwrap().with_communicator(communicator).unwrap())
            }
        }
    }

    /// Outputs of a prompt and what follows, in such pieces; diffusers have no cache and see each piece alone.
    fn run(&self, config: &DeepSpeedInferenceConfig, input: &Tensor<B, 3>, cuts: &[usize]) -> Vec<f64> {
        let mut cache = config.init_cache::<B>(input.dims()[0], &Default::default()).unwrap();
        let (mut start, mut all) = (0, Vec::new());
        // rows of different lengths, left-padded
        let hides: Vec<bool> =
            (0..input.dims()[0] * input.dims()[1]).map(|at| at % input.dims()[1] < at / input.dims()[1]).collect();
        let hides = Tensor::<B, 2, burn::tensor::Bool>::from_data(
            TensorData::new(hides, [input.dims()[0], input.dims()[1]]),
            &Default::default(),
        );
        for &tokens in cuts {
            let new = input.clone().narrow(1, start, tokens);
            let mut step = cache.step(tokens).unwrap();
            let mask = || AttentionMask::hide(hides.clone().narrow(1, 0, start + tokens));
            let output = match self {
                Self::Cached(module) => module.forward(new, mask(), step.layer(0)).unwrap(),
                Self::Diffusers(module) => {
                    let own = AttentionMask::hide(hides.clone().narrow(1, start, tokens));
                    module.forward(new, None, own).unwrap()
                }
            };
            step.commit();
            all.extend(values(output));
            start += tokens;
        }
        all
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Any heads, any ranks, every module, several rows. ALiBi depends on the head's place in the whole model.
    #[test]
    fn ranks_agree_with_one_rank(
        kv_heads in 1usize..5, group in 1usize..4, ranks in 1usize..6, batch in 1usize..4,
        cuts in prop::collection::vec(1usize..6, 1..4), bias: bool, int8: bool, seed: u64,
        kind in prop::sample::select(vec![Kind::Plain, Kind::Bloom, Kind::Diffusers]),
        norm in prop::option::of(prop::sample::select(crate::qk_norm::norms().to_vec())), sinks: bool,
    ) {
        type B = AnyBackend;
        let heads = kv_heads * group;
        let ranks = ranks.min(heads);
        let config = DeepSpeedInferenceConfig::new(20, heads)
            .with_head_dim(Some(6))
            .with_num_kv(Some(kv_heads))
            .with_dtype(if int8 { DataType::Int8 } else { DataType::Fp32 })
            .with_qkv_bias(bias)
            .with_output_bias(bias)
            .with_rotary_dim((kind == Kind::Plain).then_some(4))
            .with_bigscience_bloom(kind == Kind::Bloom)
            .with_qk_norm(norm.filter(|_| kind != Kind::Diffusers))
            .with_sinks(sinks && kind != Kind::Diffusers)
            .with_num_hidden_layers(Some(1))
            .with_uneven_heads(true)
            .with_max_out_tokens(cuts.iter().sum());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let alone = Module::<B>::init(kind, &config.clone().with_dtype(DataType::Fp32));
        let alone = if int8 { alone.quantize() } else { alone };
        alone.save(&path);
        let input = seeded::<B, 3>([batch, cuts.iter().sum(), 20], seed);
        let expected = alone.run(&config, &input, &cuts);
        let bytes = config.cache_memory_bytes::<B>(batch, &Default::default()).unwrap();
        let outputs = on_ranks(LocalCommunicator::group(ranks), |communicator| {
            let config = config.clone().for_rank_of(&*communicator);
            let shard = config.resolve(0).unwrap().shard;
            let own = config.cache_memory_bytes::<B>(batch, &Default::default()).unwrap();
            assert_eq!(own * kv_heads, bytes * shard.kv_len);
            Module::<B>::init(kind, &config).on_rank(&path, communicator).run(&config, &input, &cuts)
        });
        for output in &outputs {
            prop_assert_eq!(output, &outputs[0]); // the same bits on every rank
        }
        for (at, (rank, alone)) in outputs[0].iter().zip(&expected).enumerate() {
            prop_assert!((rank - alone).abs() <= 2e-5 * (1.0 + alone.abs()), "{} of {}: {} and {}", at, expected.len(), rank, alone);
        }
    }
}

const SHORT: Duration = Duration::from_millis(300);

/// One layer on each of two ranks, built by `build`, runs a prompt of five tokens and then, where `second` says so, one more:
/// the error of the first step that fails, and the tokens that the cache holds then.
fn failing<B: InferenceBackend>(
    build: impl Fn(usize, DeepSpeedInferenceConfig) -> DeepSpeedInferenceConfig + Sync,
    tokens: impl Fn(usize, usize) -> Option<usize> + Sync,
) -> Vec<(Option<AttentionError>, usize)> {
    on_ranks(LocalCommunicator::group_with_time_limit(2, SHORT), |communicator| {
        let rank = communicator.rank();
        let config = build(rank, llama().for_rank_of(&*communicator));
        let device = Default::default();
        let attention = config.init_self_attention::<B>(0, &device).unwrap().with_communicator(communicator).unwrap();
        let mut cache = config.init_cache::<B>(1, &device).unwrap();
        for step in 0..3 {
            let Some(tokens) = tokens(rank, step) else { break };
            let dtype = config.dtype.of_backend::<B>(&device).unwrap();
            let mut opened = cache.step(tokens).unwrap();
            let input = seeded::<B, 3>([1, tokens, 48], 7).cast(dtype);
            match attention.forward(input, AttentionMask::none(), opened.layer(0)) {
                Ok(_) => opened.commit(),
                Err(error) => {
                    drop(opened);
                    return (Some(error), cache.len());
                }
            }
        }
        (None, cache.len())
    })
}

fn a_rank_that_leaves_is_an_error_and_its_step_is_not_committed<B: InferenceBackend>() {
    // rank 1 ends after the prompt
    let ends = failing::<B>(|_, config| config, |rank, step| (rank == 0 || step == 0).then_some([5, 1, 1][step]));
    let gone = CommunicationError::Lost { rank: 1, ranks: 2, cause: "it was dropped".into() };
    assert_eq!(ends, [(Some(AttentionError::Communication(gone)), 5), (None, 5)]);
}

fn ranks_that_differ_are_an_error_on_both<B: InferenceBackend>() {
    let both = |difference: &str, ends: Vec<(Option<AttentionError>, usize)>, committed: usize| {
        let differ = CommunicationError::Differ { rank: 1, difference: difference.into() };
        let expected = (Some(AttentionError::Communication(differ)), committed);
        assert_eq!(ends, [expected.clone(), expected]);
    };
    let prompt = |_: usize, step: usize| Some([5, 1, 1][step]);
    let on_rank_1 = |change: fn(DeepSpeedInferenceConfig) -> DeepSpeedInferenceConfig| {
        move |rank: usize, config: DeepSpeedInferenceConfig| if rank == 1 { change(config) } else { config }
    };
    both("the position encoding is not the same", failing::<B>(on_rank_1(|c| c.with_rope_theta(5e5)), prompt), 0);
    both("the window is not the same", failing::<B>(on_rank_1(|c| c.with_local_attention(true)), prompt), 0);
    let chunks = |config: DeepSpeedInferenceConfig, rank: usize| {
        let kind = if rank == 1 { WindowKind::Chunked } else { WindowKind::Backward };
        config.with_local_attention(true).with_window_kind(kind)
    };
    both("the window is not the same", failing::<B>(|rank, config| chunks(config, rank), prompt), 0);
    both("the norm is not the same", failing::<B>(on_rank_1(|c| c.with_layer_norm_eps(1e-5)), prompt), 0);
    both("`max_out_tokens` is not the same", failing::<B>(on_rank_1(|c| c.with_max_out_tokens(16)), prompt), 0);
    both("`softcap` is not the same", failing::<B>(on_rank_1(|c| c.with_softcap(Some(30.0))), prompt), 0);
    both(
        "`kv_cache_dtype` is not the same",
        failing::<B>(on_rank_1(|c| c.with_kv_cache_dtype(DataType::Int8.into())), prompt),
        0,
    );
    both(
        "rank 0 adds [1, 1, 48] of F32, that rank adds [1, 2, 48] of F32",
        failing::<B>(|_, config| config, |rank, step| Some(if step == 0 { 5 } else { 1 + rank })),
        5,
    );
}

/// A rank that has no room for a token does not come to the sum, and says why.
fn a_rank_that_gives_up_is_an_error_on_every_rank<B: InferenceBackend>() {
    let errors = on_ranks(LocalCommunicator::group(2), |communicator| {
        if communicator.rank() == 1 {
            communicator.abort("the KV cache is full");
            return None;
        }
        let config = llama().for_rank_of(&*communicator);
        let attention = config.init_self_attention::<B>(0, &Default::default()).unwrap();
        let attention = attention.with_communicator(communicator).unwrap();
        attention.forward_uncached(seeded([1, 2, 48], 1), AttentionMask::none(), None).err()
    });
    let aborted = CommunicationError::Aborted { rank: 1, reason: "the KV cache is full".into() };
    assert_eq!(errors, [Some(AttentionError::Communication(aborted)), None]);
}

on_each_cpu_backend!(
    a_rank_that_leaves_is_an_error_and_its_step_is_not_committed,
    ranks_that_differ_are_an_error_on_both,
    a_rank_that_gives_up_is_an_error_on_every_rank,
);

#[test]
#[cfg(feature = "flex")]
fn ranks_of_different_types_are_an_error_on_both() {
    let build =
        |rank, config: DeepSpeedInferenceConfig| if rank == 1 { config.with_dtype(DataType::Bf16) } else { config };
    for (error, committed) in failing::<burn_flex::Flex>(build, |_, step| Some([5, 1, 1][step])) {
        assert_eq!(committed, 0);
        assert!(error.unwrap().to_string().contains("`dtype` is not the same"));
    }
}

#[test]
fn a_module_of_another_rank_is_refused() {
    let communicator = LocalCommunicator::group(2).remove(1);
    let refused = |config: DeepSpeedInferenceConfig| {
        let attention = config.init_self_attention::<AnyBackend>(0, &Default::default()).unwrap();
        let alone = Arc::new(LocalCommunicator::group(2).remove(1));
        attention.with_communicator(alone).unwrap_err()
    };
    let error = refused(llama());
    assert_eq!(error, ConfigError::OtherRank { rank: 0, ranks: 1, actual: 1, size: 2 });
    assert!(error.to_string().contains("`for_rank_of`"));
    let other = llama().for_rank_of(&communicator).with_local_rank(Some(0));
    assert_eq!(refused(other), ConfigError::OtherRank { rank: 0, ranks: 2, actual: 1, size: 2 });
}

/// Tensors that require gradients are not summed without autodiff's knowledge.
#[test]
#[cfg(feature = "autodiff")]
fn gradients_do_not_pass_between_ranks() {
    type B = burn_autodiff::Autodiff<AnyBackend>;
    let run = |training: bool| {
        let outputs = on_ranks(LocalCommunicator::group(2), |communicator| {
            let config = llama().for_rank_of(&*communicator);
            let attention = config.init_self_attention::<B>(0, &Default::default()).unwrap().with_training(training);
            let attention = attention.with_communicator(communicator).unwrap();
            attention.forward_uncached(seeded([1, 2, 48], 1), AttentionMask::none(), None).map(|output| output.dims())
        });
        outputs[0].clone()
    };
    assert_eq!(run(true), Err(AttentionError::Communication(CommunicationError::Gradients)));
    assert_eq!(run(false), Ok([1, 2, 48]));
}

/// The model of how steps scale reads the bytes that the modules have, on the rank that has most.
#[test]
fn the_model_of_scaling_counts_what_modules_hold() {
    let config = llama().with_hidden_size(40).with_head_dim(Some(8)).with_uneven_heads(true);
    let layer = model::Layer {
        hidden_size: config.hidden_size,
        heads: config.heads,
        kv_heads: 2,
        head_dim: config.head_size(),
        mlp_size: 0,
        element: 4,
        batch: 3,
        history: config.max_out_tokens,
    };
    for ranks in 1..=config.heads {
        let bytes = (0..ranks).map(|rank| {
            let config = config.clone().with_mp_size(ranks).with_local_rank(Some(rank));
            let spec = config.resolve(0).unwrap();
            let weights = 4 * spec.hidden_size * (spec.qkv_width() + spec.query_width());
            weights + config.cache_memory_bytes::<AnyBackend>(3, &Default::default()).unwrap()
        });
        assert_eq!(layer.largest_part(ranks).unwrap(), bytes.max().unwrap() as f64);
    }
    assert_eq!((layer.sums(), layer.summed()), (1.0, 4.0 * 3.0 * 40.0));
}

#[test]
fn the_model_of_scaling_is_the_one_that_is_documented() {
    let link = model::Link { latency: 3e-6, bandwidth: 5e9 };
    let measured = [256.0, 8e6].map(|bytes| (bytes, link.sum(2, bytes)));
    let fitted = model::fitted(2, measured);
    assert!(
        (fitted.latency / link.latency - 1.0).abs() < 1e-6 && (fitted.bandwidth / link.bandwidth - 1.0).abs() < 1e-6
    );
    let machine = model::Machine { fixed: 0.0, bandwidth: 1e9, devices: 2, inside: link, between: None };
    let layer = model::layers_of_70b()[0].1;
    let (step, sums) = machine.step(&layer, 4).unwrap();
    assert!((step - sums - 2.0 * layer.largest_part(4).unwrap() / 1e9).abs() < 1e-9); // two ranks take turns
    let document = include_str!("../../docs/tensor-parallel.md");
    for row in model::predictions().unwrap() {
        assert!(document.contains(&row), "docs/tensor-parallel.md lacks\n{row}");
    }
}
