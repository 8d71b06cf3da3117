//! Heads to their places.

use std::fmt::Debug;

use burn_deepspeed_core::layout::RotaryLayout;
use burn_deepspeed_core::qk_norm::QkNormKind;
use burn_deepspeed_kernels::cpu::scatter::{AnyFloat, HeadNorm, Places, Rotation, Scatter, scatter, scatter_int8};
use half::{bf16, f16};

use crate::oracle::{self, NORMS, assert_near, noise};

/// A feature of a rotated head.
fn rotated(features: &[f32], rotation: Option<Rotation<'_>>, index: usize, feature: usize) -> f32 {
    let Some(Rotation { cos, sin, half, layout }) = rotation else { return features[feature] };
    if feature >= 2 * half {
        return features[feature];
    }
    let (pair, second) = match layout {
        RotaryLayout::Half => (feature % half, feature >= half),
        RotaryLayout::Interleaved => (feature / 2, feature % 2 == 1),
    };
    let (a, b) = match layout {
        RotaryLayout::Half => (features[pair], features[pair + half]),
        RotaryLayout::Interleaved => (features[2 * pair], features[2 * pair + 1]),
    };
    let (cos, sin) = (cos[index * half + pair], sin[index * half + pair]);
    if second { b * cos + a * sin } else { a * cos - b * sin }
}

/// Elements of 16 bits are what f32 is rounded to, the untouched 9 included.
fn rounds_each<E: AnyFloat + PartialEq + Debug>(problem: &Scatter<'_>, floats: &[f32], round: fn(f32) -> E) {
    let mut cache = vec![round(9.0); floats.len()];
    scatter(problem, &mut cache);
    assert_eq!(cache, floats.iter().map(|float| round(*float)).collect::<Vec<E>>());
}

#[test]
fn every_head_goes_to_its_place_and_nothing_else_changes() {
    for (heads, head_dim, tokens, half) in [(1, 1, 1, 0), (3, 17, 5, 4), (2, 40, 3, 20), (5, 64, 700, 16), (4, 8, 1, 4)]
    {
        let (batch, first) = (3, 7);
        let width = first + heads * head_dim + 5;
        let input = noise(batch * tokens * width, 1);
        let (cos, sin) = (noise(batch * tokens * half, 2), noise(batch * tokens * half, 3));
        let rotation = |layout| Some(Rotation { cos: &cos, sin: &sin, half, layout });
        for rotation in [None, rotation(RotaryLayout::Half), rotation(RotaryLayout::Interleaved)] {
            let head = |row: usize, token: usize, head: usize| {
                let index = row * tokens + token;
                let features = &input[index * width + first + head * head_dim..][..head_dim];
                (0..head_dim).map(|feature| rotated(features, rotation, index, feature)).collect::<Vec<_>>()
            };
            let problem = |places| Scatter {
                input: &input,
                width,
                first,
                heads,
                head_dim,
                tokens,
                norm: None,
                rotation,
                factors: None,
                places,
            };

            let mut packed = vec![f32::NAN; batch * tokens * heads * head_dim];
            scatter(&problem(Places::Packed), &mut packed);
            for (at, features) in packed.chunks(head_dim).enumerate() {
                assert_eq!(features, head(at / heads / tokens, at / heads % tokens, at % heads));
            }

            let slots = tokens + 4;
            let (starts, counts) = ([4, 0, 2], [tokens, tokens / 2, 0]);
            let mut cache = vec![9.0f32; batch * heads * slots * head_dim];
            scatter(&problem(Places::Slots { slots, starts: &starts, counts: &counts }), &mut cache);
            let places = Places::Slots { slots, starts: &starts, counts: &counts };
            rounds_each(&problem(places), &cache, f16::from_f32);
            rounds_each(&problem(places), &cache, bf16::from_f32);
            let mut elements = vec![99; cache.len()];
            let mut scales = vec![9.0; cache.len() / head_dim];
            scatter_int8(&problem(places), &mut elements, &mut scales);
            for (at, features) in cache.chunks(head_dim).enumerate() {
                let (row, slot) = (at / slots / heads, at % slots);
                let token = slot.wrapping_sub(starts[row]);
                let (elements, scale) = (&elements[at * head_dim..][..head_dim], scales[at]);
                if token < counts[row] {
                    assert_eq!(features, head(row, token, at / slots % heads));
                    let largest = features.iter().fold(0.0f32, |largest, feature| largest.max(feature.abs()));
                    assert_eq!(scale, largest / 127.0);
                    for (element, feature) in elements.iter().zip(features) {
                        assert_eq!(f32::from(*element), (feature / scale).round_ties_even());
                    }
                } else {
                    assert!(features.iter().all(|feature| *feature == 9.0));
                    assert!(scale == 9.0 && elements.iter().all(|element| *element == 99));
                }
            }
        }
    }
}

/// Heads, features of a head, tokens, rotated pairs.
const NORMED: [[usize; 4]; 5] = [[1, 2, 1, 0], [3, 17, 5, 4], [2, 40, 3, 20], [4, 96, 2, 16], [1, 64, 300, 32]];

#[test]
fn heads_are_normalised_rotated_and_multiplied_in_this_order() {
    for [heads, head_dim, tokens, half] in NORMED {
        for (at, (kind, plus_one, after_rotation)) in NORMS.into_iter().enumerate() {
            let (batch, first, epsilon) = (2, 3, 0.01f32);
            let width = first + heads * head_dim + 2;
            let input = noise(batch * tokens * width, 1);
            let layout = if at % 2 == 0 { RotaryLayout::Half } else { RotaryLayout::Interleaved };
            let angles = noise(batch * tokens * half, 2);
            let part = |part: fn(f32) -> f32| angles.iter().map(|angle| part(*angle)).collect::<Vec<f32>>();
            let (cos, sin) = (part(f32::cos), part(f32::sin));
            let rotation = (half > 0).then_some(Rotation { cos: &cos, sin: &sin, half, layout });
            let rows = if at % 3 == 0 { 1 } else { heads };
            let (weights, factors) = (noise(rows * head_dim, 3), noise(batch * tokens, 4));
            let weights = (at != 1).then_some(&weights[..]);
            let given = noise(batch * tokens, 5).iter().map(|x| x * x).collect::<Vec<f32>>();
            let of_all = kind == QkNormKind::RmsOfAllHeads;
            let mean_squares = (of_all && plus_one).then_some(&given[..]);
            let norm = Some(HeadNorm { kind, epsilon, weights, plus_one, after_rotation, mean_squares });
            let factors = (at < 4).then_some(&factors[..]);

            let head = |index: usize, head: usize| {
                let token = &input[index * width + first..][..heads * head_dim];
                let token: Vec<f64> = token.iter().map(|x| f64::from(*x)).collect();
                let mean = token.iter().map(|x| x * x).sum::<f64>() / token.len() as f64;
                let mean = of_all.then(|| mean_squares.map_or(mean, |given| f64::from(given[index])));
                let weight = |feature: usize| {
                    let row = if rows == 1 { 0 } else { head };
                    weights.map_or(1.0, |w| f64::from(w[row * head_dim + feature]) + f64::from(u8::from(plus_one)))
                };
                let normed = |x: &[f64]| oracle::normalised(x, kind, f64::from(epsilon), mean, weight);
                let angles: Vec<f64> = angles[index * half..][..half].iter().map(|x| f64::from(*x)).collect();
                let rotated = |x: &[f64]| oracle::rotated(x, layout, &angles);
                let features = &token[head * head_dim..][..head_dim];
                let moved = if after_rotation { normed(&rotated(features)) } else { rotated(&normed(features)) };
                let factor = factors.map_or(1.0, |factors| f64::from(factors[index]));
                moved.into_iter().map(|x| x * factor).collect::<Vec<f64>>()
            };
            let problem = |places| Scatter {
                input: &input,
                width,
                first,
                heads,
                head_dim,
                tokens,
                norm,
                rotation,
                factors,
                places,
            };
            let mut packed = vec![f32::NAN; batch * tokens * heads * head_dim];
            scatter(&problem(Places::Packed), &mut packed);
            let expected: Vec<f64> = (0..batch * tokens * heads).flat_map(|at| head(at / heads, at % heads)).collect();
            let what = format!("{heads} heads of {head_dim}, {kind:?}, 1 + w {plus_one}, after {after_rotation}");
            assert_near(&what, &packed, &expected, 1e-5);

            // int8 rounds what the floats are
            let starts = [0; 2];
            let places = Places::Slots { slots: tokens, starts: &starts, counts: &[tokens; 2] };
            let mut floats = vec![f32::NAN; packed.len()];
            scatter(&problem(places), &mut floats);
            let (mut elements, mut scales) = (vec![99; packed.len()], vec![9.0; batch * tokens * heads]);
            scatter_int8(&problem(places), &mut elements, &mut scales);
            for (at, features) in floats.chunks(head_dim).enumerate() {
                let largest = features.iter().fold(0.0f32, |largest, feature| largest.max(feature.abs()));
                assert_eq!(scales[at], largest / 127.0, "{what}");
                let (head, row) = (at / tokens % heads, at / tokens / heads);
                let same = &packed[((row * tokens + at % tokens) * heads + head) * head_dim..][..head_dim];
                assert_eq!(features, same, "{what}");
                for (element, feature) in elements[at * head_dim..].iter().zip(features) {
                    assert_eq!(f32::from(*element), (feature / scales[at]).round_ties_even(), "{what}");
                }
            }
        }
    }
}

#[test]
fn int8_shows_infinities_and_nans_and_keeps_zeros() {
    let places = Places::Slots { slots: 4, starts: &[0], counts: &[4] };
    let mut input = [0.0, 0.0, 1.0, -2.0, 5.0, f32::NAN, f32::NEG_INFINITY, 1.0];
    let (mut elements, mut scales) = ([9; 8], [9.0; 4]);
    let mut run = |input: &[f32; 8]| {
        let problem = Scatter {
            input,
            width: 2,
            first: 0,
            heads: 1,
            head_dim: 2,
            tokens: 4,
            norm: None,
            rotation: None,
            factors: None,
            places,
        };
        scatter_int8(&problem, &mut elements, &mut scales);
        (elements, scales)
    };
    let (elements, scales) = run(&input);
    assert_eq!(elements, [0, 0, 64, -127, 0, 0, 0, 0]);
    assert!(scales[0] == 0.0 && scales[1] == 2.0 / 127.0 && scales[2].is_nan() && scales[3].is_nan());
    // The smallest positive f32 over 127 has no digits left.
    input[0] = f32::from_bits(1);
    input[1] = -f32::from_bits(200);
    let (elements, scales) = run(&input);
    assert!(scales[0] > 0.0 && elements[0] >= 0 && elements[1] == -100);
}

#[test]
#[should_panic(expected = "2 tokens from slot 3 on, of 4")]
fn a_token_without_a_slot_is_named() {
    let places = Places::Slots { slots: 4, starts: &[3], counts: &[2] };
    let problem = Scatter {
        input: &[0.0; 16],
        width: 8,
        first: 0,
        heads: 2,
        head_dim: 4,
        tokens: 2,
        norm: None,
        rotation: None,
        factors: None,
        places,
    };
    scatter(&problem, &mut [0.0f32; 32]);
}
