//! A few new tokens on a cache.

use burn_deepspeed_kernels::cpu::decode::{Decode, DecodeShape, decode};

use crate::oracle::{Problem, assert_near};
use crate::problem::{TOLERANCE, Tensors};

/// `[batch, tokens, heads, head_dim]`.
fn context(problem: &Problem, tensors: &Tensors) -> Vec<f32> {
    let Problem { batch, heads, kv_heads, tokens, capacity, head_dim, .. } = *problem;
    let shape = DecodeShape { batch, heads, kv_heads, tokens, capacity, head_dim };
    let Tensors { query, key, value, .. } = tensors;
    let mut output = vec![f32::NAN; query.len()];
    let masks = tensors.masks(problem);
    decode(&Decode { shape, query, key, value, scale: problem.scale(), masks }, &mut output);
    let heads_of = |row: usize| (0..tokens).flat_map(move |token| (0..heads).map(move |head| (row, token, head)));
    (0..batch)
        .flat_map(heads_of)
        .flat_map(|(row, token, head)| &output[((row * heads + head) * tokens + token) * head_dim..][..head_dim])
        .copied()
        .collect()
}

fn check(problem: &Problem) {
    let tensors = Tensors::new(problem);
    let expected = tensors.expected(problem);
    assert_near(&format!("{problem:?}"), &context(problem, &tensors), &expected, TOLERANCE);
}

#[test]
fn every_mask_agrees_with_plain_loops() {
    for (sizes, ends) in [
        ([1, 1, 1, 1, 1], vec![1]),
        ([6, 2, 1, 70, 40], vec![65, 4]),
        ([4, 4, 3, 131, 80], vec![130, 3, 62]),
        ([7, 1, 5, 200, 96], vec![195]),
        ([2, 1, 2, 130, 160], vec![65, 130]),
        ([3, 3, 4, 9, 17], vec![4, 0]),
    ] {
        // Pairs and biases are left to `flash`.
        let masked = Problem::new(sizes, &ends).masked();
        masked.iter().filter(|problem| !problem.hidden_pairs && !problem.bias).for_each(check);
    }
}

#[test]
fn a_visible_nan_shows_and_a_hidden_one_does_not() {
    let mut problem = Problem::new([2, 2, 1, 90, 16], &[81]);
    let mut tensors = Tensors::new(&problem);
    let clean = tensors.expected(&problem);
    tensors.key[3 * 16] = f32::NAN; // slot 3 of head 0
    let output = context(&problem, &tensors);
    assert!(output[..16].iter().all(|x| x.is_nan()));
    assert_near("the other head", &output[16..], &clean[16..], TOLERANCE);
    problem.window = Some(70);
    assert!(context(&problem, &tensors).iter().all(|x| x.is_finite()));
}

#[test]
#[should_panic(expected = "`key` has 3 elements, expected 40")]
fn a_slice_of_the_wrong_length_is_named() {
    let problem = Problem::new([2, 1, 1, 8, 5], &[5]);
    let mut tensors = Tensors::new(&problem);
    tensors.key.truncate(3);
    context(&problem, &tensors);
}

#[test]
#[should_panic(expected = "`flash` reads them")]
fn a_bias_is_refused() {
    let problem = Problem { bias: true, ..Problem::new([2, 1, 1, 8, 5], &[5]) };
    context(&problem, &Tensors::new(&problem));
}
