//! Each operation against plain loops, on awkward sizes.

use burn::tensor::{Bool, Tensor, TensorData, activation};
use burn_deepspeed::ops::attention::{Visibility, Window};
use burn_deepspeed::ops::pad_transform::{padded_head_size, unpad};
use burn_deepspeed::ops::qkv_gemm::normalise;
use burn_deepspeed::ops::{AdditiveMask, Attention, Softmax};
use burn_deepspeed::position::alibi::slopes;
use burn_deepspeed::spec::NormSpec;
use burn_deepspeed::weight::{FusedNorm, Orientation, QkvWeight, SeparateQkv, Weight};
use burn_deepspeed::{Activation, AttentionMask, InferenceBackend, Operations};

use crate::common::{Loops, TOLERANCE, assert_near, exact_product, on_each_backend, seeded, values};

/// Batch, query heads, key/value heads, new tokens, keys, head size.
const SIZES: [[usize; 6]; 8] = [
    [1, 1, 1, 1, 1, 1],
    [2, 6, 2, 3, 17, 40],
    [1, 4, 1, 1, 65, 80],
    [3, 3, 3, 13, 13, 96],
    [2, 4, 4, 7, 33, 160],
    [1, 7, 1, 5, 5, 3],
    [1, 10, 5, 2, 130, 16],
    [2, 2, 2, 31, 37, 8],
];

fn visibility(causal: bool, window: Option<Window>, start: usize, keys: usize) -> Visibility {
    Visibility { causal, window, starts: vec![start], ends: vec![keys] }
}

fn attention_is_what_plain_loops_compute<B: InferenceBackend>() {
    for (seed, [batch, heads, kv_heads, tokens, keys, dim]) in (0u64..).zip(SIZES) {
        let query = seeded::<B, 4>([batch, heads, tokens, dim], seed) * 3.0;
        let key = seeded::<B, 4>([batch, kv_heads, keys, dim], seed + 100);
        let value = seeded::<B, 4>([batch, kv_heads, keys, dim], seed + 200);
        let bias = seeded::<B, 4>([batch, 1, tokens, keys], seed + 300);
        let bias_values = values(bias.clone());
        let start = keys - tokens;
        let padding = |b: usize, s: usize| s < b % 2 * (keys / 2);
        let hidden: Vec<bool> = (0..batch).flat_map(|b| (0..keys).map(move |s| padding(b, s))).collect();
        let hidden = Tensor::<B, 2, Bool>::from_data(TensorData::new(hidden, [batch, keys]), &Default::default());
        for (causal, window, cap, alibi, biased, padded) in [
            (true, None, None, false, false, false),
            (false, None, None, false, false, false),
            (true, Some(Window::Back(1)), None, false, false, true),
            (true, Some(Window::Back(4)), Some(0.7), false, true, false),
            (true, None, None, true, false, false),
            (false, Some(Window::Back(5)), None, true, true, false),
            (false, Some(Window::Around(3)), None, false, false, true),
            (false, Some(Window::Around(0)), Some(0.7), true, true, false),
            (true, Some(Window::Chunk(4)), None, false, true, false),
            (true, Some(Window::Chunk(5)), None, false, false, true),
            (true, None, Some(2.0), false, true, true),
        ] {
            let slopes = slopes(heads);
            let mut mask = if padded { AttentionMask::hide(hidden.clone()) } else { AttentionMask::none() };
            if biased {
                mask = mask.with_bias(bias.clone());
            }
            let actual = B::Ops::masked_attention(Attention {
                query: query.clone(),
                key: key.clone(),
                value: value.clone(),
                scale: 0.3,
                softcap: cap,
                sinks: None,
                slopes: alibi.then(|| slopes.clone()),
                visibility: visibility(causal, window, start, keys),
                mask,
            });
            let expected = Loops {
                scale: 0.3,
                softcap: cap,
                slopes: alibi.then_some(&slopes),
                bias: &|[b, _, t, s]| if biased { bias_values[(b * tokens + t) * keys + s] } else { 0.0 },
                hides: &|[b, _, t, s]| {
                    (causal && s > start + t)
                        || match window {
                            Some(Window::Back(window)) => s + window <= start + t,
                            Some(Window::Around(reach)) => s.abs_diff(start + t) > reach,
                            Some(Window::Chunk(size)) => {
                                let origin = if padded { (b % 2 * (keys / 2)) as i64 } else { 0 };
                                let chunk = |slot: usize| (slot as i64 - origin).div_euclid(size as i64);
                                chunk(s) != chunk(start + t)
                            }
                            None => false,
                        }
                        || (padded && padding(b, s))
                },
            }
            .attend(query.clone(), key.clone(), value.clone(), start);
            assert_near(actual, expected, TOLERANCE);
        }
    }
}

fn plain<B: InferenceBackend>(
    query: Tensor<B, 4>,
    key: Tensor<B, 4>,
    value: Tensor<B, 4>,
    visibility: Visibility,
) -> Attention<B> {
    let mask = AttentionMask::none();
    Attention { query, key, value, scale: 1.0, softcap: None, sinks: None, slopes: None, visibility, mask }
}

fn a_query_that_sees_nothing_returns_zeros<B: InferenceBackend>() {
    let device = Default::default();
    let (q, k, v) = (seeded::<B, 4>([2, 2, 3, 5], 1), seeded::<B, 4>([2, 2, 3, 5], 2), seeded::<B, 4>([2, 2, 3, 5], 3));
    let all = Tensor::<B, 2, Bool>::from_data([[true, true, true], [false, false, false]], &device);
    let infinite = Tensor::<B, 4>::full([1, 1, 1, 3], f32::NEG_INFINITY, &device);
    let lowest = Tensor::<B, 4>::full([1, 1, 1, 3], f32::MIN, &device);
    let pairs = Tensor::<B, 4>::zeros([1, 1, 3, 3], &device).equal_elem(0.0);
    for (mask, hidden_rows) in [
        (AttentionMask::hide(all), 1),
        (AttentionMask::none().with_bias(infinite), 2),
        (AttentionMask::from_additive(lowest), 2),
        (AttentionMask::none().and_hide_pairs(pairs), 2),
    ] {
        let output = B::Ops::masked_attention(Attention {
            mask,
            ..plain(q.clone(), k.clone(), v.clone(), visibility(true, None, 0, 3))
        });
        let [hidden, seen] = [0..hidden_rows, hidden_rows..2].map(|rows| values(output.clone().slice([rows])));
        assert!(hidden.iter().all(|x| *x == 0.0), "{hidden:?}");
        assert!(seen.iter().all(|x| x.is_finite() && *x != 0.0));
    }
}

fn hidden_nans_never_matter_and_visible_ones_show<B: InferenceBackend>() {
    hidden_nans_never_matter(B::Ops::masked_attention);
    hidden_nans_never_matter::<B>(burn_deepspeed::ops::attention::reference);
}

fn hidden_nans_never_matter<B: InferenceBackend>(attend: fn(Attention<B>) -> Tensor<B, 4>) {
    let q = seeded::<B, 4>([1, 4, 3, 5], 1);
    // As a projection stores them: the heads of a token are contiguous.
    let [k, v] = [2, 3].map(|seed| seeded::<B, 4>([1, 6, 2, 5], seed).swap_dims(1, 2));
    let clean = attend(plain(q.clone(), k.clone(), v.clone(), visibility(true, None, 2, 6)));
    // key 4 is visible to the last query only, key 5 to none
    for bad in [f32::NAN, f32::INFINITY] {
        for side in 0..2 {
            let poison = |at: usize| {
                let bad = Tensor::<B, 4>::full([1, 1, 1, 5], bad, &Default::default());
                let tensor = [k.clone(), v.clone()][side].clone().slice_assign([0..1, 1..2, at..at + 1, 0..5], bad);
                let (k, v) = if side == 0 { (tensor, v.clone()) } else { (k.clone(), tensor) };
                attend(plain(q.clone(), k, v, visibility(true, None, 2, 6)))
            };
            assert_near(poison(5), clean.clone(), 1e-6);
            let output = poison(4);
            assert_near(output.clone().narrow(2, 0, 2), clean.clone().narrow(2, 0, 2), 1e-6);
            // heads 2 and 3 read the poisoned key/value head
            assert_near(output.clone().narrow(1, 0, 2), clean.clone().narrow(1, 0, 2), 1e-6);
            let shown = values(output.slice([0..1, 2..4, 2..3, 0..5]));
            assert!(shown.iter().all(|x| !x.is_finite()), "{bad} in side {side}: {shown:?}");
        }
    }
}

fn masks_of_one_head_do_not_leak_into_another<B: InferenceBackend>() {
    let (q, k, v) = (seeded::<B, 4>([1, 3, 2, 4], 1), seeded::<B, 4>([1, 3, 2, 4], 2), seeded::<B, 4>([1, 3, 2, 4], 3));
    let hide = |_: usize, n: usize, s: usize| n == 1 && s == 0;
    let pairs: Vec<bool> = (0..3).flat_map(|n| (0..2).flat_map(move |_| (0..2).map(move |s| hide(0, n, s)))).collect();
    let pairs = Tensor::<B, 4, Bool>::from_data(TensorData::new(pairs, [1, 3, 2, 2]), &Default::default());
    let mask = AttentionMask::none().and_keep_pairs(pairs.bool_not());
    let actual =
        B::Ops::masked_attention(Attention { mask, ..plain(q.clone(), k.clone(), v.clone(), Visibility::full(2)) });
    let loops = Loops { scale: 1.0, softcap: None, slopes: None, bias: &|_| 0.0, hides: &|[b, n, _, s]| hide(b, n, s) };
    assert_near(actual, loops.attend(q, k, v, 0), TOLERANCE);
}

fn softmax_takes_every_mask_of_deepspeed<B: InferenceBackend>() {
    let [batch, heads, tokens, keys] = [2, 3, 5, 9];
    let scores = seeded::<B, 4>([batch, heads, tokens, keys], 1) * 4.0;
    let alibi = seeded::<B, 3>([7, 1, keys], 2);
    let by_key = seeded::<B, 2>([batch, keys], 3);
    let by_pair = seeded::<B, 4>([batch, 1, tokens, keys], 4);
    for (rank4, triangle, window) in
        [(false, None, None), (true, Some(0), None), (true, Some(4), Some(3)), (false, None, Some(2))]
    {
        let mask = match rank4 {
            true => AdditiveMask::Pairs(by_pair.clone()),
            false => AdditiveMask::Keys(by_key.clone()),
        };
        let probs = B::Ops::softmax(Softmax {
            scale: 0.35,
            alibi: Some(alibi.clone()),
            head_offset: 4,
            mask: Some(mask),
            triangular: triangle,
            window,
            ..Softmax::new(scores.clone())
        });
        let (probs, scores) = (values(probs), values(scores.clone()));
        let (alibi, by_key, by_pair) = (values(alibi.clone()), values(by_key.clone()), values(by_pair.clone()));
        for b in 0..batch {
            for n in 0..heads {
                for t in 0..tokens {
                    let row = ((b * heads + n) * tokens + t) * keys;
                    let at = triangle.unwrap_or(keys - tokens) + t;
                    let weights: Vec<f64> = (0..keys)
                        .map(|s| {
                            let hidden = (triangle.is_some() && s > at) || window.is_some_and(|w| s + w <= at);
                            let mask = if rank4 { by_pair[(b * tokens + t) * keys + s] } else { by_key[b * keys + s] };
                            let score = scores[row + s] * 0.35 + alibi[(4 + n) * keys + s] + mask;
                            if hidden { 0.0 } else { score.exp() }
                        })
                        .collect();
                    let sum: f64 = weights.iter().sum();
                    for (s, weight) in weights.iter().enumerate() {
                        assert!((probs[row + s] - weight / sum).abs() < 1e-6);
                    }
                }
            }
        }
    }
}

fn norm_and_projection_agree_in_every_storage<B: InferenceBackend>() {
    let [batch, tokens, hidden, heads_width, kv_width] = [2, 3, 17, 12, 6];
    let input = seeded::<B, 3>([batch, tokens, hidden], 1) * 5.0 + 1.0;
    let matrix = seeded::<B, 2>([hidden, heads_width + 2 * kv_width], 2);
    let bias = seeded::<B, 1>([heads_width + 2 * kv_width], 3);
    let fused = Weight::new(matrix.clone(), Some(bias.clone()), Orientation::InputOutput);
    let transposed = Weight::new(matrix.transpose(), Some(bias.clone()), Orientation::OutputInput);
    let whole = QkvWeight::Fused(fused.clone());
    let SeparateQkv { query, key, value } = whole.separate(heads_width).into_owned();
    assert_eq!(value.output_size(), kv_width);
    let (gamma, beta) = (seeded::<B, 1>([hidden], 4), seeded::<B, 1>([hidden], 5));
    for rms in [false, true] {
        let beta = (!rms).then(|| beta.clone());
        let norm = FusedNorm::new(gamma.clone(), beta.clone(), NormSpec { rms, epsilon: 1e-5 });
        let expected = {
            let (x, gamma, beta) = (values(input.clone()), values(gamma.clone()), beta.map(values));
            let mut out = Vec::new();
            for row in x.chunks(hidden) {
                let mean = if rms { 0.0 } else { row.iter().sum::<f64>() / hidden as f64 };
                let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / hidden as f64;
                for (i, x) in row.iter().enumerate() {
                    let shift = beta.as_ref().map_or(0.0, |beta| beta[i]);
                    out.push(((x - mean) / (variance + 1e-5).sqrt() * gamma[i] + shift) as f32);
                }
            }
            Tensor::<B, 3>::from_data(TensorData::new(out, [batch, tokens, hidden]), &Default::default())
        };
        let result = B::Ops::qkv_gemm(input.clone(), Some(&norm), &QkvWeight::Fused(fused.clone()), true);
        assert_near(result.inp_norm.unwrap(), expected.clone(), TOLERANCE);
        let product = exact_product(expected, fused.matrix()) + bias.clone().unsqueeze();
        assert_near(result.qkv.clone(), product, 2e-5);
        for other in [
            QkvWeight::Fused(transposed.clone()),
            QkvWeight::Separate(SeparateQkv { query: query.clone(), key: key.clone(), value: value.clone() }),
        ] {
            let again = B::Ops::qkv_gemm(input.clone(), Some(&norm), &other, false);
            assert!(again.inp_norm.is_none());
            assert_near(again.qkv, result.qkv.clone(), TOLERANCE);
        }
    }
    // without a norm the input is projected as it is
    let raw = B::Ops::qkv_gemm(input.clone(), None, &QkvWeight::Fused(fused.clone()), false).qkv;
    assert_near(raw, B::Ops::linear(input, &fused), TOLERANCE);
}

fn the_bias_belongs_to_linear_and_not_to_vector_matmul<B: InferenceBackend>() {
    let input = seeded::<B, 3>([2, 3, 5], 1);
    let bias = seeded::<B, 1>([7], 2);
    let weight = Weight::new(seeded([5, 7], 3), Some(bias.clone()), Orientation::InputOutput);
    let product = B::Ops::vector_matmul(input.clone(), &weight);
    assert_near(product.clone(), exact_product(input.clone(), weight.matrix()), TOLERANCE);
    assert_near(B::Ops::linear(input, &weight), product + bias.unsqueeze(), TOLERANCE);
}

fn operations_between_projections_agree_with_tensor_operations<B: InferenceBackend>() {
    let nothing = || seeded::<B, 3>([1, 0, 5], 1);
    let norm = FusedNorm::new(seeded::<B, 1>([5], 1), None, NormSpec { rms: true, epsilon: 1e-5 });
    assert_eq!(B::Ops::residual_norm(nothing(), nothing(), &norm).dims(), [1, 0, 5]);
    assert_eq!(B::Ops::gelu(nothing()).dims(), [1, 0, 5]);
    assert_eq!(B::Ops::gated_activation(nothing(), nothing(), Activation::Silu).dims(), [1, 0, 5]);
    for shape in [[2, 3, 5], [1, 40, 300]] {
        let (input, residual) = (seeded::<B, 3>(shape, 1), seeded::<B, 3>(shape, 2));
        let [gamma, beta] = [3, 4].map(|seed| seeded::<B, 1>([shape[2]], seed));
        for (rms, beta) in [(true, None), (false, Some(beta))] {
            let norm = FusedNorm::new(gamma.clone(), beta, NormSpec { rms, epsilon: 1e-5 });
            let normed = B::Ops::residual_norm(input.clone(), residual.clone(), &norm);
            assert_near(normed, normalise(input.clone() + residual.clone(), &norm), TOLERANCE);
        }
        let wide = input * 6.0;
        for (function, expected) in [
            (Activation::Gelu, activation::gelu(wide.clone())),
            (Activation::GeluTanh, activation::gelu_approximate(wide.clone())),
            (Activation::Silu, activation::silu(wide.clone())),
        ] {
            assert_near(B::Ops::activation(wide.clone(), function), expected.clone(), TOLERANCE);
            let gated = B::Ops::gated_activation(wide.clone(), residual.clone(), function);
            assert_near(gated, expected * residual.clone(), TOLERANCE);
        }
        assert_near(B::Ops::gelu(wide.clone()), activation::gelu(wide), TOLERANCE);
    }
}

fn attention_on_padded_heads_is_attention_on_the_heads<B: InferenceBackend>() {
    padded_heads_of::<B>(&[31, 64]);
}

fn padded_heads_of_every_size<B: InferenceBackend>() {
    padded_heads_of::<B>(&[1, 31, 32, 40, 64, 80, 96, 128, 160]);
}

fn padded_heads_of<B: InferenceBackend>(dims: &[usize]) {
    for &dim in dims {
        let [q, k, v] = [1, 2, 3].map(|seed| seeded::<B, 4>([1, 2, 5, dim], seed));
        let size = padded_head_size(dim);
        let pad = |heads: &Tensor<B, 4>| B::Ops::pad_transform(heads.clone(), size);
        assert_eq!(pad(&q).dims(), [1, 2, 5, size]);
        assert_near(unpad(pad(&q), dim), q.clone(), 0.0);
        let see = || visibility(true, None, 0, 5);
        let padded = B::Ops::masked_attention(plain(pad(&q), pad(&k), pad(&v), see()));
        let direct = B::Ops::masked_attention(plain(q, k, v, see()));
        assert_near(unpad(padded, dim), direct, 1e-6);
    }
}

// Grids whose kernels a software device compiles for minutes; theirs are in `kernels/tests`.
mod on_the_cpu {
    use super::{attention_is_what_plain_loops_compute, padded_heads_of_every_size};
    crate::common::on_each_cpu_backend!(attention_is_what_plain_loops_compute, padded_heads_of_every_size);
}
on_each_backend!(
    a_query_that_sees_nothing_returns_zeros,
    hidden_nans_never_matter_and_visible_ones_show,
    masks_of_one_head_do_not_leak_into_another,
    softmax_takes_every_mask_of_deepspeed,
    norm_and_projection_agree_in_every_storage,
    the_bias_belongs_to_linear_and_not_to_vector_matmul,
    operations_between_projections_agree_with_tensor_operations,
    attention_on_padded_heads_is_attention_on_the_heads,
);

#[test]
fn heads_are_padded_to_the_sizes_of_fused_kernels() {
    let sizes = [(1, 32), (32, 32), (33, 64), (80, 128), (128, 128), (129, 192), (160, 192), (256, 256)];
    for (head, padded) in sizes {
        assert_eq!(padded_head_size(head), padded);
    }
}

mod panics {
    use super::*;
    type B = crate::common::AnyBackend;
    type Ops = <B as InferenceBackend>::Ops;

    #[test]
    #[should_panic(expected = "attention: `key` has shape [1, 2, 3, 5], expected [1, 2, 3, 4]")]
    fn a_key_of_another_head_size_names_both_shapes() {
        let (q, k, v) = (seeded::<B, 4>([1, 2, 3, 4], 1), seeded([1, 2, 3, 5], 2), seeded([1, 2, 3, 4], 3));
        Ops::masked_attention(plain(q, k, v, Visibility::full(3)));
    }

    #[test]
    #[should_panic(expected = "`mask over keys` has shape [1, 2], expected [1, 3]")]
    fn a_mask_of_the_wrong_length_names_both_shapes() {
        let [q, k, v] = [1, 2, 3].map(|seed| seeded::<B, 4>([1, 2, 3, 4], seed));
        let mask = AttentionMask::keep(Tensor::from_data([[true, true]], &Default::default()));
        Ops::masked_attention(Attention { mask, ..plain(q, k, v, Visibility::full(3)) });
    }

    #[test]
    #[should_panic(expected = "qkv_gemm: `input` has shape [1, 2, 4], expected [1, 2, 3]")]
    fn an_input_of_the_wrong_width_names_both_shapes() {
        let weight = Weight::<B>::new(seeded([3, 6], 1), None, Orientation::InputOutput);
        Ops::qkv_gemm(seeded([1, 2, 4], 2), None, &QkvWeight::Fused(weight), false);
    }
}
