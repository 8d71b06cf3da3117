//! What every backend promises: no tokens or rows give empty results, and tensors that do not fit give the same panic before
//! anything is written.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::{Bool, Tensor};
use burn_deepspeed::ops::attention::Visibility;
use burn_deepspeed::ops::{AdditiveMask, Attention, Keys, Softmax, SoftmaxContext, SoftmaxContextOutput};
use burn_deepspeed::spec::NormSpec;
use burn_deepspeed::weight::{FusedNorm, Int8Blocks, Orientation, QkvWeight, SeparateQkv, Weight};
use burn_deepspeed::{
    Activation, AttentionMask, AttentionSpec, DataType, DeepSpeedInferenceConfig, InferenceBackend, KvCache,
    Operations, Positions,
};

use crate::common::{assert_near, on_each_backend, seeded};

/// Shapes of inputs without rows, tokens, or either.
const EMPTY: [[usize; 2]; 3] = [[2, 0], [0, 3], [0, 0]];

fn weight<B: InferenceBackend>(inputs: usize, outputs: usize) -> Weight<B> {
    Weight::new(seeded([outputs, inputs], 1), Some(seeded([outputs], 2)), Orientation::OutputInput)
}

fn norm<B: InferenceBackend>(width: usize) -> FusedNorm<B> {
    FusedNorm::new(seeded([width], 3), Some(seeded([width], 4)), NormSpec { rms: false, epsilon: 1e-5 })
}

/// Four query heads, two key/value heads, head size 8.
fn config() -> DeepSpeedInferenceConfig {
    DeepSpeedInferenceConfig::new(32, 4)
        .with_dtype(DataType::Fp32)
        .with_num_kv(Some(2))
        .with_rotary_dim(Some(8))
        .with_rotate_half(true)
        .with_rotate_every_two(false)
        .with_max_out_tokens(12)
}

fn spec() -> AttentionSpec {
    config().resolve(0).unwrap()
}

fn attention<B: InferenceBackend>(query: [usize; 4], key: [usize; 4]) -> Attention<B> {
    Attention {
        query: seeded(query, 1),
        key: seeded(key, 2),
        value: seeded(key, 3),
        scale: 0.3,
        softcap: None,
        sinks: None,
        slopes: None,
        visibility: Visibility::full(key[2]),
        mask: AttentionMask::none(),
    }
}

fn step<B: InferenceBackend>(
    qkv: Tensor<B, 3>,
    keys: Keys<'_, B>,
    mask: AttentionMask<B>,
    spec: &AttentionSpec,
) -> SoftmaxContextOutput<B> {
    let (norm, sums, sinks) = (None, None, None);
    B::Ops::softmax_context(SoftmaxContext { qkv, norm, sums, sinks, keys, given: None, mask, spec, want_keys: true })
}

fn projections_and_activations_of_nothing_are_empty<B: InferenceBackend>() {
    let dense = weight::<B>(6, 10);
    let int8 = weight::<B>(6, 10).quantize(Int8Blocks::PerOutput).unwrap();
    let norm = norm::<B>(6);
    for [batch, tokens] in EMPTY {
        let input = || seeded::<B, 3>([batch, tokens, 6], 5);
        for weight in [&dense, &int8] {
            assert_eq!(B::Ops::linear(input(), weight).dims(), [batch, tokens, 10]);
            assert_eq!(B::Ops::vector_matmul(input(), weight).dims(), [batch, tokens, 10]);
            let separate = SeparateQkv { query: weight.clone(), key: dense.clone(), value: dense.clone() };
            for (qkv, width) in [(QkvWeight::Fused(weight.clone()), 10), (QkvWeight::Separate(separate), 30)] {
                for norm in [None, Some(&norm)] {
                    let result = B::Ops::qkv_gemm(input(), norm, &qkv, true);
                    assert_eq!(result.qkv.dims(), [batch, tokens, width]);
                    assert_eq!(result.inp_norm.unwrap().dims(), [batch, tokens, 6]);
                }
            }
        }
        assert_eq!(B::Ops::residual_norm(input(), input(), &norm).dims(), [batch, tokens, 6]);
        assert_eq!(B::Ops::gelu(input()).dims(), [batch, tokens, 6]);
        assert_eq!(B::Ops::gated_activation(input(), input(), Activation::Gelu).dims(), [batch, tokens, 6]);
        assert_eq!(B::Ops::context_gate(input(), input()).dims(), [batch, tokens, 6]);
    }
}

fn attention_from_nothing_is_empty_and_to_nothing_is_zero<B: InferenceBackend>() {
    for [batch, tokens] in EMPTY {
        for keys in [0, 5] {
            let context = B::Ops::masked_attention(attention([batch, 4, tokens, 8], [batch, 2, keys, 8]));
            assert_eq!(context.dims(), [batch, 4, tokens, 8]);
            let scores = seeded::<B, 4>([batch, 4, tokens, keys], 1);
            let softmax = Softmax { triangular: Some(0), window: Some(2), ..Softmax::new(scores) };
            assert_eq!(B::Ops::softmax(softmax).dims(), [batch, 4, tokens, keys]);
        }
        let heads = seeded::<B, 4>([batch, 4, tokens, 8], 1);
        assert_eq!(B::Ops::pad_transform(heads, 32).dims(), [batch, 4, tokens, 32]);
    }
    for tokens in [1, 9] {
        let context = B::Ops::masked_attention(attention::<B>([2, 4, tokens, 8], [2, 2, 0, 8]));
        assert_near(context, Tensor::zeros([2, 4, tokens, 8], &Default::default()), 0.0);
        let scores = Softmax::new(seeded::<B, 4>([2, 4, tokens, 0], 1));
        assert_eq!(B::Ops::softmax(scores).dims(), [2, 4, tokens, 0]);
    }
}

fn a_step_of_nothing_is_empty_and_leaves_the_cache<B: InferenceBackend>() {
    let (spec, device) = (spec(), Default::default());
    for [batch, tokens] in EMPTY {
        let qkv = || seeded::<B, 3>([batch, tokens, 64], 1);
        // No positions: there is nothing to rotate.
        let fresh = step(qkv(), Keys::Fresh(&Positions::sequential(&[0], tokens)), AttentionMask::none(), &spec);
        assert_eq!(fresh.context.dims(), [batch, tokens, 32]);
        assert_eq!(fresh.keys.unwrap().0.dims(), [batch, 2, tokens, 8]);
        let mut cache = KvCache::<B>::new(&spec, 1, batch, &device).unwrap();
        for held in [0, 3] {
            if held > 0 {
                let mut first = cache.step(held).unwrap();
                step(seeded([batch, held, 64], 2), Keys::Cached(first.layer(0)), AttentionMask::none(), &spec);
                first.commit();
            }
            let mut none = cache.step(tokens).unwrap();
            let output = step(qkv(), Keys::Cached(none.layer(0)), AttentionMask::none(), &spec);
            assert_eq!(output.context.dims(), [batch, tokens, 32]);
            let seen = if batch == 0 { 0 } else { held };
            assert_eq!(output.keys.unwrap().1.dims(), [batch, 2, seen, 8]);
        }
    }
}

/// The message of the panic.
fn panic_of<R>(call: impl FnOnce() -> R) -> String {
    let Err(payload) = catch_unwind(AssertUnwindSafe(call)) else { panic!("nothing panicked") };
    payload.downcast::<String>().map_or_else(|_| "a panic without a formatted message".into(), |message| *message)
}

fn each_argument_of_an_operation_that_does_not_fit_is_named<B: InferenceBackend>() {
    let (input, square) = (|| seeded::<B, 3>([1, 2, 5], 1), weight::<B>(6, 6));
    let expected = "`input` has shape [1, 2, 5], expected [1, 2, 6]";
    assert_eq!(panic_of(|| B::Ops::linear(input(), &square)), format!("linear: {expected}"));
    assert_eq!(panic_of(|| B::Ops::vector_matmul(input(), &square)), format!("vector_matmul: {expected}"));
    let qkv = QkvWeight::Fused(square);
    let normed = norm::<B>(6);
    for norm in [None, Some(&normed)] {
        assert_eq!(panic_of(|| B::Ops::qkv_gemm(input(), norm, &qkv, false)), format!("qkv_gemm: {expected}"));
    }
    assert_eq!(panic_of(|| B::Ops::residual_norm(input(), input(), &normed)), format!("residual_norm: {expected}"));
    assert_eq!(
        panic_of(|| B::Ops::residual_norm(input(), seeded([1, 2, 6], 2), &norm(5))),
        "residual_norm: `residual` has shape [1, 2, 6], expected [1, 2, 5]"
    );
    assert_eq!(
        panic_of(|| B::Ops::pad_transform(seeded::<B, 4>([1, 2, 3, 8], 1), 7)),
        "pad_transform: heads of 8 features are larger than the requested size 7"
    );
    let scores = || Softmax::new(seeded::<B, 4>([2, 3, 4, 5], 1));
    let mask = |shape| Some(AdditiveMask::Pairs(seeded(shape, 2)));
    assert_eq!(
        panic_of(|| B::Ops::softmax(Softmax { mask: mask([2, 3, 4, 6]), ..scores() })),
        "softmax: `mask` has shape [2, 3, 4, 6], expected [2, 3, 4, 5] or 1 in place of any of them"
    );
    assert_eq!(
        panic_of(|| B::Ops::softmax(Softmax { alibi: Some(seeded([3, 1, 5], 2)), head_offset: 1, ..scores() })),
        "softmax: `alibi` has 3 heads, expected at least 4 (offset 1 and 3 heads)"
    );
}

fn each_argument_of_attention_that_does_not_fit_is_named<B: InferenceBackend>() {
    for tokens in [1, 9] {
        let good = || attention::<B>([2, 4, tokens, 8], [2, 2, 9, 8]);
        let masked = |arguments| panic_of(|| B::Ops::masked_attention(arguments));
        let see = |starts: &[usize], ends: &[usize]| Visibility {
            causal: true,
            window: None,
            starts: starts.to_vec(),
            ends: ends.to_vec(),
        };
        for (arguments, expected) in [
            (
                Attention { key: seeded([2, 2, 7, 8], 1), ..good() },
                "`key` has shape [2, 2, 7, 8], expected [2, 2, 9, 8]",
            ),
            (
                Attention { key: seeded([2, 2, 9, 4], 1), ..good() },
                "`key` has shape [2, 2, 9, 4], expected [2, 2, 9, 8]",
            ),
            (
                Attention { value: seeded([1, 2, 9, 8], 1), ..good() },
                "`value` has shape [1, 2, 9, 8], expected [2, 2, 9, 8]",
            ),
            (Attention { sinks: Some(seeded([3], 1)), ..good() }, "`sinks` has shape [3], expected [4]"),
            (Attention { slopes: Some(vec![0.5; 3]), ..good() }, "`slopes` has shape [3], expected [4]"),
            (
                Attention { visibility: see(&[0; 3], &[9; 3]), ..good() },
                "`visibility.starts` has shape [3], expected [2]",
            ),
            (Attention { visibility: see(&[0], &[9, 9]), ..good() }, "`visibility.ends` has shape [2], expected [1]"),
            (
                Attention { visibility: see(&[0, 0], &[9, 10]), ..good() },
                "`visibility.ends` is 10 for row 1, expected at most the number of keys, 9",
            ),
            (
                Attention { mask: AttentionMask::none().with_bias(seeded([3, 1, 1, 9], 1)), ..good() },
                &format!("`bias` has shape [3, 1, 1, 9], expected [2, 4, {tokens}, 9] or 1 in place of any of them"),
            ),
        ] {
            assert_eq!(masked(arguments), format!("attention: {expected}"));
        }
        let grouped = attention::<B>([2, 3, tokens, 8], [2, 2, 9, 8]);
        assert_eq!(masked(grouped), "attention: `query` has 3 heads, expected a multiple of the 2 heads of `key`");
    }
}

fn a_step_that_does_not_fit_is_a_panic_before_it_writes<B: InferenceBackend>() {
    let (spec, device) = (spec(), Default::default());
    let more_heads = config().with_num_kv(Some(4)).resolve(0).unwrap();
    for tokens in [1, 9] {
        let qkv = |width| seeded::<B, 3>([2, tokens, width], 7);
        let hide = |keys| AttentionMask::hide(Tensor::<B, 2, Bool>::full([2, keys], false, &device));
        let mut cache = KvCache::<B>::new(&spec, 1, 2, &device).unwrap();
        let mut first = cache.step(2).unwrap();
        step(seeded([2, 2, 64], 6), Keys::Cached(first.layer(0)), AttentionMask::none(), &spec);
        first.commit();
        let seen = 2 + tokens;
        for (qkv, mask, spec, expected) in [
            (qkv(63), hide(seen), &spec, format!("`qkv` has shape [2, {tokens}, 63], expected [2, {tokens}, 64]")),
            (
                seeded([2, tokens + 1, 64], 7),
                hide(seen),
                &spec,
                format!("`qkv` has shape [2, {}, 64], expected [2, {tokens}, 64]", tokens + 1),
            ),
            (qkv(64), hide(tokens), &spec, format!("`mask over keys` has shape [2, {tokens}], expected [2, {seen}]")),
            (qkv(96), hide(seen), &more_heads, "`cached keys` has shape [2, 2, 12, 8], expected [2, 4, 12, 8]".into()),
        ] {
            let mut wrong = cache.step(tokens).unwrap();
            let message = panic_of(|| step(qkv, Keys::Cached(wrong.layer(0)), mask, spec));
            assert_eq!(message, format!("softmax_context: {expected}"));
        }
        let mut next = cache.step(tokens).unwrap();
        let (keys, values) = next.layer(0).visible();
        let unwritten = Tensor::<B, 4>::zeros([2, 2, tokens, 8], &device);
        assert_near(keys.narrow(2, 2, tokens), unwritten.clone(), 0.0);
        assert_near(values.narrow(2, 2, tokens), unwritten, 0.0);

        let positions = Positions::sequential(&[0], tokens);
        let message = panic_of(|| step(qkv(64), Keys::Fresh(&positions), AttentionMask::none(), &spec));
        let expected = format!("`positions` has shape [1, {tokens}], expected [2, {tokens}]");
        assert_eq!(message, format!("softmax_context: {expected}"));
    }
}

on_each_backend!(
    projections_and_activations_of_nothing_are_empty,
    attention_from_nothing_is_empty_and_to_nothing_is_zero,
    a_step_of_nothing_is_empty_and_leaves_the_cache,
    each_argument_of_an_operation_that_does_not_fit_is_named,
    each_argument_of_attention_that_does_not_fit_is_named,
    a_step_that_does_not_fit_is_a_panic_before_it_writes,
);
