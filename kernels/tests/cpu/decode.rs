//! A few new tokens on a cache.

use burn_deepspeed_core::visibility::Window;
use burn_deepspeed_kernels::cpu::decode::decode;

use crate::oracle::{Problem, assert_near};
use crate::problem::{Form, TOLERANCE, Tensors, check_invariance, check_stored};

fn check(problem: &Problem) {
    crate::problem::check(problem, decode);
    check_stored(problem, decode);
}

#[test]
fn every_mask_agrees_with_plain_loops() {
    for (sizes, ends) in [
        ([1, 1, 1, 1, 1], vec![1]),
        ([6, 2, 1, 70, 40], vec![65, 4]),
        ([4, 4, 3, 131, 80], vec![130, 3, 62]),
        ([7, 1, 5, 300, 96], vec![295]),
        ([2, 1, 2, 130, 160], vec![65, 130]),
        ([3, 3, 4, 9, 17], vec![4, 0]),
        // Several blocks, and several tasks.
        ([4, 2, 3, 2600, 24], vec![2590, 1024, 1025]),
    ] {
        Problem::new(sizes, &ends).masked().iter().for_each(check);
    }
}

#[test]
fn every_window_agrees_with_plain_loops() {
    for (sizes, ends) in [
        ([6, 2, 1, 70, 40], vec![65, 4]),
        ([4, 4, 3, 131, 80], vec![130, 3, 62]),
        ([3, 3, 4, 9, 17], vec![4, 0]),
        ([2, 1, 7, 2600, 24], vec![2590, 1024, 1025]),
    ] {
        Problem::new(sizes, &ends).windows().iter().for_each(check);
    }
    // More than a task of keys on each side of a query.
    let long = Problem { starts: vec![1300, 7], ..Problem::new([2, 1, 2, 2600, 24], &[2590, 1025]) };
    check(&Problem { causal: false, window: Some(Window::Around(1100)), ..long });
}

#[test]
fn values_may_have_another_size_than_keys() {
    for [head_dim, value_dim] in [[40, 24], [24, 40], [7, 12], [192, 128]] {
        let problem = Problem { value_dim, ..Problem::new([6, 2, 3, 333, head_dim], &[333, 41]) };
        check(&problem);
        check(&Problem { hidden_keys: true, ..problem });
    }
    for (head_dim, value_dim) in [(40, 24), (576, 512)] {
        let latents =
            Problem { value_dim, keys_are_values: true, ..Problem::new([5, 1, 3, 333, head_dim], &[333, 41]) };
        check(&latents);
        check(&Problem { hidden_pairs: true, ..latents });
    }
}

#[test]
fn every_head_size_agrees_with_plain_loops() {
    for head_dim in [1, 7, 8, 15, 16, 17, 36, 64, 128, 256, 512] {
        check(&Problem::new([3, 1, 2, 333, head_dim], &[333, 21]));
    }
}

#[test]
fn many_tokens_are_as_accurate_as_a_few() {
    check(&Problem::new([4, 2, 67, 500, 40], &[480, 67]));
}

#[test]
fn a_query_that_sees_nothing_is_zero() {
    let mut problem = Problem::new([2, 1, 5, 12, 8], &[0, 3]);
    check(&problem);
    problem.hidden_keys = true;
    check(&problem);
}

#[test]
fn a_sink_joins_the_sum_once_however_the_keys_are_split() {
    // A task, several blocks, and several tasks; a row without keys.
    for (sizes, ends) in
        [([6, 2, 2, 70, 40], vec![65, 0]), ([4, 1, 1, 600, 24], vec![590]), ([2, 1, 1, 2600, 8], vec![2590, 3])]
    {
        let problem = Problem::new(sizes, &ends);
        problem.sunk().iter().for_each(check);
        Problem { hidden_keys: true, window: Some(Window::Back(2)), ..problem }.sunk().iter().for_each(check);
    }
}

#[test]
fn a_sink_that_is_nan_shows() {
    let problem = Problem { sink: Some(f32::NAN), ..Problem::new([1, 1, 1, 9, 5], &[9]) };
    assert!(Tensors::new(&problem).solve(&problem, decode).iter().all(|x| x.is_nan()));
}

#[test]
fn a_visible_nan_shows_and_a_hidden_one_does_not() {
    let mut problem = Problem::new([2, 2, 1, 90, 16], &[81]);
    for side in 0..2 {
        let mut tensors = Tensors::new(&problem);
        let clean = tensors.expected(&problem);
        // Slot 3 of head 0.
        [&mut tensors.key, &mut tensors.value][side][3 * 16..4 * 16].fill(f32::NAN);
        let output = tensors.solve(&problem, decode);
        assert!(output[..16].iter().all(|x| x.is_nan()));
        assert_near("the other head", &output[16..], &clean[16..], TOLERANCE);
        problem.window = Some(Window::Back(70));
        assert!(tensors.solve(&problem, decode).iter().all(|x| x.is_finite()));
        problem.window = None;

        let form = |own: usize| if side == own { Form::Int8 } else { Form::F32 };
        let tensors = tensors.stored(&problem, [form(0), form(1)]);
        let output = tensors.solve(&problem, decode);
        assert!(output[..16].iter().all(|x| x.is_nan()) && output[16..].iter().all(|x| x.is_finite()));
        problem.window = Some(Window::Back(70));
        assert!(tensors.solve(&problem, decode).iter().all(|x| x.is_finite()));
        problem.window = None;
    }
}

#[test]
fn a_token_does_not_see_a_nan_after_it() {
    let problem = Problem::new([4, 2, 3, 40, 24], &[33]);
    let mut tensors = Tensors::new(&problem);
    let clean = tensors.expected(&problem);
    let slots = tensors.value.len() / 2 / 24;
    for head in 0..2 {
        tensors.key[(head * slots + 32) * 24] = f32::NAN;
        tensors.value[(head * slots + 32) * 24..][..24].fill(f32::NAN);
    }
    let output = tensors.solve(&problem, decode);
    let (before, last) = output.split_at(2 * 4 * 24);
    assert_near("the tokens before", before, &clean[..before.len()], TOLERANCE);
    assert!(last.iter().all(|x| x.is_nan()));
}

#[test]
fn a_pair_that_is_hidden_keeps_a_broken_scale_hidden() {
    let mut problem = Problem::new([2, 1, 2, 90, 16], &[81]);
    problem.hidden_pairs = true;
    let pairs = problem.pairs();
    // Hidden from the first of the two tokens, and seen by the other.
    let slot = (0..79).find(|slot| pairs[*slot] && !pairs[81 + slot]).unwrap();
    for side in 0..2 {
        let mut tensors = Tensors::new(&problem);
        [&mut tensors.key, &mut tensors.value][side][slot * 16] = f32::INFINITY;
        let output = tensors.stored(&problem, [Form::Int8; 2]).solve(&problem, decode);
        assert!(output[..32].iter().all(|x| x.is_finite()) && output[32..].iter().all(|x| x.is_nan()));
    }
}

#[test]
fn a_row_alone_is_bitwise_the_row_in_a_batch_on_any_number_of_threads() {
    check_invariance(&Problem::new([4, 2, 3, 2600, 40], &[2600, 1100, 31]), decode);
}

#[test]
#[should_panic(expected = "decode: `key` has 3 elements")]
fn a_slice_of_the_wrong_length_is_named() {
    let problem = Problem::new([2, 1, 1, 8, 5], &[5]);
    let mut tensors = Tensors::new(&problem);
    tensors.key.truncate(3);
    tensors.solve(&problem, decode);
}
