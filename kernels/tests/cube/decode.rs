//! Decoding steps on ordinary units.

use burn_deepspeed_core::visibility::Window;
use burn_deepspeed_kernels::cube::decode::simt::launch;
use burn_deepspeed_kernels::cube::decode::splits;

use crate::lab::{Element, elements_and_planes, lab, some};
use crate::oracle::Problem;
use crate::problem::{Int8, compare};

fn check(problem: &Problem, element: Element, planes: bool, given: Option<usize>) {
    check_int8(problem, element, Int8::default(), planes, given);
}

fn check_int8(problem: &Problem, element: Element, int8: Int8, planes: bool, given: Option<usize>) {
    let lab = lab(planes);
    let how = format!("planes {planes}, splits {given:?}");
    let launched =
        compare(problem, &lab, element, int8, &how, |attention| launch(&lab.client, &lab.machine, attention, given));
    assert_eq!(launched, given.unwrap_or(launched));
}

#[test]
fn every_mask_agrees_with_plain_loops() {
    for masked in some(Problem::new([6, 2, 3, 83, 40], &[70, 31]).masked()) {
        check(&masked, Element::F32, true, None);
    }
    // Each flag of the masks is seen above; here the plain ones and all together.
    for (element, planes) in some(elements_and_planes()) {
        for tokens in [1, 3] {
            let masked = Problem::new([4, 2, tokens, 83, 40], &[70, 31]).masked();
            for masked in masked.iter().step_by(11) {
                check(masked, element, planes, None);
            }
        }
    }
}

#[test]
fn every_window_agrees_with_plain_loops() {
    for masked in some(Problem::new([6, 2, 3, 83, 40], &[70, 31]).windows()) {
        check(&masked, Element::F32, true, None);
    }
    for (element, planes) in some(elements_and_planes()) {
        for masked in Problem::new([4, 2, 1, 300, 40], &[300, 31]).windows().iter().skip(4).step_by(6) {
            check(masked, element, planes, Some(3));
            check_int8(masked, element, Int8::BOTH, planes, None);
        }
    }
}

#[test]
fn every_head_size_agrees_with_plain_loops() {
    for head_dim in some([1, 7, 8, 36, 64, 80, 96, 128, 160, 256, 512]) {
        for &element in Element::ALL {
            check(&Problem::new([3, 3, 1, 50, head_dim], &[50, 17]), element, true, None);
        }
    }
    for head_dim in [7, 40, 128] {
        check(&Problem::new([8, 1, 2, 50, head_dim], &[50, 17]), Element::F16, true, None);
        check(&Problem::new([4, 2, 2, 20, head_dim], &[19]), Element::F32, false, None);
    }
}

#[test]
fn splits_add_up_even_where_some_are_empty() {
    for given in some([1, 2, 3, 7, 64]) {
        for masked in Problem::new([4, 2, 2, 300, 80], &[300, 5]).masked().iter().step_by(11) {
            check(masked, Element::F32, true, Some(given));
        }
        check(&Problem::new([16, 2, 1, 300, 128], &[299, 0]), Element::F16, true, Some(given));
    }
}

// A cube has two rows, and the last one has one. Every split has keys.
#[test]
fn more_splits_than_lanes_add_up() {
    for slant in [0.0, 0.01, -0.01] {
        let slanted = Problem { slant, ..Problem::new([3, 1, 1, 2700, 40], &[2700]) };
        check(&slanted, Element::F32, true, Some(43));
    }
}

#[test]
fn a_row_that_sees_nothing_is_zero() {
    let mut problem = Problem::new([2, 1, 2, 12, 8], &[0, 3]);
    problem.hidden_keys = true;
    check(&problem, Element::F32, true, None);
    check(&problem, Element::F32, true, Some(3));
}

#[test]
fn a_sink_joins_the_sum_once_however_the_keys_are_split() {
    for (given, element) in [(1, Element::F32), (3, Element::F16)] {
        for sunk in some(Problem::new([4, 2, 2, 300, 40], &[300, 0]).sunk()) {
            check(&sunk, element, true, Some(given));
        }
        let hidden =
            Problem { hidden_keys: true, window: Some(Window::Back(2)), ..Problem::new([4, 2, 2, 60, 40], &[60, 0]) };
        for sunk in some(hidden.sunk()) {
            check_int8(&sunk, element, Int8::BOTH, true, Some(given));
        }
    }
    check(&Problem { sink: Some(0.5), ..Problem::new([3, 1, 1, 20, 7], &[19]) }, Element::F32, false, Some(2));
}

#[test]
fn a_sink_that_is_nan_shows() {
    for given in [1, 2] {
        let problem = Problem { sink: Some(f32::NAN), ..Problem::new([4, 2, 2, 300, 40], &[300]) };
        check(&problem, Element::F32, true, Some(given));
    }
}

#[test]
fn int8_agrees_with_plain_loops_on_what_it_holds() {
    let masked = Problem::new([2, 1, 2, 83, 40], &[70, 31]).masked();
    for ((element, planes), int8) in elements_and_planes().zip(Int8::ALL.into_iter().cycle()) {
        check_int8(&masked[0], element, int8, planes, None);
        check_int8(&masked[11], Element::F32, int8, true, Some(3));
    }
    for (at, head_dim) in some([1, 7, 8, 36, 64, 80, 96, 128, 160, 256, 512].into_iter().enumerate()) {
        let element = Element::ALL[at % Element::ALL.len()];
        check_int8(&Problem::new([1, 1, 1, 50, head_dim], &[50, 17]), element, Int8::BOTH, true, None);
    }
    check_int8(&Problem::new([8, 1, 2, 50, 128], &[50, 17]), Element::F16, Int8::BOTH, true, None);
}

#[test]
fn splits_of_int8_add_up_even_where_some_are_empty() {
    for given in some([1, 2, 3, 4, 7]) {
        check_int8(&Problem::new([2, 1, 1, 300, 80], &[300, 5]), Element::F32, Int8::BOTH, true, Some(given));
        check_int8(&Problem::new([2, 1, 1, 300, 128], &[299, 0]), Element::F16, Int8::VALUES, true, Some(given));
    }
    // The maxima of the splits differ by more than an exponential holds.
    for slant in [4.0, -4.0] {
        let slanted = Problem { slant, ..Problem::new([2, 1, 1, 300, 80], &[300, 5]) };
        check_int8(&slanted, Element::F32, Int8::BOTH, true, Some(9));
    }
}

#[test]
fn a_nan_in_int8_shows_to_those_who_see_it() {
    // Of the first row only the last query sees the last slot, and pairs hide one in four.
    let causal = Problem::new([1, 1, 2, 83, 8], &[70, 31]);
    let mut pairs = Problem::new([1, 1, 1, 83, 8], &[70, 31]);
    pairs.hidden_pairs = true;
    for int8 in Int8::ALL {
        check_int8(&causal, Element::F32, Int8 { strange: Some(69), ..int8 }, true, None);
        for slot in 60..65 {
            check_int8(&pairs, Element::F16, Int8 { strange: Some(slot), ..int8 }, true, None);
        }
    }
}

#[test]
fn a_nan_among_values_shows_to_those_who_see_it() {
    for (element, planes) in elements_and_planes() {
        let nan = Int8 { strange: Some(69), ..Int8::default() };
        check_int8(&Problem::new([4, 2, 2, 83, 40], &[70, 31]), element, nan, planes, None);
    }
}

#[test]
fn values_may_have_another_size_than_keys() {
    let sizes = [[40, 24], [24, 40], [7, 12], [192, 128], [576, 512]];
    for (at, [head_dim, value_dim]) in some(sizes.into_iter().enumerate()) {
        let problem = Problem { value_dim, ..Problem::new([6, 2, 3, 83, head_dim], &[70, 31]) };
        for &element in Element::ALL {
            check(&problem, element, true, [None, Some(3)][at % 2]);
        }
        let int8 = Problem { hidden_keys: true, ..problem };
        check_int8(&int8, Element::F32, Int8::ALL[at % 3], at % 2 == 0, Some(2));
    }
}

#[test]
fn values_may_be_the_first_features_of_the_keys() {
    for (head_dim, value_dim) in some([(40, 24), (72, 64), (576, 512)]) {
        let latents =
            Problem { value_dim, keys_are_values: true, ..Problem::new([5, 1, 2, 300, head_dim], &[300, 31]) };
        check(&latents, Element::F32, true, Some(2));
        check(&latents, Element::F16, true, None);
        check_int8(&latents, Element::F16, Int8::BOTH, true, None);
        check(&Problem { hidden_keys: true, hidden_pairs: true, ..latents }, Element::F32, true, None);
    }
}

// Small problems with the least that makes each part of the kernel count; `scripts/mutants.py` runs them on kernels with mistakes.
#[test]
fn a_small_problem_agrees_with_plain_loops() {
    for problem in Problem::new([6, 2, 3, 203, 40], &[190, 31]).slanted(0.25) {
        check(&problem, Element::F32, true, None);
    }
}

#[test]
fn a_small_problem_with_every_mask_agrees_with_plain_loops() {
    let masked = Problem::new([6, 2, 3, 203, 40], &[190, 31]).masked().pop().unwrap();
    for problem in
        (Problem { window: Some(Window::Back(150)), softcap: Some(30.0), sink: None, ..masked }).slanted(0.25)
    {
        check(&problem, Element::F32, true, None);
    }
}

#[test]
fn the_number_of_splits_follows_the_occupancy() {
    let machine = burn_deepspeed_kernels::cube::Machine { processors: 132, ..lab(true).machine };
    assert_eq!(splits(&machine, 32, 2048), 8);
    assert_eq!(splits(&machine, 32, 32768), 13);
    assert_eq!(splits(&machine, 64 * 8, 4096), 1);
    assert_eq!(splits(&machine, 1, 100), 1);
}
