//! A few rows through a matrix on tensor cores, or through plain loops over the same fragments where there are none.

use burn_deepspeed_core::layout::Orientation::{InputOutput, OutputInput};
use burn_deepspeed_kernels::cube::gemv::mma::{Engine, launch};
use burn_deepspeed_kernels::cube::gemv::{Gemv, Int8, MOST_ROWS, Matrix, Norm, NormKind};
use burn_deepspeed_kernels::cube::{Machine, Unsupported};

use crate::gemv::{Problem, int8, problem};
use crate::lab::{Element, Lab, Tensor, lab, some};

/// The device, with few multiprocessors: cubes have several blocks of outputs.
fn small(processors: u32) -> Lab {
    let lab = lab(true);
    let machine = Machine { processors, ..lab.machine };
    lab.with_machine(machine)
}

/// Tensor cores where the device has them for these elements.
fn engine(lab: &Lab, element: Element) -> Engine {
    Engine::tensor_cores(&lab.client, &lab.machine, element.storage()).unwrap_or(Engine::Emulated)
}

/// The elements that tensor cores take.
fn halves() -> impl Iterator<Item = Element> {
    Element::ALL.iter().copied().filter(|element| *element != Element::F32)
}

/// On every element type that tensor cores take.
fn check(problem: Problem, lab: &Lab) {
    for element in halves() {
        Problem { engine: Some(engine(lab, element)), element, ..problem }.check(lab);
    }
}

fn dense(sizes: [usize; 3]) -> Problem {
    problem(sizes, OutputInput)
}

/// Small enough to be repeated with many mistakes in the kernel; every part of a step, and outputs that fill no block.
#[test]
fn a_small_problem_agrees_with_plain_loops() {
    for cancels in [false, true] {
        check(Problem { cancels, ..dense([3, 328, 37]) }, &lab(true));
    }
}

#[test]
fn a_small_problem_of_int8_agrees_with_plain_loops() {
    for cancels in [false, true] {
        check(Problem { cancels, ..int8([5, 336, 37], [3, 128]) }, &lab(true));
    }
}

#[test]
fn every_size_agrees_with_plain_loops() {
    // Parts of a step, whole steps, a step for some planes only, several rounds.
    for (at, inputs) in [8, 24, 32, 40, 64, 264, 512, 1000].into_iter().enumerate() {
        let outputs = [1, 16, 21, 64, 300][at % 5];
        check(Problem { pitch: [8, 64][at % 2], ..dense([2 + at % 3, inputs, outputs]) }, &lab(true));
        check(Problem { pitch: [64, 8][at % 2], ..int8([2 + at % 2, inputs, outputs], [1, inputs]) }, &lab(true));
    }
    for outputs in [1, 5, 16, 17, 40, 129] {
        check(dense([3, 64, outputs]), &lab(true));
    }
}

#[test]
fn every_number_of_rows_agrees_with_plain_loops() {
    for rows in some(2..=MOST_ROWS) {
        check(dense([rows, 136, 37]), &lab(true));
        let wide = if rows % 2 == 0 { 144 } else { 64 };
        check(int8([rows, 144, 37], [1, wide]), &lab(true));
    }
}

#[test]
fn cubes_of_several_blocks_agree_with_plain_loops() {
    for (processors, outputs) in some([(1, 16), (1, 37), (1, 80), (2, 150), (3, 200), (2, 187)]) {
        check(dense([8, 328, outputs]), &small(processors));
        check(int8([5, 336, outputs], [3, 128]), &small(processors));
        check(int8([2, 336, outputs], [1, 336]), &small(processors));
    }
}

#[test]
fn every_norm_agrees_with_plain_loops() {
    for (norm, beta) in some([
        (None, false),
        (Some(NormKind::LayerNorm), false),
        (Some(NormKind::LayerNorm), true),
        (Some(NormKind::RmsNorm), false),
        (Some(NormKind::RmsNorm), true),
    ]) {
        let plain = Problem { norm, beta, ..dense([3, 104, 20]) };
        check(plain, &lab(true));
        check(Problem { parameters: Element::F16, normed: false, bias: false, ..plain }, &lab(true));
        check(Problem { norm, beta, ..int8([7, 112, 20], [1, 64]) }, &lab(true));
        check(Problem { norm, beta, normed: false, ..int8([4, 112, 20], [2, 112]) }, &lab(true));
    }
}

#[test]
fn every_block_of_int8_agrees_with_plain_loops() {
    for (at, blocks) in some([[1, 256], [5, 999], [1, 64], [3, 128], [40, 192]].into_iter().enumerate()) {
        check(int8([2 + at, 256, 75], blocks), &lab(true));
        check(Problem { norm: None, bias: false, normed: false, pitch: 16, ..int8([3, 208, 75], blocks) }, &lab(true));
    }
}

#[test]
fn several_launches_fill_one_output() {
    for around in [[0, 40], [24, 16], [3, 1]] {
        check(Problem { around, ..dense([2, 64, 24]) }, &lab(true));
    }
}

#[test]
fn long_rows_agree_with_plain_loops() {
    check(dense([3, 8192, 5]), &lab(true));
    check(int8([2, 8192, 5], [1, 8192]), &lab(true));
}

#[test]
fn nan_and_infinity_stay_in_their_row() {
    let lab = lab(true);
    for element in halves() {
        for (norm, value) in
            [(None, f32::NAN), (Some(NormKind::LayerNorm), f32::NAN), (Some(NormKind::RmsNorm), f32::INFINITY)]
        {
            for plain in [dense([5, 72, 20]), int8([5, 80, 20], [1, 80])] {
                let problem = Problem { engine: Some(engine(&lab, element)), element, norm, normed: false, ..plain };
                let mut input = problem.input();
                input[3 * problem.inputs + 7] = value;
                problem.check_input(&lab, &input, Some(3));
            }
        }
    }
}

#[test]
fn the_norm_is_not_rounded() {
    // Weights that cancel what the norm rounds to: what is left would be lost.
    let lab = lab(true);
    for element in halves() {
        let (rows, inputs) = (2, 64);
        let row = |scale: f32| (0..inputs).map(move |at| scale * (1.0 + (at / 2) as f32 * 0.125));
        let input: Vec<f32> = row(1.0).chain(row(0.5)).collect();
        let gamma: Vec<f32> = (0..inputs).map(|at| if at % 2 == 0 { 1.0 } else { 1.0 + 2f32.powi(-11) }).collect();
        let weights: Vec<f32> = (0..inputs).map(|at| if at % 2 == 0 { -1.0 } else { 1.0 }).collect();
        let output = lab.output(&[rows, 1], element, 8);
        let gamma_tensor = lab.floats(&gamma, &[inputs], Element::F32, 1);
        let norm = Norm { kind: NormKind::RmsNorm, gamma: &gamma_tensor, beta: None, epsilon: 0.0 };
        let matrix = lab.floats(&weights, &[1, inputs], element, 8);
        let arguments = Gemv {
            input: &lab.floats(&input, &[rows, inputs], element, 8),
            norm: Some(norm),
            matrix: Matrix::Dense(&matrix, OutputInput),
            bias: None,
            output: &output,
            offset: 0,
            normed: None,
        };
        assert_eq!(launch(&lab.client, &lab.machine, arguments, engine(&lab, element)), Ok(()));
        let values: Vec<f64> = row(1.0).map(f64::from).collect();
        let deviation = (values.iter().map(|value| value * value).sum::<f64>() / inputs as f64).sqrt();
        let expected = values.iter().step_by(2).sum::<f64>() / deviation * 2f64.powi(-11);
        for actual in lab.read(&output) {
            let actual = f64::from(actual);
            assert!((actual - expected).abs() < 0.02 * expected, "{element:?}: {actual}, expected {expected}");
        }
    }
}

#[test]
fn what_the_kernel_does_not_take_is_refused() {
    let lab = lab(true);
    let half = |shape: &[usize], pitch: usize| lab.output(shape, Element::F16, pitch);
    let attempt_on = |machine: &Machine, input: &Tensor, matrix: Matrix<'_, _>, normed: Option<&Tensor>| {
        let element = if input.dtype == Element::F32.storage() { Element::F32 } else { Element::F16 };
        let output = lab.output(&[input.shape()[0], 4], element, 1);
        let arguments = Gemv { input, norm: None, matrix, bias: None, output: &output, offset: 0, normed };
        launch(&lab.client, machine, arguments, engine(&lab, Element::F16))
    };
    let attempt =
        |input: &Tensor, matrix: &Tensor| attempt_on(&lab.machine, input, Matrix::Dense(matrix, OutputInput), None);
    let (input, matrix) = (half(&[2, 16], 8), half(&[4, 16], 8));
    assert_eq!(attempt(&input, &matrix), Ok(()));
    assert_eq!(attempt(&half(&[0, 16], 8), &matrix), Ok(()));

    let multiple = |what, size, multiple| Err(Unsupported::Multiple { what, size, multiple });
    assert_eq!(attempt(&half(&[1, 16], 8), &matrix), Err(Unsupported::FewRows { rows: 1, least: 2 }));
    assert_eq!(attempt(&half(&[2, 12], 8), &half(&[4, 12], 8)), multiple("features of `input`", 12, 8));
    assert_eq!(attempt(&half(&[2, 16], 20), &matrix), multiple("the stride of `input`", 20, 8));
    assert_eq!(attempt(&input, &half(&[4, 16], 20)), multiple("the stride of `matrix`", 20, 8));
    let dense = || Matrix::Dense(&matrix, OutputInput);
    let normed = half(&[2, 16], 6);
    assert_eq!(attempt_on(&lab.machine, &input, dense(), Some(&normed)), multiple("the stride of `normed`", 18, 4));
    let transposed = half(&[16, 4], 8);
    let refused = attempt_on(&lab.machine, &input, Matrix::Dense(&transposed, InputOutput), None);
    assert_eq!(refused, Err(Unsupported::Orientation));

    let singles = |shape: &[usize]| lab.output(shape, Element::F32, 8);
    let refused = attempt(&singles(&[2, 16]), &singles(&[4, 16]));
    assert_eq!(refused, Err(Unsupported::TensorCores(Element::F32.storage())));
    let little = Machine { shared_bytes: 1000, ..lab.machine };
    assert!(matches!(attempt_on(&little, &input, dense(), None), Err(Unsupported::SharedMemory { .. })));
    let few = Machine { max_cubes: [0, 1, 1], ..lab.machine };
    assert!(matches!(attempt_on(&few, &input, dense(), None), Err(Unsupported::TooManyCubes { .. })));
    let without = lab.machine.with_plane_operations(false);
    let refused = Engine::tensor_cores(&lab.client, &without, Element::F16.storage());
    assert_eq!(refused, Err(Unsupported::TensorCores(Element::F16.storage())));

    let attempt_int8 = |inputs: usize, pitch: usize, wide: usize| {
        let elements = lab.bytes(&vec![1; 4 * inputs], &[4, inputs], pitch);
        let scales = lab.output(&[4, inputs.div_ceil(wide)], Element::F32, 1);
        let matrix = Matrix::Int8(Int8 { elements: &elements, scales: &scales, blocks: [1, wide] });
        attempt_on(&lab.machine, &half(&[2, inputs], 8), matrix, None)
    };
    assert_eq!(attempt_int8(128, 16, 64), Ok(()));
    assert_eq!(attempt_int8(20, 4, 20), multiple("features of `input`", 20, 8));
    assert_eq!(attempt_int8(32, 36, 32), multiple("the stride of `matrix`", 36, 8));
    assert_eq!(attempt_int8(128, 16, 32), multiple("inputs of a block of `matrix`", 32, 64));
}
