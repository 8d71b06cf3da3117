//! Cross attention of a decoder: against plain loops, rows of unequal length, beams, errors, files and ranks.

use burn::tensor::{Bool, Tensor, backend::Backend};
use burn_deepspeed::load::{
    AttentionNames, Checkpoint, CheckpointWriter, NormNames, QkvNames, SplitCheckpoint, WeightNames,
};
use burn_deepspeed::ops::qkv_gemm::normalise;
use burn_deepspeed::weight::{Orientation, Weight};
use burn_deepspeed::{
    AttentionError, AttentionInit, AttentionMask, ConfigError, CrossCache, DataType, DeepSpeedCrossAttention,
    DeepSpeedInferenceConfig, InferenceBackend, NormType, OfBackend, RotaryLayout, WeightError,
};

use crate::attention::randomised;
use crate::checkpoint_writer::assert_same;
use crate::common::{AnyBackend, Loops, TOLERANCE, assert_near, exact_product, on_each_backend, seeded, values};

/// 6 query heads and 2 key heads of 10 features, and a context of 15.
fn config() -> DeepSpeedInferenceConfig {
    DeepSpeedInferenceConfig::new(24, 6)
        .with_dtype(DataType::Fp32)
        .with_head_dim(Some(10))
        .with_num_kv(Some(2))
        .with_norm_type(NormType::RMSNorm)
}

fn module<B: InferenceBackend>(config: &DeepSpeedInferenceConfig) -> DeepSpeedCrossAttention<B> {
    randomised(config.init_cross_attention(15, 0, &Default::default()).unwrap())
}

fn contexts<B: InferenceBackend>(module: &DeepSpeedCrossAttention<B>, lengths: &[usize], seed: u64) -> CrossCache<B> {
    CrossCache::new([module], activations(module, [lengths.len(), 7, 15], seed), lengths).unwrap()
}

/// Values of the element type that the module computes in.
fn activations<B: Backend>(module: &DeepSpeedCrossAttention<B>, shape: [usize; 3], seed: u64) -> Tensor<B, 3> {
    let values = seeded(shape, seed);
    let dtype = module.spec().dtype.of_backend::<B>(&values.device()).unwrap();
    values.cast(dtype)
}

fn run<B: InferenceBackend>(
    module: &DeepSpeedCrossAttention<B>,
    input: Tensor<B, 3>,
    cache: &CrossCache<B>,
) -> Tensor<B, 3> {
    module.forward(input, AttentionMask::none(), cache.layer(0).unwrap()).unwrap()
}

/// A projection in plain loops.
fn projected<B: Backend>(input: Tensor<B, 3>, weight: &Weight<B>) -> Tensor<B, 3> {
    let product = exact_product(input, weight.input_output());
    match weight.bias() {
        Some(bias) => product + bias.unsqueeze(),
        None => product,
    }
}

fn plain_loops_agree<B: InferenceBackend>() {
    let variants = [
        config(),
        config().with_softcap(Some(2.0)).with_score_factor(Some(1.0)),
        config().with_num_kv(None).with_pre_layer_norm(false).with_key_bias(false),
        config()
            .with_norm_type(NormType::LayerNorm)
            .with_qkv_bias(false)
            .with_output_bias(false)
            .with_transposed_mode(true),
    ];
    let lengths = [7, 4, 0];
    for (config, tokens) in variants.iter().zip([1, 11, 2, 9]) {
        let module = module::<B>(config);
        let (input, context) = (seeded::<B, 3>([3, tokens, 24], 1), seeded::<B, 3>([3, 7, 15], 2));
        let bias = seeded::<B, 4>([1, 6, tokens, 7], 3);
        let hidden =
            Tensor::<B, 2, Bool>::from_data([[false, true, false, false, false, false, false]], &Default::default());
        let hidden = hidden.expand([3, 7]);
        let cache = CrossCache::new([&module], context.clone(), &lengths).unwrap();
        let mask = AttentionMask::hide(hidden).with_bias(bias.clone());
        let output = module.forward(input.clone(), mask, cache.layer(0).unwrap()).unwrap();

        let normed = module.norm().map_or(input.clone(), |norm| normalise(input.clone(), norm));
        let heads = |projected: Tensor<B, 3>| {
            let [batch, tokens, width] = projected.dims();
            projected.reshape([batch, tokens, width / 10, 10]).swap_dims(1, 2)
        };
        let bias = values(bias);
        let loops = Loops {
            scale: module.spec().scale,
            softcap: module.spec().softcap,
            slopes: None,
            bias: &|[_, n, t, s]| bias[(n * tokens + t) * 7 + s],
            hides: &|[b, _, _, s]| s == 1 || s >= lengths[b],
        };
        let [key, value] = [module.key(), module.value()].map(|weight| heads(projected(context.clone(), weight)));
        let attended = loops.attend(heads(projected(normed, module.query())), key, value, 0);
        let attended = attended.swap_dims(1, 2).reshape([3, tokens, 60]);
        assert_near(output.clone(), projected(attended, module.output()), 5.0 * TOLERANCE);
        // the row without a context has the bias of the output alone
        let rest = values(output).split_off(2 * tokens * 24);
        let alone = module.output_bias().map_or(vec![0.0; 24], values).repeat(tokens);
        assert_eq!(rest, alone);
    }
}

/// Every kernel reads the rows up to their ends: those of a decoding step and those of a prompt.
fn what_lies_behind_the_end_of_a_row_does_not_matter<B: InferenceBackend>() {
    let module = module::<B>(&config());
    for tokens in [1, 12] {
        let input = seeded::<B, 3>([2, tokens, 24], 1);
        let nan =
            |context: Tensor<B, 3>| Tensor::cat(vec![context.narrow(1, 0, 4), seeded([2, 3, 15], 9) * f32::NAN], 1);
        let (clean, context) = (seeded::<B, 3>([2, 7, 15], 2), nan(seeded([2, 7, 15], 2)));
        let [clean, padded] = [clean, context].map(|context| CrossCache::new([&module], context, &[4, 3]).unwrap());
        assert_near(run(&module, input.clone(), &padded), run(&module, input, &clean), 0.0);
    }
}

fn pieces_give_the_result_of_the_whole<B: InferenceBackend>() {
    let module = module::<B>(&config());
    let cache = contexts(&module, &[5, 7], 2);
    let input = seeded::<B, 3>([2, 12, 24], 1);
    let piece = |(start, tokens)| run(&module, input.clone().narrow(1, start, tokens), &cache);
    let pieces = [(0, 9), (9, 2), (11, 1)].map(piece).to_vec();
    assert_near(Tensor::cat(pieces, 1), run(&module, input, &cache), TOLERANCE);
}

fn rows_are_reordered_and_forgotten<B: InferenceBackend>() {
    let module = module::<B>(&config());
    let mut cache = contexts(&module, &[5, 7, 2], 2);
    assert_eq!((cache.batch(), cache.layers(), cache.tokens(), cache.memory_bytes()), (3, 1, 7, 2 * 3 * 7 * 20 * 4));
    let input = seeded::<B, 3>([1, 2, 24], 1);
    let whole = run(&module, input.clone().expand([3, 2, 24]), &cache);
    cache.reorder(&[2, 0, 0, 1]).unwrap();
    assert_eq!(cache.lengths(), [2, 5, 5, 7]);
    let row = |row: usize| whole.clone().narrow(0, row, 1);
    let beams = Tensor::cat(vec![row(2), row(0), row(0), row(1)], 0);
    let four = || input.clone().expand([4, 2, 24]);
    assert_near(run(&module, four(), &cache), beams.clone(), TOLERANCE);

    assert_eq!(cache.reorder(&[0, 4]).unwrap_err(), AttentionError::NoSuchRow { row: 4, batch: 4 });
    assert_eq!(cache.reset_row(4).unwrap_err(), AttentionError::NoSuchRow { row: 4, batch: 4 });
    assert_near(run(&module, four(), &cache), beams.clone(), TOLERANCE);

    let bias = values(module.output_bias().unwrap());
    cache.reset_row(1).unwrap();
    let output = run(&module, four(), &cache);
    assert_eq!(values(output.clone().narrow(0, 1, 1)), bias.repeat(2));
    assert_near(output.narrow(0, 2, 2), beams.narrow(0, 2, 2), TOLERANCE);
    cache.reset();
    assert_eq!(values(run(&module, four(), &cache)), bias.repeat(8));
    cache.reorder(&[]).unwrap();
    assert_eq!(run(&module, seeded([0, 2, 24], 1), &cache).dims(), [0, 2, 24]);
}

fn no_tokens_give_no_tokens<B: InferenceBackend>() {
    let module = module::<B>(&config());
    let cache = contexts(&module, &[5, 7], 2);
    assert_eq!(run(&module, seeded([2, 0, 24], 1), &cache).dims(), [2, 0, 24]);
    let empty = CrossCache::new([&module], seeded([2, 0, 15], 2), &[0, 0]).unwrap();
    let output = run(&module, seeded([2, 3, 24], 1), &empty);
    assert_eq!(values(output), values(module.output_bias().unwrap()).repeat(6));
}

/// Dense and int8, as separate matrices; a key without a bias stays without one.
fn what_is_written_is_read_back<B: InferenceBackend>() {
    let folder = tempfile::tempdir().unwrap();
    for (dtype, key_bias) in [(DataType::Fp32, true), (DataType::Fp32, false), (DataType::Int8, false)] {
        let config = config().with_dtype(dtype).with_key_bias(key_bias);
        let (path, fresh) = (folder.path().join("layer.safetensors"), module::<B>(&config));
        let mut writer = CheckpointWriter::default();
        fresh.write(&mut writer, &names()).unwrap();
        writer.save(&path).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.contains("attn.k.bias"), key_bias);
        let read = config.init_cross_attention::<B>(15, 0, &Default::default()).unwrap();
        let read = read.load(&checkpoint, &names()).unwrap();
        assert_same(read.query(), fresh.query());
        assert_same(read.key(), fresh.key());
        assert_same(read.value(), fresh.value());
        assert_same(read.output(), fresh.output());
        assert_eq!(values(read.norm().unwrap().gamma()), values(fresh.norm().unwrap().gamma()));
        let result = |module| run(module, activations(module, [1, 3, 24], 1), &contexts(module, &[6], 2));
        assert_near(result(&read), result(&fresh), 0.0);
    }
}

fn names() -> AttentionNames {
    let qkv = QkvNames::separate("attn", ["q", "k", "v"]);
    AttentionNames::new(qkv, WeightNames::of("out"), Orientation::OutputInput).with_norm(NormNames::of("norm"))
}

on_each_backend!(
    plain_loops_agree,
    what_lies_behind_the_end_of_a_row_does_not_matter,
    pieces_give_the_result_of_the_whole,
    rows_are_reordered_and_forgotten,
    no_tokens_give_no_tokens,
    what_is_written_is_read_back,
);

#[test]
fn parts_of_the_ranks_sum_to_the_whole() {
    let (folder, device) = (tempfile::tempdir().unwrap(), Default::default());
    let path = folder.path().join("layer.safetensors");
    let whole = module::<AnyBackend>(&config());
    let mut writer = CheckpointWriter::default();
    whole.write(&mut writer, &names()).unwrap();
    writer.save(&path).unwrap();
    let input = seeded([2, 3, 24], 1);
    let expected = run(&whole, input.clone(), &contexts(&whole, &[5, 7], 2));
    for files in [false, true] {
        let parts = (0..2).map(|rank| {
            let part = config().with_mp_size(2).with_local_rank(Some(rank));
            let part = part.init_cross_attention::<AnyBackend>(15, 0, &device).unwrap();
            let part = match files {
                true => part.load_split(&SplitCheckpoint::open([&path]).unwrap(), &names()).unwrap(),
                false => part.load(&Checkpoint::open(&path).unwrap(), &names()).unwrap(),
            };
            let cache = contexts(&part, &[5, 7], 2);
            let context = || cache.layer(0).unwrap();
            let error = part.forward(input.clone(), AttentionMask::none(), context()).unwrap_err();
            assert!(matches!(error, AttentionError::NoCommunicator { .. }), "{error}");
            part.forward_partial(input.clone(), AttentionMask::none(), context()).unwrap()
        });
        let sum = parts.reduce(|a, b| a + b).unwrap() + whole.output_bias().unwrap().unsqueeze();
        assert_near(sum, expected.clone(), TOLERANCE);
    }
}

#[test]
fn a_bias_of_keys_that_the_layer_does_not_have_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layer.safetensors");
    let mut writer = CheckpointWriter::default();
    module::<AnyBackend>(&config()).write(&mut writer, &names()).unwrap();
    writer.save(&path).unwrap();
    let without = config().with_key_bias(false).init_cross_attention::<AnyBackend>(15, 0, &Default::default()).unwrap();
    let message = without.load(&Checkpoint::open(&path).unwrap(), &names()).unwrap_err().to_string();
    assert!(message.contains("attn.k.bias") && message.contains("set `key_bias` to true"), "{message}");
}

#[test]
fn every_mistake_has_its_own_error() {
    let module = module::<AnyBackend>(&config());
    let new = |shape, lengths: &[usize]| CrossCache::new([&module], seeded(shape, 1), lengths).unwrap_err();
    let what = "the list of lengths";
    assert_eq!(new([2, 7, 15], &[7]), AttentionError::RowCount { what, given: 1, batch: 2 });
    assert_eq!(new([2, 7, 15], &[7, 8]), AttentionError::ContextLength { row: 1, length: 8, tokens: 7 });
    assert_eq!(new([2, 7, 14], &[7, 7]), AttentionError::ContextWidth { layer: 0, expected: 15, actual: 14 });

    let cache = contexts(&module, &[5, 7], 1);
    assert_eq!(cache.layer(1).map(|_| ()).unwrap_err(), AttentionError::NoSuchLayer { layer: 1, layers: 1 });
    let forward = |module: &DeepSpeedCrossAttention<AnyBackend>, rows| {
        module.forward(seeded([rows, 1, 24], 2), AttentionMask::none(), cache.layer(0).unwrap()).unwrap_err()
    };
    assert_eq!(forward(&module, 3), AttentionError::ContextRows { context: 2, input: 3 });
    for other in [config().with_num_kv(None), config().with_head_dim(Some(8))] {
        let error = forward(&self::module(&other), 2);
        assert!(matches!(error, AttentionError::CacheMismatch { .. }), "{error}");
    }

    let device = Default::default();
    let init = |config: DeepSpeedInferenceConfig, width| {
        config.init_cross_attention::<AnyBackend>(width, 0, &device).map(|_| ()).unwrap_err()
    };
    assert!(matches!(init(config(), 0), ConfigError::OutOfRange { key: "context_dim", .. }));
    for other in
        [config().with_rotary(RotaryLayout::Half, 4), config().with_sinks(true), config().with_context_gate(true)]
    {
        let error = init(other, 15);
        assert!(matches!(error, ConfigError::WrongModule { module: "DeepSpeedCrossAttention", .. }), "{error}");
    }
}

#[test]
fn a_layer_without_names_for_its_norm_is_refused() {
    let module = module::<AnyBackend>(&config());
    let qkv = QkvNames::separate("attn", ["q", "k", "v"]);
    let names = AttentionNames::new(qkv, WeightNames::of("out"), Orientation::OutputInput);
    let error = module.write(&mut CheckpointWriter::default(), &names).unwrap_err();
    assert!(matches!(error, WeightError::NoNormNames), "{error}");
}

#[test]
fn a_fused_projection_has_zeros_in_place_of_the_bias_of_keys() {
    let (folder, device) = (tempfile::tempdir().unwrap(), Default::default());
    let (path, config) = (folder.path().join("layer.safetensors"), config().with_key_bias(false));
    let cross = randomised(config.init_cross_attention::<AnyBackend>(24, 0, &device).unwrap());
    let mut writer = CheckpointWriter::default();
    cross.write(&mut writer, &names()).unwrap();
    writer.save(&path).unwrap();
    let own = config.init_self_attention::<AnyBackend>(0, &device).unwrap();
    let own = own.load(&Checkpoint::open(&path).unwrap(), &names()).unwrap();
    let parts = own.qkv().separate(60);
    assert_eq!(values(parts.key.bias().unwrap()), [0.0; 20]);
    assert_same(&parts.value, cross.value());
    assert_same(&parts.query, cross.query());
}
