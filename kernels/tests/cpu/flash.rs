//! Attention of many queries.

use burn_deepspeed_core::visibility::Window;
use burn_deepspeed_kernels::cpu::flash::flash;

use crate::oracle::{Problem, assert_near};
use crate::problem::{TOLERANCE, Tensors, check_invariance, check_stored};

fn check(problem: &Problem) {
    crate::problem::check(problem, flash);
    check_stored(problem, flash);
}

#[test]
fn every_mask_agrees_with_plain_loops() {
    for sizes in [[6, 2, 37, 83, 40], [4, 1, 5, 83, 64], [3, 3, 70, 83, 17]] {
        for masked in Problem::new(sizes, &[70, 43]).masked() {
            check(&masked);
        }
    }
    // Several blocks of keys.
    for masked in Problem::new([4, 2, 130, 1300, 96], &[1290, 700]).masked() {
        check(&masked);
    }
}

#[test]
fn every_window_agrees_with_plain_loops() {
    for sizes in [[6, 2, 37, 83, 40], [3, 3, 70, 83, 17]] {
        for masked in Problem::new(sizes, &[70, 43]).windows() {
            check(&masked);
        }
    }
    // Several blocks of keys, the first of which no query of a tile sees.
    for window in [Window::Around(150), Window::Chunk(400)] {
        let long = Problem::new([2, 1, 130, 1300, 96], &[1290, 700]);
        let causal = window == Window::Chunk(400);
        check(&Problem { window: Some(window), causal, hidden_keys: true, ..long });
    }
}

#[test]
fn values_may_have_another_size_than_keys() {
    for [head_dim, value_dim] in [[40, 24], [24, 40], [7, 12], [192, 128]] {
        let problem = Problem { value_dim, ..Problem::new([6, 2, 37, 333, head_dim], &[333, 41]) };
        check(&problem);
        check(&Problem { hidden_keys: true, ..problem });
    }
    for (head_dim, value_dim) in [(40, 24), (576, 512)] {
        let latents =
            Problem { value_dim, keys_are_values: true, ..Problem::new([3, 1, 37, 333, head_dim], &[333, 41]) };
        check(&latents);
        check(&Problem { hidden_pairs: true, ..latents });
    }
}

#[test]
fn every_head_size_agrees_with_plain_loops() {
    for head_dim in [1, 7, 8, 15, 16, 17, 36, 40, 64, 80, 96, 128, 160, 256, 512] {
        check(&Problem::new([3, 1, 19, 333, head_dim], &[333, 21]));
    }
}

#[test]
fn every_length_agrees_with_plain_loops() {
    for tokens in [1, 2, 3, 5, 6, 7, 13, 65, 600] {
        for cached in [0, 1, 15, 16, 31, 100, 513] {
            let ends = [tokens + cached, (tokens + cached) / 2 + 1];
            let mut problem = Problem::new([3, 1, tokens, tokens + cached + 3, 16], &ends);
            check(&problem);
            problem.window = Some(Window::Back(9));
            check(&problem);
            (problem.window, problem.causal) = (None, false);
            check(&problem);
        }
    }
}

#[test]
fn a_query_that_sees_nothing_is_zero() {
    let mut problem = Problem::new([2, 1, 5, 12, 8], &[0, 3]);
    check(&problem);
    problem.hidden_keys = true;
    check(&problem);
}

#[test]
fn a_sink_joins_the_sum_once() {
    // A block, several blocks, and a row without keys.
    for (sizes, ends) in [([6, 2, 19, 83, 40], vec![70, 0]), ([3, 1, 40, 1300, 96], vec![1290])] {
        let problem = Problem::new(sizes, &ends);
        problem.sunk().iter().for_each(check);
        Problem { hidden_keys: true, window: Some(Window::Back(2)), ..problem }.sunk().iter().for_each(check);
    }
}

#[test]
fn a_sink_that_is_nan_shows() {
    let problem = Problem { sink: Some(f32::NAN), ..Problem::new([1, 1, 9, 9, 5], &[9]) };
    assert!(Tensors::new(&problem).solve(&problem, flash).iter().all(|x| x.is_nan()));
}

#[test]
fn infinities_and_nans_show_only_where_they_are_seen() {
    // The last key is seen by the last query alone.
    let problem = Problem::new([2, 1, 9, 30, 24], &[30]);
    let clean = Tensors::new(&problem).expected(&problem);
    for bad in [f32::NAN, f32::INFINITY] {
        for side in 0..2 {
            let mut tensors = Tensors::new(&problem);
            [&mut tensors.key, &mut tensors.value][side][29 * 24..].fill(bad);
            let output = tensors.solve(&problem, flash);
            let (before, last) = output.split_at(8 * 2 * 24);
            assert_near("the others", before, &clean[..before.len()], TOLERANCE);
            // An infinite key may give a score of -inf, which leaves the key out. The other cases give nothing finite.
            if bad.is_nan() || side == 1 {
                assert!(last.iter().all(|x| !x.is_finite()), "{bad}, side {side}: {last:?}");
            }
        }
    }
}

#[test]
fn a_row_alone_is_bitwise_the_row_in_a_batch_on_any_number_of_threads() {
    let problem = Problem { window: Some(Window::Back(150)), ..Problem::new([4, 2, 140, 700, 40], &[700, 333, 700]) };
    check_invariance(&problem, flash);
}

#[test]
#[should_panic(expected = "flash: `key` has 10 elements")]
fn a_slice_that_is_too_short_is_named() {
    let problem = Problem::new([1, 1, 2, 2, 8], &[2]);
    let mut tensors = Tensors::new(&problem);
    tensors.key.truncate(10);
    tensors.solve(&problem, flash);
}
