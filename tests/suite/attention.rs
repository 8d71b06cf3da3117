//! The modules: two routes, one answer.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Bool, Tensor, backend::Backend};
use burn_deepspeed::load::{AttentionNames, Checkpoint, QkvLayout};
use burn_deepspeed::ops::Keys;
use burn_deepspeed::weight::Orientation;
use burn_deepspeed::{
    AttentionError, AttentionInit, AttentionMask, DataType, DeepSpeedInferenceConfig, DeepSpeedSelfAttention,
    InferenceBackend, NormType, Operations, Positions, WantedOutputs,
};

use crate::common::{TOLERANCE, assert_near, golden, on_each_backend, seeded, values};

/// Gives every float parameter random values: new biases are zero, which would hide mistakes.
pub fn randomised<B: Backend, M: Module<B>>(module: M) -> M {
    struct Draw(u64);
    impl<B: Backend> ModuleMapper<B> for Draw {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            self.0 += 1;
            let seed = self.0;
            param.map(|tensor| (seeded::<B, D>(tensor.dims(), seed) * 0.4).cast(tensor.dtype()))
        }
    }
    module.map(&mut Draw(1000))
}

pub fn llama() -> DeepSpeedInferenceConfig {
    DeepSpeedInferenceConfig::new(48, 6)
        .with_dtype(DataType::Fp32)
        .with_layer_norm_eps(1e-6)
        .with_norm_type(NormType::RMSNorm)
        .with_num_kv(Some(2))
        .with_rotary_dim(Some(8))
        .with_rotate_half(true)
        .with_rotate_every_two(false)
        .with_num_hidden_layers(Some(1))
        .with_max_out_tokens(32)
}

fn the_record_of_outputs_is_consistent<B: InferenceBackend>() {
    let device = Default::default();
    let attention: DeepSpeedSelfAttention<B> = randomised(llama().init_self_attention(0, &device).unwrap());
    let mut cache = llama().init_cache::<B>(2, &device).unwrap();
    let first = seeded::<B, 3>([2, 5, 48], 1);
    let mut step = cache.step(5).unwrap();
    attention.forward(first, AttentionMask::none(), step.layer(0)).unwrap();
    step.commit();

    let input = seeded::<B, 3>([2, 3, 48], 2);
    let mut step = cache.step(3).unwrap();
    let keys = Keys::Cached(step.layer(0));
    let all = attention.forward_detailed(input.clone(), AttentionMask::none(), keys, WantedOutputs::ALL).unwrap();
    let (key, context) = (all.key.unwrap(), all.context.unwrap());
    assert_eq!(key.dims(), [2, 2, 8, 8]);
    assert_eq!(all.value.unwrap().dims(), [2, 2, 8, 8]);
    let projected = B::Ops::vector_matmul(context, attention.output()) + attention.output_bias().unwrap().unsqueeze();
    assert_near(all.output.clone(), projected, TOLERANCE);
    let norm = attention.norm().unwrap();
    let expected = burn_deepspeed::ops::qkv_gemm::normalise(input.clone(), norm);
    assert_near(all.inp_norm.unwrap(), expected, TOLERANCE);
    // the same step again, with nothing requested: only the output is computed
    let keys = Keys::Cached(step.layer(0));
    let plain = attention.forward_detailed(input, AttentionMask::none(), keys, WantedOutputs::NONE).unwrap();
    assert!(plain.key.is_none() && plain.value.is_none() && plain.context.is_none() && plain.inp_norm.is_none());
    assert_near(plain.output, all.output, 0.0);
}

fn storage_of_the_weights_does_not_matter<B: InferenceBackend>() {
    let device = Default::default();
    let checkpoint = Checkpoint::open(golden("cases/llama_gqa/tensors.safetensors")).unwrap();
    let names = AttentionNames::deepspeed(&checkpoint, "weights.", QkvLayout::Concat, Orientation::InputOutput);
    let base = DeepSpeedInferenceConfig::new(96, 6).with_qkv_bias(false).with_output_bias(false);
    let base = base.with_num_kv(Some(2)).with_norm_type(NormType::RMSNorm).with_dtype(DataType::Fp32);
    let input = seeded::<B, 3>([2, 5, 96], 1);
    let run = |config: DeepSpeedInferenceConfig| {
        let attention = config.init_self_attention::<B>(0, &device).unwrap().load(&checkpoint, &names).unwrap();
        attention.forward_uncached(input.clone(), AttentionMask::none(), None).unwrap()
    };
    let expected = run(base.clone());
    for (separate, transposed) in [(true, false), (false, true), (true, true)] {
        let config = base.clone().with_set_empty_params(separate).with_transposed_mode(transposed);
        assert_near(run(config), expected.clone(), TOLERANCE);
    }
}

fn a_deferred_output_bias_is_left_to_the_caller<B: InferenceBackend>() {
    let device = Default::default();
    let input = seeded::<B, 3>([1, 4, 48], 1);
    let run = |defer: bool| {
        let config = llama().with_defer_output_bias(defer);
        let attention = randomised(config.init_self_attention::<B>(0, &device).unwrap());
        let output = attention.forward_uncached(input.clone(), AttentionMask::none(), None).unwrap();
        (output, attention.output_bias().unwrap())
    };
    let ((with, bias), (without, _)) = (run(false), run(true));
    assert_near(with, without + bias.unsqueeze(), 1e-6);
}

fn a_post_norm_module_takes_its_input_as_it_is<B: InferenceBackend>() {
    let device = Default::default();
    let config = llama().with_pre_layer_norm(false).with_triangular_masking(false);
    let attention = config.init_self_attention::<B>(0, &device).unwrap();
    assert!(attention.norm().is_none());
    // a norm would make these two inputs the same
    let input = seeded::<B, 3>([1, 4, 48], 1);
    let run = |input| values(attention.forward_uncached(input, AttentionMask::none(), None).unwrap());
    let (one, three) = (run(input.clone()), run(input * 3.0));
    assert!(one.iter().zip(&three).any(|(a, b)| (a - b).abs() > 1e-4));
}

/// The parts of all ranks, summed, and the bias added once.
fn shards_sum_to_the_whole<B: InferenceBackend>() {
    let device = Default::default();
    let input = seeded::<B, 3>([2, 5, 96], 3);
    let gqa = Checkpoint::open(golden("cases/llama_gqa/tensors.safetensors")).unwrap();
    let gqa_names = AttentionNames::deepspeed(&gqa, "weights.", QkvLayout::Concat, Orientation::InputOutput);
    let gqa_config = DeepSpeedInferenceConfig::new(96, 6)
        .with_dtype(DataType::Fp32)
        .with_norm_type(NormType::RMSNorm)
        .with_num_kv(Some(2))
        .with_rotary_dim(Some(16))
        .with_qkv_bias(false)
        .with_output_bias(false);
    let bloom = Checkpoint::open(golden("cases/bloom_6_heads_padded/tensors.safetensors")).unwrap();
    let bloom_names = AttentionNames::deepspeed(&bloom, "weights.", QkvLayout::PerHead, Orientation::InputOutput);
    let bloom_config = DeepSpeedInferenceConfig::new(96, 6).with_dtype(DataType::Fp32).with_bigscience_bloom(true);

    let mask = || {
        let hidden =
            Tensor::<B, 2, Bool>::from_data([[true, true, false, false, false], [false; 5]], &Default::default());
        AttentionMask::hide(hidden)
    };
    let positions = Positions::sequential(&[0, 0], 5);
    for ranks in [1, 2, 3, 6] {
        let rank =
            |config: &DeepSpeedInferenceConfig, rank| config.clone().with_mp_size(ranks).with_local_rank(Some(rank));
        if ranks != 3 {
            let whole = gqa_config.init_self_attention::<B>(0, &device).unwrap().load(&gqa, &gqa_names).unwrap();
            let expected = whole.forward_uncached(input.clone(), mask(), None).unwrap();
            let parts = (0..ranks).map(|r| {
                let part =
                    rank(&gqa_config, r).init_self_attention::<B>(0, &device).unwrap().load(&gqa, &gqa_names).unwrap();
                assert_eq!(part.spec().kv_heads(), if ranks == 1 { 2 } else { 1 });
                part.forward_partial(input.clone(), mask(), Keys::Fresh(&positions), WantedOutputs::NONE)
                    .unwrap()
                    .output
            });
            assert_near(parts.reduce(|a, b| a + b).unwrap(), expected, 2e-5);
        }
        let whole = bloom_config.init_bloom::<B>(0, &device).unwrap().load(&bloom, &bloom_names).unwrap();
        let expected = whole.forward_uncached(input.clone(), mask(), None).unwrap();
        let parts = (0..ranks).map(|r| {
            let part = rank(&bloom_config, r).init_bloom::<B>(0, &device).unwrap().load(&bloom, &bloom_names).unwrap();
            part.forward_partial(input.clone(), mask(), Keys::Fresh(&positions), WantedOutputs::NONE).unwrap().output
        });
        let sum = parts.reduce(|a, b| a + b).unwrap();
        assert_near(sum + whole.output_bias().unwrap().unsqueeze(), expected, 2e-5);
    }
}

fn diffusers_shards_sum_to_the_whole<B: InferenceBackend>() {
    let device = Default::default();
    let checkpoint = Checkpoint::open(golden("cases/diffusers_cross_same_dim/tensors.safetensors")).unwrap();
    let names = AttentionNames::deepspeed(&checkpoint, "weights.", QkvLayout::Concat, Orientation::InputOutput);
    let config = DeepSpeedInferenceConfig::new(64, 4).with_dtype(DataType::Fp32).with_qkv_bias(false);
    let (input, context) = (seeded::<B, 3>([1, 6, 64], 1), seeded::<B, 3>([1, 3, 64], 2));
    let load = |config: DeepSpeedInferenceConfig| {
        config.init_diffusers_cross::<B>(64, 0, &device).unwrap().load(&checkpoint, &names).unwrap()
    };
    let whole = load(config.clone());
    let expected = whole.forward(input.clone(), Some(context.clone()), AttentionMask::none()).unwrap();
    let parts = (0..4).map(|rank| {
        let part = load(config.clone().with_mp_size(4).with_local_rank(Some(rank)));
        part.forward_partial(input.clone(), Some(context.clone()), AttentionMask::none())
    });
    let sum = parts.reduce(|a, b| a + b).unwrap() + whole.output_bias().unwrap().unsqueeze();
    assert_near(sum, expected, TOLERANCE);
}

fn context_keys_hold_over_diffusion_steps<B: InferenceBackend>() {
    let device = Default::default();
    let config = DeepSpeedInferenceConfig::new(40, 5).with_dtype(DataType::Fp32);
    for context_dim in [12, 40, 77] {
        let attention = randomised(config.init_diffusers_cross::<B>(context_dim, 0, &device).unwrap());
        let context = seeded::<B, 3>([2, 7, context_dim], 1);
        let keys = attention.context_keys(context.clone());
        for seed in 2..5 {
            let input = seeded::<B, 3>([2, 9, 40], seed);
            let once = attention.forward_with_keys(input.clone(), &keys, AttentionMask::none()).unwrap();
            assert_near(once, attention.forward(input, Some(context.clone()), AttentionMask::none()).unwrap(), 0.0);
        }
    }
}

fn a_diffusers_mask_hides_the_context<B: InferenceBackend>() {
    let device = Default::default();
    let config = DeepSpeedInferenceConfig::new(40, 5).with_dtype(DataType::Fp32);
    let attention = randomised(config.init_diffusers_cross::<B>(12, 0, &device).unwrap());
    let input = seeded::<B, 3>([1, 9, 40], 1);
    let (short, noise) = (seeded::<B, 3>([1, 4, 12], 2), seeded::<B, 3>([1, 3, 12], 3) * f32::NAN);
    let long = Tensor::cat(vec![short.clone(), noise], 1);
    let keep = Tensor::<B, 2, Bool>::from_data([[true, true, true, true, false, false, false]], &device);
    let masked = attention.forward(input.clone(), Some(long), AttentionMask::keep(keep)).unwrap();
    assert_near(masked, attention.forward(input, Some(short), AttentionMask::none()).unwrap(), TOLERANCE);
}

fn one_diffusers_module_does_self_and_cross<B: InferenceBackend>() {
    let device = Default::default();
    let config = DeepSpeedInferenceConfig::new(40, 5).with_dtype(DataType::Fp32);
    let fused = randomised(config.init_diffusers::<B>(0, &device).unwrap());
    let input = seeded::<B, 3>([1, 9, 40], 1);
    // attending to a context that is the input is attending to oneself
    let itself = fused.forward(input.clone(), None, AttentionMask::none()).unwrap();
    assert_near(fused.forward(input.clone(), Some(input.clone()), AttentionMask::none()).unwrap(), itself, TOLERANCE);
    let separate = randomised(config.with_set_empty_params(true).init_diffusers::<B>(0, &device).unwrap());
    let itself = separate.forward(input.clone(), None, AttentionMask::none()).unwrap();
    assert_near(separate.forward(input.clone(), Some(input), AttentionMask::none()).unwrap(), itself, TOLERANCE);
}

/// Burn draws a parameter when it is first read, and a clone of an unread one draws again.
fn fresh_modules_answer_twice_the_same<B: InferenceBackend>() {
    let device = Default::default();
    let config = DeepSpeedInferenceConfig::new(40, 5).with_dtype(DataType::Fp32);
    let cross = config.init_diffusers_cross::<B>(12, 0, &device).unwrap();
    let separate = llama().with_set_empty_params(true).init_self_attention::<B>(0, &device).unwrap();
    let (image, context) = (seeded::<B, 3>([1, 4, 40], 1), seeded::<B, 3>([1, 3, 12], 2));
    let again = || cross.forward(image.clone(), Some(context.clone()), AttentionMask::none()).unwrap();
    assert_near(again(), again(), 0.0);
    let input = seeded::<B, 3>([1, 4, 48], 3);
    let again = || separate.forward_uncached(input.clone(), AttentionMask::none(), None).unwrap();
    assert_near(again(), again(), 0.0);
}

mod on_the_cpu {
    use super::shards_sum_to_the_whole;
    crate::common::on_each_cpu_backend!(shards_sum_to_the_whole);
}
on_each_backend!(
    fresh_modules_answer_twice_the_same,
    the_record_of_outputs_is_consistent,
    storage_of_the_weights_does_not_matter,
    a_deferred_output_bias_is_left_to_the_caller,
    a_post_norm_module_takes_its_input_as_it_is,
    diffusers_shards_sum_to_the_whole,
    context_keys_hold_over_diffusion_steps,
    a_diffusers_mask_hides_the_context,
    one_diffusers_module_does_self_and_cross,
);

#[test]
fn the_scale_follows_the_configuration() {
    let scale = |config: DeepSpeedInferenceConfig| config.resolve(3).unwrap().scale;
    let base = DeepSpeedInferenceConfig::new(64, 4);
    assert_eq!(scale(base.clone()), 0.25);
    assert_eq!(scale(base.clone().with_use_mup(true)), 1.0 / 16.0);
    assert_eq!(scale(base.clone().with_scale_attention(false)), 1.0);
    assert_eq!(scale(base.with_scale_attn_by_inverse_layer_idx(true)), 0.25 / 4.0);
}

#[test]
fn several_ranks_without_a_communicator_are_an_error() {
    let config = llama().with_mp_size(2).with_local_rank(Some(1));
    let attention = config.init_self_attention::<crate::common::AnyBackend>(0, &Default::default()).unwrap();
    let error = attention.forward_uncached(seeded([1, 2, 48], 1), AttentionMask::none(), None).unwrap_err();
    assert_eq!(error, AttentionError::NoCommunicator { rank: 1, ranks: 2 });
    assert!(error.to_string().contains("forward_partial"));
}

#[test]
#[cfg(feature = "flex")]
fn half_precision_modules_compute_in_half_precision() {
    use burn::tensor::DType;
    type B = burn_flex::Flex;
    for (dtype, element) in [(DataType::Fp16, DType::F16), (DataType::Bf16, DType::BF16)] {
        let config = llama().with_dtype(dtype);
        let attention = config.init_self_attention::<B>(0, &Default::default()).unwrap();
        let mut cache = config.init_cache::<B>(1, &Default::default()).unwrap();
        assert_eq!(cache.memory_bytes(), 2 * 2 * 8 * 32 * 2);
        let mut step = cache.step(3).unwrap();
        let input = seeded::<B, 3>([1, 3, 48], 1).cast(element);
        let output = attention.forward(input, AttentionMask::none(), step.layer(0)).unwrap();
        assert_eq!(output.dtype(), element);
    }
}
