//! Latent attention: against layers of `transformers`, in steps, in int8, and in files.

use burn::tensor::{Bool, DType, Int, Tensor, TensorData};
use burn_deepspeed::load::{Checkpoint, CheckpointWriter, HuggingFaceConfig, LatentNames, ReadTensors};
use burn_deepspeed::weight::Int8Blocks;
use burn_deepspeed::{
    AttentionInit, AttentionMask, ConfigError, DataType, DeepSpeedInferenceConfig, DeepSpeedLatentAttention,
    InferenceBackend, KvCache, KvCacheType, LatentSizes, NormType, RotaryLayout,
};

use crate::attention::randomised;
use crate::common::{AnyBackend, assert_near, golden, on_each_backend, seeded, values};

const PATH: &str = "model.layers.0";
const HIDDEN: usize = 24;

fn sizes() -> LatentSizes {
    LatentSizes::new(14, [9, 6], 7).with_q_lora_rank(Some(10))
}

fn config() -> DeepSpeedInferenceConfig {
    DeepSpeedInferenceConfig::new(HIDDEN, 3)
        .with_dtype(DataType::Fp32)
        .with_norm_type(NormType::RMSNorm)
        .with_rotary(RotaryLayout::Interleaved, 6)
        .with_num_hidden_layers(Some(1))
        .with_max_out_tokens(19)
}

fn module<B: InferenceBackend>(config: &DeepSpeedInferenceConfig) -> DeepSpeedLatentAttention<B> {
    randomised(config.init_latent_attention(&sizes(), 0, &Default::default()).unwrap())
}

fn cache<B: InferenceBackend>(config: &DeepSpeedInferenceConfig) -> KvCache<B> {
    config.init_latent_cache(&sizes(), 2, &Default::default()).unwrap()
}

fn names(sizes: &LatentSizes) -> LatentNames {
    LatentNames::deepseek(&format!("{PATH}.self_attn"), sizes.q_lora_rank.is_some())
        .with_norm(&format!("{PATH}.input_layernorm"))
}

/// The outputs of steps of so many tokens, side by side.
fn steps<B: InferenceBackend>(
    module: &DeepSpeedLatentAttention<B>,
    cache: &mut KvCache<B>,
    input: &Tensor<B, 3>,
    tokens: &[usize],
) -> Tensor<B, 3> {
    let mut start = 0;
    let outputs = tokens.iter().map(|&tokens| {
        let mut step = cache.step(tokens).unwrap();
        let input = input.clone().narrow(1, start, tokens);
        let output = module.forward(input, AttentionMask::none(), step.layer(0)).unwrap();
        step.commit();
        start += tokens;
        output
    });
    Tensor::cat(outputs.collect(), 1)
}

fn layers_of_transformers_are_matched<B: InferenceBackend>() {
    let device = Default::default();
    for name in ["deepseek_v2", "deepseek_v3", "deepseek_v3_half"] {
        let folder = golden("latent").join(name);
        let model = HuggingFaceConfig::from_json_file(folder.join("config.json")).unwrap();
        let (config, sizes) = (model.attention_config(0).with_max_out_tokens(11), model.latent.unwrap());
        let checkpoint = Checkpoint::open(folder.join("model.safetensors")).unwrap();
        let names = model.latent_names(&checkpoint, 0).unwrap();
        let module = config.init_latent_attention::<B>(&sizes, 0, &device).unwrap();
        let module = module.load(&checkpoint, &names).unwrap();
        checkpoint.finish().unwrap();
        let case = Checkpoint::open(folder.join("case.safetensors")).unwrap();
        let [input, expected] =
            ["input", "output"].map(|name| case.tensor::<B, 3>(name, [2, 11, HIDDEN], DType::F32, &device).unwrap());
        let whole = module.forward_uncached(input.clone(), AttentionMask::none(), None).unwrap();
        assert_near(whole, expected.clone(), 2e-5);
        for tokens in [&[11][..], &[9, 2], &[1, 3, 7], &[1; 11]] {
            let mut cache = config.init_latent_cache::<B>(&sizes, 2, &device).unwrap();
            assert_near(steps(&module, &mut cache, &input, tokens), expected.clone(), 2e-5);
        }
    }
}

/// Rows of several lengths, with NaN where a row has no token, and hidden keys.
fn ragged_steps_agree_with_rows_alone<B: InferenceBackend>() {
    let (device, module) = (Default::default(), module::<B>(&config()));
    let input = seeded::<B, 3>([2, 16, HIDDEN], 3);
    for padded in [false, true] {
        let mask = |rows: std::ops::Range<usize>, keys: usize| {
            let hides: Vec<bool> = rows.clone().flat_map(|row| (0..keys).map(move |key| key == 2 + row)).collect();
            let hides = Tensor::<B, 2, Bool>::from_data(TensorData::new(hides, [rows.len(), keys]), &device);
            if padded { AttentionMask::hide(hides) } else { AttentionMask::none() }
        };
        let whole = |row: usize| {
            let input = input.clone().narrow(0, row, 1);
            module.forward_uncached(input, mask(row..row + 1, 16), None).unwrap()
        };
        let expected = [whole(0), whole(1)];
        let (mut cache, mut lengths) = (cache::<B>(&config()), [0, 0]);
        for new in [[10, 5], [1, 1], [0, 3], [2, 1]] {
            let width = new[0].max(new[1]);
            let rows = (0..2).map(|row| {
                let own = || {
                    let tokens = lengths[row]..lengths[row] + new[row];
                    input.clone().slice([row..row + 1, tokens, 0..HIDDEN])
                };
                let nothing = || Tensor::full([1, width - new[row], HIDDEN], f32::NAN, &device);
                match new[row] {
                    0 => nothing(),
                    tokens if tokens == width => own(),
                    _ => Tensor::cat(vec![own(), nothing()], 1),
                }
            });
            let step_input = Tensor::cat(rows.collect(), 0);
            let mut step = cache.step_ragged(width, &new).unwrap();
            let keys = step.keys();
            let output = module.forward(step_input, mask(0..2, keys), step.layer(0)).unwrap();
            step.commit();
            for row in (0..2).filter(|row| new[*row] > 0) {
                let actual = output.clone().slice([row..row + 1, 0..new[row], 0..HIDDEN]);
                assert_near(actual, expected[row].clone().narrow(1, lengths[row], new[row]), 1e-5);
                lengths[row] += new[row];
            }
        }
    }
}

fn a_reordered_cache_continues_the_other_row<B: InferenceBackend>() {
    let module = module::<B>(&config());
    let input = seeded::<B, 3>([2, 12, HIDDEN], 4);
    let swapped = input.clone().select(0, Tensor::<B, 1, Int>::from_ints([1, 0], &Default::default()));
    let expected = module.forward_uncached(swapped.clone(), AttentionMask::none(), None).unwrap();
    let mut cache = cache::<B>(&config());
    steps(&module, &mut cache, &input, &[10]);
    cache.reorder(&[1, 0]).unwrap();
    let output = steps(&module, &mut cache, &swapped.narrow(1, 10, 2), &[1, 1]);
    assert_near(output, expected.narrow(1, 10, 2), 1e-5);
    // Another prompt in the same cache reads nothing of the first.
    cache.reset();
    let whole = module.forward_uncached(input.clone(), AttentionMask::none(), None).unwrap();
    assert_near(steps(&module, &mut cache, &input, &[11, 1]), whole, 1e-5);
}

fn int8_rows_and_weights_are_close<B: InferenceBackend>() {
    let module = module::<B>(&config());
    let input = seeded::<B, 3>([2, 12, HIDDEN], 5);
    let expected = module.forward_uncached(input.clone(), AttentionMask::none(), None).unwrap();
    let int8 = config().with_kv_cache_dtype(KvCacheType::INT8);
    let output = steps(&self::module::<B>(&int8), &mut cache::<B>(&int8), &input, &[10, 1, 1]);
    let errors = values(output.clone() - expected.clone()).into_iter().map(f64::abs).fold(0.0, f64::max);
    assert!(errors > 0.0, "nothing was rounded");
    assert_near(output, expected.clone(), 2e-2);
    if !B::name(&Default::default()).contains("cubecl") {
        let halves = config().with_kv_cache_dtype(DataType::Fp16.into());
        let output = steps(&self::module::<B>(&halves), &mut cache::<B>(&halves), &input, &[10, 1, 1]);
        assert_near(output, expected.clone(), 4e-3);
    }
    let quantised = module.quantize(Int8Blocks::default()).unwrap();
    let output = quantised.forward_uncached(input, AttentionMask::none(), None).unwrap();
    assert_near(output, expected, 5e-2);
}

on_each_backend!(
    layers_of_transformers_are_matched,
    ragged_steps_agree_with_rows_alone,
    a_reordered_cache_continues_the_other_row,
    int8_rows_and_weights_are_close,
);

#[test]
#[cfg(feature = "autodiff")]
fn the_reference_matches_layers_of_transformers() {
    layers_of_transformers_are_matched::<burn_autodiff::Autodiff<AnyBackend>>();
}

#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layer.safetensors");
    let written = module::<AnyBackend>(&config());
    let mut writer = CheckpointWriter::default();
    written.write(&mut writer, &names(&sizes())).unwrap();
    writer.save(&path).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let read = config().init_latent_attention::<AnyBackend>(&sizes(), 0, &Default::default()).unwrap();
    let read = read.load(&checkpoint, &names(&sizes())).unwrap();
    checkpoint.finish().unwrap();
    let input = seeded::<AnyBackend, 3>([2, 5, HIDDEN], 6);
    let run = |module: &DeepSpeedLatentAttention<AnyBackend>, input| {
        module.forward_uncached(input, AttentionMask::none(), None).unwrap()
    };
    assert_near(run(&read, input.clone()), run(&written, input), 0.0);
}

#[test]
fn a_setting_that_latents_do_not_have_is_named() {
    let fails = |config: DeepSpeedInferenceConfig| config.resolve_latent(&sizes(), 0).unwrap_err();
    for (config, fact) in [
        (config().with_sinks(true), "sinks"),
        (config().with_qkv_clip(Some(8.0)), "does not limit queries"),
        (config().with_num_kv(Some(1)), "num_kv"),
        (config().with_rotary(RotaryLayout::Half, 4), "qk_rope_head_dim"),
    ] {
        let error = fails(config);
        assert!(matches!(error, ConfigError::WrongModule { .. }) && error.to_string().contains(fact), "{error}");
    }
}

#[test]
fn a_cache_of_keys_and_values_is_declined() {
    let (device, module) = (Default::default(), module::<AnyBackend>(&config()));
    let other = config().with_num_kv(Some(1)).with_head_dim(Some(20));
    let mut cache = other.init_cache::<AnyBackend>(2, &device).unwrap();
    let mut step = cache.step(1).unwrap();
    let error = module.forward(seeded([2, 1, HIDDEN], 1), AttentionMask::none(), step.layer(0)).unwrap_err();
    assert!(error.to_string().contains("values"), "{error}");
}
