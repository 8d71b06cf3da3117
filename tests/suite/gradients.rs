//! The gradients of every module against finite differences, for every parameter at once and for the input.

use burn::module::{AutodiffModule, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Bool, Tensor};
use burn_autodiff::Autodiff;
use burn_deepspeed::{
    AttentionInit, AttentionMask, CrossCache, DataType, DeepSpeedInferenceConfig, JointStreams, Keys, KvSource,
    Positions, QkNorm, QkNormKind, QkNormWeights, QueryFactor, RotaryLayout, VaeBlock, WantedOutputs,
};

use crate::attention::{llama, randomised};
use crate::common::seeded;

type Inner = crate::common::AnyBackend;
type B = Autodiff<Inner>;

/// The step of the finite differences, and the largest relative error: f32 leaves about three digits.
const STEP: f32 = 3e-3;
const TOLERANCE: f64 = 1e-2;

/// Moves every parameter by `amount` along its own direction.
struct Move {
    amount: f32,
    seed: u64,
}

impl<T: Backend> ModuleMapper<T> for Move {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<T, D>>) -> Param<Tensor<T, D>> {
        self.seed += 1;
        let (seed, amount) = (self.seed, self.amount);
        param.map(|tensor| {
            let direction = seeded::<T, D>(tensor.dims(), seed);
            (tensor + direction * amount).detach().require_grad()
        })
    }
}

/// The slope of the loss along those directions, from the gradients.
struct Slope<'a> {
    gradients: &'a <B as AutodiffBackend>::Gradients,
    seed: u64,
    sum: f64,
    parameters: usize,
}

impl ModuleVisitor<B> for Slope<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.seed += 1;
        let gradient = param.val().grad(self.gradients).expect("every parameter has a gradient");
        let direction = seeded::<Inner, D>(gradient.dims(), self.seed);
        self.sum += f64::from((gradient * direction).sum().into_scalar());
        self.parameters += 1;
    }
}

#[track_caller]
fn check<M: AutodiffModule<B>>(module: M, shape: [usize; 3], forward: impl Fn(&M, Tensor<B, 3>) -> Tensor<B, 3>) {
    let input = || seeded::<B, 3>(shape, 1);
    let loss = |module: &M, input: Tensor<B, 3>| {
        let output = forward(module, input);
        let weights = seeded::<B, 3>(output.dims(), 2);
        (output * weights).sum()
    };
    let scalar = |loss: Tensor<B, 1>| f64::from(loss.into_scalar());
    let module = randomised(module).map(&mut Move { amount: 0.0, seed: 50 });

    let tracked = input().require_grad();
    let gradients = loss(&module, tracked.clone()).backward();
    let mut slope = Slope { gradients: &gradients, seed: 50, sum: 0.0, parameters: 0 };
    module.visit(&mut slope);
    assert!(slope.parameters >= 3);

    let moved = |amount| module.clone().map(&mut Move { amount, seed: 50 });
    let finite = (scalar(loss(&moved(STEP), input())) - scalar(loss(&moved(-STEP), input()))) / f64::from(2.0 * STEP);
    assert!((slope.sum - finite).abs() <= TOLERANCE * finite.abs().max(1.0), "parameters: {} and {finite}", slope.sum);

    let direction = || seeded::<B, 3>(shape, 3);
    let gradient = tracked.grad(&gradients).expect("the input has a gradient");
    let analytic = f64::from((gradient * direction().inner()).sum().into_scalar());
    let at = |amount| scalar(loss(&module, input() + direction() * amount));
    let finite = (at(STEP) - at(-STEP)) / f64::from(2.0 * STEP);
    assert!((analytic - finite).abs() <= TOLERANCE * finite.abs().max(1.0), "input: {analytic} and {finite}");
}

fn first_key_hidden(batch: usize, tokens: usize) -> AttentionMask<B> {
    let hidden: Vec<bool> = (0..batch * tokens).map(|at| at % tokens == 0).collect();
    let data = burn::tensor::TensorData::new(hidden, [batch, tokens]);
    AttentionMask::hide(Tensor::<B, 2, Bool>::from_data(data, &Default::default()))
}

#[test]
fn self_attention_is_differentiable() {
    for separate in [false, true] {
        let config = llama().with_set_empty_params(separate).with_softcap(Some(3.0));
        // the first token sees nothing: its row is zero, and so is its gradient, not NaN
        check(config.init_self_attention::<B>(0, &Default::default()).unwrap(), [2, 5, 48], |module, input| {
            module.forward_uncached(input, first_key_hidden(2, 5), None).unwrap()
        });
    }
}

#[test]
fn norms_of_queries_and_keys_are_differentiable() {
    for norm in crate::qk_norm::norms() {
        let config = llama().with_qk_norm(Some(norm)).with_query_factor(Some(QueryFactor::llama4(0.5, 2)));
        let module = config.init_self_attention::<B>(0, &Default::default()).unwrap();
        check(module, [2, 5, 48], |module, input| {
            module.forward_uncached(input, first_key_hidden(2, 5), None).unwrap()
        });
    }
}

#[test]
fn keys_that_are_values_and_keys_of_another_layer_are_differentiable() {
    let norm = QkNorm::new(QkNormKind::Rms, QkNormWeights::Shared, 1e-3).with_values(true);
    for norm in [None, Some(norm)] {
        let config = llama().with_qk_norm(norm).with_kv_source(KvSource::KeysAreValues);
        let module = config.init_self_attention::<B>(0, &Default::default()).unwrap();
        check(module, [2, 5, 48], |module, input| {
            module.forward_uncached(input, first_key_hidden(2, 5), None).unwrap()
        });
        // the gradient of the input goes through the keys of the first layer as well
        let layers = [llama(), llama().with_kv_source(KvSource::Layer(0))].map(|config| config.with_qk_norm(norm));
        let layer = |index: usize| layers[index].init_self_attention::<B>(index, &Default::default()).unwrap();
        check(vec![layer(0), layer(1)], [2, 5, 48], |layers, input| {
            let positions = Positions::sequential(&[0, 0], 5);
            let (keys, mask) = (Keys::Fresh(&positions), || first_key_hidden(2, 5));
            let wanted = WantedOutputs::NONE.with_keys(true);
            let first = layers[0].forward_detailed(input, mask(), keys, wanted).unwrap();
            let given = [first.key.unwrap(), first.value.unwrap()];
            layers[1].forward_given(first.output, mask(), given, None).unwrap()
        });
    }
}

#[test]
fn sinks_and_the_gate_are_differentiable() {
    for (sinks, gate) in [(true, false), (false, true), (true, true)] {
        let config = llama().with_sinks(sinks).with_context_gate(gate).with_softcap(Some(3.0));
        let module = config.init_self_attention::<B>(0, &Default::default()).unwrap();
        check(module, [2, 5, 48], |module, input| {
            module.forward_uncached(input, first_key_hidden(2, 5), None).unwrap()
        });
    }
}

#[test]
fn bloom_attention_is_differentiable() {
    let config = DeepSpeedInferenceConfig::new(48, 6).with_dtype(DataType::Fp32).with_bigscience_bloom(true);
    check(config.init_bloom::<B>(0, &Default::default()).unwrap(), [2, 5, 48], |module, input| {
        module.forward_uncached(input, first_key_hidden(2, 5), None).unwrap()
    });
}

#[test]
fn diffusers_attention_is_differentiable() {
    let config = DeepSpeedInferenceConfig::new(40, 5).with_dtype(DataType::Fp32);
    check(config.init_diffusers::<B>(0, &Default::default()).unwrap(), [1, 7, 40], |module, input| {
        module.forward(input, None, AttentionMask::none()).unwrap()
    });
    // a context on the fused projection, which is cut into parts for it
    check(config.init_diffusers::<B>(0, &Default::default()).unwrap(), [1, 7, 40], |module, input| {
        module.forward(input, Some(seeded([1, 3, 40], 9)), AttentionMask::none()).unwrap()
    });
    check(config.init_diffusers_cross::<B>(12, 0, &Default::default()).unwrap(), [1, 7, 40], |module, input| {
        module.forward(input, Some(seeded([1, 3, 12], 9)), AttentionMask::none()).unwrap()
    });
}

/// The context comes from the input, so its gradient goes through the keys and values, and through beams.
#[test]
fn cross_attention_is_differentiable() {
    let config = llama().with_rotary_dim(None);
    check(config.init_cross_attention::<B>(24, 0, &Default::default()).unwrap(), [2, 5, 48], |module, input| {
        let context = input.clone().narrow(2, 10, 24);
        let mut cache = CrossCache::new([module], context, &[5, 3]).unwrap();
        cache.reorder(&[1, 0]).unwrap();
        module.forward(input, AttentionMask::none(), cache.layer(0).unwrap()).unwrap()
    });
}

#[test]
fn attention_of_diffusion_transformers_and_vaes_is_differentiable() {
    let device = Default::default();
    let config = DeepSpeedInferenceConfig::new(40, 5).with_dtype(DataType::Fp32);
    let norm = QkNorm::new(QkNormKind::Rms, QkNormWeights::Shared, 1e-2);
    let rotates = config.clone().with_qk_norm(Some(norm)).with_rotary(RotaryLayout::Interleaved, 8);
    check(rotates.init_joint::<B>(JointStreams::text_first(12), 0, &device).unwrap(), [1, 7, 40], |module, input| {
        let table = module.rotary_table(&Positions::sequential(&[2], 10));
        let output = module.forward(input, Some(seeded([1, 3, 12], 9)), table.as_ref(), AttentionMask::none()).unwrap();
        Tensor::cat(vec![output.image, output.text.unwrap()], 1)
    });
    let block = VaeBlock::default().with_groups(4).with_rescale_output_factor(1.5);
    check(config.init_vae::<B>(block, 0, &device).unwrap(), [1, 40, 6], |module, input| {
        module.forward(input.reshape([1, 40, 2, 3])).unwrap().reshape([1, 40, 6])
    });
}

#[test]
fn cached_attention_is_differentiable() {
    let config = llama();
    check(config.init_self_attention::<B>(0, &Default::default()).unwrap(), [2, 6, 48], |module, input| {
        let mut cache = config.init_cache::<B>(2, &Default::default()).unwrap();
        let mut outputs = Vec::new();
        for (start, tokens) in [(0, 4), (4, 1), (5, 1)] {
            let mut step = cache.step(tokens).unwrap();
            let new = input.clone().narrow(1, start, tokens);
            outputs.push(module.forward(new, AttentionMask::none(), step.layer(0)).unwrap());
            step.commit();
        }
        Tensor::cat(outputs, 1)
    });
}
