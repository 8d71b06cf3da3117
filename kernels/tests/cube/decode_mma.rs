//! Decoding steps on tensor cores, or through plain loops over the same fragments where there are none.

use burn_deepspeed_core::visibility::Window;
use burn_deepspeed_kernels::cube::decode::mma::{Engine, launch};
use burn_deepspeed_kernels::cube::decode::{launch as launch_any, simt};
use burn_deepspeed_kernels::cube::{Machine, Unsupported};

use crate::lab::{self, Element, Lab, lab};
use crate::oracle::Problem;
use crate::problem::{Int8, compare, run};

/// Tensor cores where the device has them.
fn engine(lab: &Lab) -> Engine {
    let half = Element::F16.storage();
    let found = burn_deepspeed_kernels::cube::gemv::mma::Engine::tensor_cores(&lab.client, &lab.machine, half);
    if found.is_ok() { Engine::TensorCores } else { Engine::Emulated }
}

/// The elements that tensor cores take.
fn halves() -> impl Iterator<Item = Element> {
    Element::ALL.iter().copied().filter(|element| *element != Element::F32)
}

/// The first and the last of a list on emulated tensor cores, which are slow.
fn some<T>(all: Vec<T>) -> Vec<T> {
    if engine(&lab(true)) != Engine::Emulated {
        return lab::some(all);
    }
    let last = all.len() - 1;
    all.into_iter().enumerate().filter(|(at, _)| [0, last].contains(at)).map(|(_, one)| one).collect()
}

/// On every element type that tensor cores take.
fn check(problem: &Problem, int8: Int8, given: Option<usize>) {
    let lab = lab(true);
    let engine = engine(&lab);
    for element in halves() {
        let how = format!("{engine:?}, splits {given:?}");
        compare(problem, &lab, element, int8, &how, |attention| {
            launch(&lab.client, &lab.machine, attention, engine, given)
        });
    }
}

/// One new token, which all queries see alike: floats need that.
fn one(heads: [usize; 2], capacity: usize, head_dim: usize, ends: &[usize]) -> Problem {
    Problem::new([heads[0], heads[1], 1, capacity, head_dim], ends)
}

/// Every mask that does not tell the queries of a key head apart.
fn alike(problem: &Problem) -> Vec<Problem> {
    problem.masked().into_iter().filter(|masked| !masked.hidden_pairs).collect()
}

#[test]
fn every_mask_agrees_with_plain_loops() {
    for masked in some(alike(&one([6, 2], 83, 64, &[70, 31]))) {
        check(&masked, Int8::default(), None);
    }
    for masked in some(Problem::new([6, 2, 3, 83, 64], &[70, 31]).masked()) {
        check(&masked, Int8::BOTH, None);
        check(&masked, Int8::VALUES, None);
    }
}

// The product of a weight and the scale of a value is less than f16 holds.
#[test]
fn small_values_of_int8_keep_their_weights() {
    // Emulated weights have the elements of the queries.
    if engine(&lab(true)) == Engine::Emulated {
        return;
    }
    let small = Problem { magnitude: 1.0 / 16384.0, ..one([4, 1], 150, 64, &[140, 17]) };
    check(&small, Int8::VALUES, None);
    check(&small, Int8::BOTH, Some(2));
}

#[test]
fn every_window_agrees_with_plain_loops() {
    let windows = |problem: Problem| some(problem.windows().into_iter().skip(2).step_by(2).collect());
    for masked in windows(one([6, 2], 83, 64, &[70, 31])).into_iter().filter(|masked| !masked.hidden_pairs) {
        check(&masked, Int8::default(), None);
    }
    for masked in windows(Problem::new([6, 2, 3, 203, 64], &[190, 31])) {
        check(&masked, Int8::BOTH, Some(2));
    }
}

#[test]
fn every_head_size_agrees_with_plain_loops() {
    for head_dim in some(vec![64, 128, 192, 256]) {
        for int8 in [Int8::default(), Int8::KEYS, Int8::VALUES, Int8::BOTH] {
            check(&one([4, 1], 150, head_dim, &[140, 17]), int8, None);
        }
    }
}

#[test]
fn every_number_of_queries_agrees_with_plain_loops() {
    for group in some(vec![3, 5, 7, 8, 9, 16, 20]) {
        check(&one([2 * group, 2], 83, 64, &[83, 40]), Int8::default(), None);
        check(&one([group, 1], 83, 64, &[83]), Int8::BOTH, None);
    }
    for tokens in some((2..=8).collect()) {
        check(&Problem::new([4, 2, tokens, 83, 64], &[80, 40]), Int8::BOTH, None);
        let all = Problem { causal: false, ..Problem::new([4, 2, tokens, 83, 64], &[80, 40]) };
        check(&all, Int8::default(), None);
    }
}

#[test]
fn every_number_of_keys_agrees_with_plain_loops() {
    for keys in some(vec![1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200]) {
        for int8 in [Int8::default(), Int8::BOTH] {
            check(&one([4, 1], 203, 64, &[keys, keys / 2 + 1]), int8, None);
        }
    }
}

#[test]
fn splits_add_up_even_where_some_are_empty() {
    for given in some(vec![1, 2, 3, 7]) {
        check(&one([8, 2], 300, 128, &[299, 0]), Int8::default(), Some(given));
        check(&one([8, 2], 300, 64, &[300, 5]), Int8::BOTH, Some(given));
    }
}

#[test]
fn a_row_that_sees_nothing_is_zero() {
    let problem = Problem { hidden_keys: true, ..one([4, 1], 12, 64, &[0, 3]) };
    for int8 in [Int8::default(), Int8::BOTH] {
        check(&problem, int8, None);
        check(&problem, int8, Some(3));
    }
}

#[test]
fn a_sink_joins_the_sum_once_however_the_keys_are_split() {
    for given in [1, 3] {
        for sunk in some(one([8, 2], 83, 64, &[80, 0]).sunk()) {
            check(&sunk, Int8::default(), Some(given));
        }
        let hidden = Problem { hidden_keys: true, window: Some(Window::Back(2)), ..one([8, 2], 60, 64, &[60, 0]) };
        for sunk in some(hidden.sunk()) {
            check(&sunk, Int8::BOTH, Some(given));
        }
    }
}

#[test]
fn a_nan_in_int8_shows_to_those_who_see_it() {
    let causal = Problem::new([4, 2, 2, 83, 64], &[70, 31]);
    let pairs = Problem { hidden_pairs: true, ..one([4, 1], 83, 64, &[70, 31]) };
    for int8 in [Int8::VALUES, Int8::BOTH] {
        check(&causal, Int8 { strange: Some(69), ..int8 }, None);
        for slot in some((60..65).collect()) {
            check(&pairs, Int8 { strange: Some(slot), ..int8 }, None);
        }
    }
}

// Small problems with the least that makes each part of the kernel count; `scripts/mutants.py` runs them on kernels with mistakes.
#[test]
fn a_small_problem_agrees_with_plain_loops() {
    for problem in one([5, 1], 203, 128, &[190, 31]).slanted(0.25) {
        check(&problem, Int8::default(), None);
    }
}

#[test]
fn a_small_problem_of_int8_agrees_with_plain_loops() {
    let masked = Problem::new([6, 2, 3, 203, 64], &[190, 31]).masked().pop().unwrap();
    for problem in
        (Problem { window: Some(Window::Back(150)), softcap: Some(30.0), sink: None, ..masked }).slanted(0.25)
    {
        check(&problem, Int8::BOTH, Some(2));
    }
}

#[test]
fn what_the_kernel_does_not_take_is_refused() {
    let lab = lab(true);
    let attempt = |machine: &Machine, problem: &Problem, element: Element| {
        let engine = engine(&lab);
        let mut refused = None;
        run(problem, &lab, element, |attention| {
            refused = Some(launch(&lab.client, machine, attention, engine, None).map(drop));
            launch_any(&lab.client, &lab.machine, attention, None)
        });
        refused.unwrap()
    };
    let half = |problem: &Problem| attempt(&lab.machine, problem, Element::F16);
    let grouped = one([4, 1], 20, 64, &[20]);
    assert_eq!(half(&grouped), Ok(()));
    assert_eq!(attempt(&lab.machine, &grouped, Element::F32), Err(Unsupported::TensorCores(Element::F32.storage())));
    assert_eq!(half(&one([2, 1], 20, 64, &[20])), Err(Unsupported::FewRows { rows: 2, least: 3 }));
    assert_eq!(half(&Problem::new([4, 1, 2, 20, 64], &[20])), Err(Unsupported::MixedVisibility));
    let multiple = Unsupported::Multiple { what: "features of a head", size: 80, multiple: 64 };
    assert_eq!(half(&one([4, 1], 20, 80, &[20])), Err(multiple));
    let little = Machine { shared_bytes: 1000, ..lab.machine };
    assert!(matches!(attempt(&little, &grouped, Element::F16), Err(Unsupported::SharedMemory { .. })));
    let few = Machine { max_cubes: [0, 1, 1], ..lab.machine };
    assert!(matches!(attempt(&few, &grouped, Element::F16), Err(Unsupported::TooManyCubes { .. })));
}

#[test]
fn ordinary_units_agree_with_tensor_cores() {
    let lab = lab(true);
    let problem = one([8, 2], 300, 128, &[299, 40]);
    for element in halves() {
        let (fragments, _) =
            run(&problem, &lab, element, |attention| launch(&lab.client, &lab.machine, attention, engine(&lab), None));
        let (units, _) =
            run(&problem, &lab, element, |attention| simt::launch(&lab.client, &lab.machine, attention, None));
        for (one, other) in fragments.iter().zip(units) {
            assert!((one - other).abs() < element.tolerance() as f32, "{element:?}: {one}, and {other}");
        }
    }
}
