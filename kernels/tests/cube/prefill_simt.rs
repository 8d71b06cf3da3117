//! Prompts on the portable engine.

use burn_deepspeed_core::visibility::Window;
use burn_deepspeed_kernels::cube::Machine;
use burn_deepspeed_kernels::cube::prefill::simt::launch;

use crate::lab::{Element, elements_and_planes, lab, some};
use crate::oracle::Problem;
use crate::problem::{Int8, compare};

fn check(problem: &Problem, element: Element, planes: bool) {
    check_int8(problem, element, Int8::default(), planes);
}

fn check_int8(problem: &Problem, element: Element, int8: Int8, planes: bool) {
    let lab = lab(planes);
    let how = format!("planes {planes}");
    compare(problem, &lab, element, int8, &how, |attention| launch(&lab.client, &lab.machine, attention));
}

#[test]
fn every_mask_agrees_with_plain_loops() {
    for masked in some(Problem::new([6, 2, 37, 83, 40], &[70, 43]).masked()) {
        check(&masked, Element::F32, true);
    }
    for masked in Problem::new([2, 2, 17, 30, 16], &[17, 29]).masked().iter().step_by(5) {
        check(masked, Element::F16, true);
        check(masked, Element::F32, false);
    }
}

#[test]
fn every_window_agrees_with_plain_loops() {
    for masked in some(Problem::new([6, 2, 37, 83, 40], &[70, 43]).windows()) {
        check(&masked, Element::F32, true);
    }
    for masked in Problem::new([2, 2, 70, 90, 16], &[70, 89]).windows().iter().skip(4).step_by(6) {
        check_int8(masked, Element::F16, Int8::BOTH, true);
        check(masked, Element::F32, false);
    }
}

#[test]
fn every_head_size_agrees_with_plain_loops() {
    for head_dim in some([1, 7, 8, 36, 64, 80, 96, 128, 160, 256]) {
        for &element in Element::ALL {
            check(&Problem::new([3, 1, 19, 33, head_dim], &[33, 21]), element, true);
        }
    }
    // In f32 the keys and values of such heads do not fit into shared memory.
    for &element in Element::ALL.iter().filter(|element| **element != Element::F32) {
        check(&Problem::new([3, 1, 19, 33, 512], &[33, 21]), element, true);
    }
    check_int8(&Problem::new([3, 1, 19, 33, 512], &[33, 21]), Element::F16, Int8::BOTH, true);
    check(&Problem::new([1, 1, 129, 129, 64], &[129]), Element::F32, false);
}

/// Vulkan and WebGPU promise no more than 16 KB.
#[test]
fn long_heads_fit_into_little_shared_memory() {
    let lab = lab(true);
    for shared_bytes in [16 * 1024, 24 * 1024] {
        let machine = Machine { shared_bytes, ..lab.machine };
        for (element, head_dim) in [(Element::F32, 256), (Element::F16, 256), (Element::F16, 512)] {
            let problem = Problem::new([3, 1, 19, 33, head_dim], &[33, 21]);
            let how = format!("{shared_bytes} bytes");
            compare(&problem, &lab, element, Int8::default(), &how, |attention| {
                launch(&lab.client, &machine, attention)
            });
        }
    }
}

#[test]
fn a_row_that_sees_nothing_is_zero() {
    let mut problem = Problem::new([2, 1, 5, 12, 8], &[0, 3]);
    check(&problem, Element::F32, true);
    problem.hidden_keys = true;
    check(&problem, Element::F32, true);
}

#[test]
fn a_sink_joins_the_sum_once() {
    let problem = Problem::new([4, 2, 19, 83, 16], &[70, 0]);
    for sunk in some(problem.sunk()) {
        check(&sunk, Element::F32, true);
    }
    let hidden = Problem { hidden_keys: true, window: Some(Window::Back(2)), ..problem };
    for sunk in some(hidden.sunk()) {
        check_int8(&sunk, Element::F16, Int8::BOTH, true);
    }
    check(&Problem { sink: Some(0.5), ..hidden.clone() }, Element::F32, false);
    check(&Problem { sink: Some(f32::NAN), ..Problem::new([4, 2, 19, 83, 16], &[70]) }, Element::F32, true);
}

#[test]
fn int8_agrees_with_plain_loops_on_what_it_holds() {
    let masked = Problem::new([6, 2, 37, 83, 40], &[70, 43]).masked();
    for ((element, planes), int8) in elements_and_planes().zip(Int8::ALL.into_iter().cycle()) {
        check_int8(&masked[0], element, int8, planes);
        check_int8(&masked[11], Element::F32, int8, true);
    }
    for (at, head_dim) in some([1, 7, 8, 36, 64, 80, 96, 128, 160, 256].into_iter().enumerate()) {
        let element = Element::ALL[at % Element::ALL.len()];
        check_int8(&Problem::new([3, 1, 19, 33, head_dim], &[33, 21]), element, Int8::BOTH, true);
    }
}

#[test]
fn a_nan_in_int8_shows_to_those_who_see_it() {
    for int8 in Int8::ALL {
        for slot in [0, 12, 16] {
            let int8 = Int8 { strange: Some(slot), ..int8 };
            check_int8(&Problem::new([4, 2, 17, 30, 16], &[17, 29]), Element::F32, int8, true);
        }
    }
}

#[test]
fn values_may_have_another_size_than_keys() {
    for (at, [head_dim, value_dim]) in some([[40, 24], [24, 40], [7, 12], [192, 128]].into_iter().enumerate()) {
        let problem = Problem { value_dim, ..Problem::new([6, 2, 37, 83, head_dim], &[70, 43]) };
        for &element in Element::ALL {
            check(&problem, element, true);
        }
        check_int8(&Problem { hidden_keys: true, ..problem }, Element::F32, Int8::ALL[at % 3], at % 2 == 0);
    }
    let latents = Problem { value_dim: 48, keys_are_values: true, ..Problem::new([3, 1, 19, 83, 56], &[70, 43]) };
    check_int8(&latents, Element::F16, Int8::BOTH, true);
    check(&Problem { hidden_pairs: true, ..latents }, Element::F32, true);
}

// Small problems with the least that makes each part of the kernel count; `scripts/mutants.py` runs them on kernels with mistakes.
#[test]
fn a_small_problem_agrees_with_plain_loops() {
    for problem in Problem::new([6, 2, 37, 83, 40], &[70, 43]).slanted(0.25) {
        check(&problem, Element::F32, true);
    }
}

#[test]
fn a_small_problem_of_int8_agrees_with_plain_loops() {
    for problem in Problem::new([6, 2, 37, 83, 40], &[70, 43]).slanted(0.25) {
        check_int8(&problem, Element::F32, Int8::BOTH, true);
    }
}

#[test]
fn a_small_problem_with_every_mask_agrees_with_plain_loops() {
    let masked = Problem::new([6, 2, 37, 203, 40], &[190, 43]).masked().pop().unwrap();
    for problem in
        (Problem { window: Some(Window::Back(150)), softcap: Some(30.0), sink: None, ..masked }).slanted(0.25)
    {
        check(&problem, Element::F32, true);
    }
}
