//! Rotary positions: layers that differ in one cache, frequencies that depend on the length, and three positions of a token.

use burn::tensor::{Int, Tensor, TensorData};
use burn_deepspeed::ops::SoftmaxContext;
use burn_deepspeed::position::rotary::RopeScaling;
use burn_deepspeed::{
    AttentionInit, AttentionMask, DataType, DeepSpeedInferenceConfig, DeepSpeedSelfAttention, FromTensor,
    InferenceBackend, Keys, Operations, PositionEncoding, Positions, RotaryLayout, RotarySections, SectionOrder,
};

use crate::attention::randomised;
use crate::common::{AnyBackend, assert_near, on_each_backend, seeded, values};

/// 6 query heads and 2 key heads of 10 features, of which 8 rotate.
fn config() -> DeepSpeedInferenceConfig {
    DeepSpeedInferenceConfig::new(24, 6)
        .with_dtype(DataType::Fp32)
        .with_head_dim(Some(10))
        .with_num_kv(Some(2))
        .with_rotary(RotaryLayout::Half, 8)
        .with_num_hidden_layers(Some(1))
        .with_max_out_tokens(20)
}

fn module<B: InferenceBackend>(config: &DeepSpeedInferenceConfig) -> DeepSpeedSelfAttention<B> {
    randomised(config.init_self_attention(0, &Default::default()).unwrap())
}

/// Short sequences have up to 6 tokens.
fn longrope() -> RopeScaling {
    RopeScaling::LongRope {
        short_factor: vec![1.0, 1.1, 1.2, 1.3],
        long_factor: vec![1.5, 3.0, 4.5, 6.0],
        original_max_position_embeddings: 6,
        attention_factor: 1.2,
    }
}

fn layers_of_one_cache_have_their_own_positions<B: InferenceBackend>() {
    let configs = [
        config(),
        config().with_rope_theta(5e5),
        config().with_rope_scaling(RopeScaling::Linear { factor: 4.0 }),
        config().with_rope_scaling(longrope()),
        config()
            .with_rotary(RotaryLayout::Half, 10)
            .with_rope_scaling(RopeScaling::Proportional { factor: 2.0, partial_rotary_factor: 0.5 }),
        config().with_rotary(RotaryLayout::Interleaved, 8),
        config().with_rotary_dim(None),
    ];
    let modules = configs.clone().map(|config| module::<B>(&config));
    let input = seeded::<B, 3>([2, 6, 24], 1);
    let alone = |module: &DeepSpeedSelfAttention<B>| {
        module.forward_uncached(input.clone(), AttentionMask::none(), None).unwrap()
    };
    let expected = modules.each_ref().map(alone);
    // The weights are the same, so only the positions differ.
    for (at, one) in expected.iter().enumerate() {
        for other in &expected[..at] {
            let difference = (one.clone() - other.clone()).abs().max();
            assert!(values(difference)[0] > 1e-4, "layer {at} is like an earlier one");
        }
    }
    let shared = config().with_num_hidden_layers(Some(modules.len()));
    let mut cache = shared.init_cache::<B>(2, &Default::default()).unwrap();
    let mut start = 0;
    for tokens in [3, 1, 2] {
        let mut step = cache.step(tokens).unwrap();
        for (layer, module) in modules.iter().enumerate() {
            let new = input.clone().narrow(1, start, tokens);
            let output = module.forward(new, AttentionMask::none(), step.layer(layer)).unwrap();
            assert_near(output, expected[layer].clone().narrow(1, start, tokens), 1e-5);
        }
        step.commit();
        start += tokens;
    }
}

/// Feeds tokens `from..to`, which belong to a sequence of `length` tokens if that is given.
fn feed<B: InferenceBackend>(
    (module, cache): (&DeepSpeedSelfAttention<B>, &mut burn_deepspeed::KvCache<B>),
    input: &Tensor<B, 3>,
    [from, to]: [usize; 2],
    length: Option<usize>,
) -> Tensor<B, 3> {
    let step = cache.step(to - from).unwrap();
    let mut step = match length {
        // Positions that are given later keep the length.
        Some(length) => {
            let positions = Positions::sequential(&[from], to - from);
            step.with_sequence_length(length).with_positions(positions).unwrap()
        }
        None => step,
    };
    let new = input.clone().narrow(1, from, to - from);
    let output = module.forward(new, AttentionMask::none(), step.layer(0)).unwrap();
    step.commit();
    output
}

fn longrope_rotates_by_the_length_of_the_sequence<B: InferenceBackend>() {
    let config = config().with_rope_scaling(longrope());
    let module = module::<B>(&config);
    let input = seeded::<B, 3>([1, 11, 24], 1);
    let whole =
        |length| module.forward_uncached(input.clone().narrow(1, 0, length), AttentionMask::none(), None).unwrap();
    let last = |tensor: Tensor<B, 3>| tensor.clone().narrow(1, tensor.dims()[1] - 1, 1);
    let differ = |a: Tensor<B, 3>, b: Tensor<B, 3>| values((a - b).abs().max())[0] > 1e-3;

    // A long prompt in pieces: each has to know the whole length.
    let mut cache = config.init_cache::<B>(1, &Default::default()).unwrap();
    for range in [[0, 4], [4, 6], [6, 11]] {
        let expected = whole(11).narrow(1, range[0], range[1] - range[0]);
        assert_near(feed((&module, &mut cache), &input, range, Some(11)), expected, 1e-5);
    }
    cache.reset();
    feed((&module, &mut cache), &input, [0, 4], None);
    assert!(differ(last(feed((&module, &mut cache), &input, [4, 11], None)), last(whole(11))));

    // A short prompt that grows. Keys keep the rotation that they were cached with.
    cache.reset();
    assert_near(feed((&module, &mut cache), &input, [0, 5], None), whole(5), 1e-5);
    assert_near(feed((&module, &mut cache), &input, [5, 6], None), last(whole(6)), 1e-5);
    assert!(config.rope_scaling.changes(6, 7));
    assert!(differ(feed((&module, &mut cache), &input, [6, 7], None), last(whole(7))));
    // As for Phi 3 in `transformers`: at the limit the whole sequence is computed anew.
    cache.reset();
    assert_near(last(feed((&module, &mut cache), &input, [0, 7], None)), last(whole(7)), 1e-5);
    assert!(!config.rope_scaling.changes(7, 8));
    assert_near(feed((&module, &mut cache), &input, [7, 8], None), last(whole(8)), 1e-5);
}

/// Times, heights and widths of 7 tokens in two rows.
fn axes() -> [Vec<i64>; 3] {
    [
        vec![0, 1, 1, 1, 1, 3, 4, 0, 0, 1, 5, 5, 5, 7],
        vec![0, 1, 1, 2, 2, 3, 4, 0, 0, 1, 5, 6, 7, 8],
        vec![0, 1, 2, 1, 2, 3, 4, 0, 0, 1, 6, 5, 6, 8],
    ]
}

fn three_positions_rotate_their_sections<B: InferenceBackend>() {
    let device = Default::default();
    for (pairs, order) in [
        ([1, 1, 2], SectionOrder::Chunked),
        ([2, 1, 1], SectionOrder::Interleaved),
        ([1, 1, 2], SectionOrder::Separate),
    ] {
        let sections = RotarySections { pairs, order };
        for layout in [RotaryLayout::Half, RotaryLayout::Interleaved] {
            let config = config().with_rotary(layout, 8).with_rope_sections(Some(sections));
            let module = module::<B>(&config);
            let spec = module.spec();
            let ids = TensorData::new(axes().concat(), [3, 2, 7]);
            let positions = Positions::from_axes_tensor(Tensor::<B, 3, Int>::from_data(ids, &device)).unwrap();
            assert_eq!(positions, Positions::from_axes(axes(), [2, 7]).unwrap());

            let qkv = seeded::<B, 3>([2, 7, spec.qkv_width()], 1);
            let (keys, mask) = (Keys::Fresh(&positions), AttentionMask::none());
            let arguments = SoftmaxContext {
                qkv: qkv.clone(),
                norm: None,
                sums: None,
                sinks: None,
                keys,
                given: None,
                mask,
                spec,
                want_keys: true,
            };
            let (rotated, _) = B::Ops::softmax_context(arguments).keys.unwrap();
            let PositionEncoding::Rotary(rotary) = &spec.position else { panic!() };
            let (given, rotated) = (values(qkv), values(rotated));
            for (token, (head, pair)) in (0..14).flat_map(|token| (0..8).map(move |at| (token, (at / 4, at % 4)))) {
                let even = -(pair as f64) / 4.0;
                let (axis, power) = match order {
                    SectionOrder::Chunked => ([0, 1, 2, 2][pair], even),
                    SectionOrder::Interleaved => ([0, 1, 2, 0][pair], even),
                    SectionOrder::Separate => ([0, 1, 2, 2][pair], [0.0, 0.0, 0.0, -0.5][pair]),
                };
                let angle = axes()[axis][token] as f64 * rotary.theta.powf(power);
                let (first, second) =
                    if layout == RotaryLayout::Half { (pair, pair + 4) } else { (2 * pair, 2 * pair + 1) };
                let at = token * spec.qkv_width() + spec.query_width() + head * 10;
                let (a, b) = (given[at + first], given[at + second]);
                let out = ((token / 7 * 2 + head) * 7 + token % 7) * 10;
                assert!((rotated[out + first] - (a * angle.cos() - b * angle.sin())).abs() < 1e-5);
                assert!((rotated[out + second] - (b * angle.cos() + a * angle.sin())).abs() < 1e-5);
            }

            // In a cache, in pieces.
            let input = seeded::<B, 3>([2, 7, 24], 2);
            let whole = module.forward_uncached(input.clone(), AttentionMask::none(), Some(&positions)).unwrap();
            let mut cache = config.init_cache::<B>(2, &device).unwrap();
            let mut start = 0;
            for tokens in [4, 1, 2] {
                let piece = axes()
                    .map(|ids| ids.chunks(7).flat_map(|row| row[start..start + tokens].to_vec()).collect::<Vec<_>>());
                let positions = Positions::from_axes(piece, [2, tokens]).unwrap();
                let mut step = cache.step(tokens).unwrap().with_positions(positions).unwrap();
                let output =
                    module.forward(input.clone().narrow(1, start, tokens), AttentionMask::none(), step.layer(0));
                step.commit();
                assert_near(output.unwrap(), whole.clone().narrow(1, start, tokens), 1e-5);
                start += tokens;
            }
        }
    }
}

fn text_in_sections_rotates_as_without_them<B: InferenceBackend>() {
    let sections = RotarySections { pairs: [1, 1, 2], order: SectionOrder::Chunked };
    let module_with = |sections| module::<B>(&config().with_rope_sections(sections));
    let input = seeded::<B, 3>([2, 7, 24], 2);
    let run = |module: DeepSpeedSelfAttention<B>, positions: &Positions| {
        module.forward_uncached(input.clone(), AttentionMask::none(), Some(positions)).unwrap()
    };
    let [ids, ..] = axes();
    let plain = run(module_with(None), &Positions::from_rows(ids.clone(), [2, 7]).unwrap());
    let text = Positions::from_axes([ids.clone(), ids.clone(), ids.clone()], [2, 7]).unwrap();
    assert_near(run(module_with(Some(sections)), &text), plain.clone(), 0.0);
    assert_near(run(module_with(Some(sections)), &Positions::from_rows(ids, [2, 7]).unwrap()), plain, 0.0);
}

on_each_backend!(
    layers_of_one_cache_have_their_own_positions,
    longrope_rotates_by_the_length_of_the_sequence,
    three_positions_rotate_their_sections,
    text_in_sections_rotates_as_without_them
);

#[test]
#[should_panic(expected = "three positions for each token, expected one: the layer has no `rope_sections`")]
fn a_layer_without_sections_refuses_three_positions() {
    let positions = Positions::from_axes(axes(), [2, 7]).unwrap();
    let input = seeded::<AnyBackend, 3>([2, 7, 24], 1);
    let _ = module::<AnyBackend>(&config()).forward_uncached(input, AttentionMask::none(), Some(&positions));
}

#[test]
fn a_negative_position_on_any_axis_is_an_error() {
    for axis in 0..3 {
        let mut axes = axes();
        axes[axis][3] = -1;
        let error = Positions::from_axes(axes, [2, 7]).unwrap_err().to_string();
        assert!(error.contains("contain -1; a position is 0 or more"), "{error}");
    }
}
