//! Prompts on the portable engine.

use burn_deepspeed_kernels::cube::prefill::simt::launch;

use crate::lab::{Element, lab};
use crate::oracle::Problem;

fn check(problem: &Problem, element: Element, planes: bool) {
    let lab = lab(planes);
    problem.check(&lab, element, &format!("planes {planes}"), |attention| launch(&lab.client, &lab.machine, attention));
}

#[test]
fn every_mask_agrees_with_plain_loops() {
    for masked in Problem::new([6, 2, 37, 83, 40], &[70, 43]).masked() {
        check(&masked, Element::F32, true);
    }
    for masked in Problem::new([2, 2, 17, 30, 16], &[17, 29]).masked().iter().step_by(5) {
        check(masked, Element::F16, true);
        check(masked, Element::F32, false);
    }
}

#[test]
fn every_head_size_agrees_with_plain_loops() {
    for head_dim in [1, 7, 8, 36, 64, 80, 96, 128, 160, 256] {
        for &element in Element::ALL {
            check(&Problem::new([3, 1, 19, 33, head_dim], &[33, 21]), element, true);
        }
    }
    check(&Problem::new([1, 1, 129, 129, 64], &[129]), Element::F32, false);
}

#[test]
fn a_row_that_sees_nothing_is_zero() {
    let mut problem = Problem::new([2, 1, 5, 12, 8], &[0, 3]);
    check(&problem, Element::F32, true);
    problem.hidden_keys = true;
    check(&problem, Element::F32, true);
}
