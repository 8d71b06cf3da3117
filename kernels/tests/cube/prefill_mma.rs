//! Prompts through the fragments of tensor cores, which plain loops emulate here.

use burn_deepspeed_core::visibility::Window;
use burn_deepspeed_kernels::cube::prefill::mma::{Engine, launch};
use burn_deepspeed_kernels::cube::{Machine, Unsupported};
use cubecl::prelude::Runtime;

use crate::lab::{Element, Lab, lab, some};
use crate::oracle::Problem;
use crate::problem::{Int8, compare};

/// Multiprocessors of a device that cubes of 32 rows a plane never fill, and of one that they always fill.
const PROCESSORS: [u32; 2] = [u32::MAX, 0];

fn check_on<R: Runtime>(
    lab: &Lab<R>,
    processors: u32,
    problem: &Problem,
    element: Element,
    int8: Int8,
    engine: Engine,
) {
    let how = format!("{engine:?}, {processors} multiprocessors");
    let machine = Machine { processors, ..lab.machine };
    compare(problem, lab, element, int8, &how, |attention| launch(&lab.client, &machine, attention, engine));
}

fn check(problem: &Problem, element: Element) {
    check_int8(problem, element, Int8::default());
}

fn check_int8(problem: &Problem, element: Element, int8: Int8) {
    check_on(&lab(false), PROCESSORS[1], problem, element, int8, Engine::Emulated);
}

#[test]
fn every_mask_agrees_with_plain_loops() {
    let problem = Problem::new([4, 2, 37, 83, 16], &[70, 37]);
    for masked in some(problem.masked()) {
        check(&masked, Element::F32);
    }
    check(problem.masked().last().unwrap(), Element::F16);
    for added in added(&problem) {
        check(&added, Element::F32);
    }
}

#[test]
fn every_window_agrees_with_plain_loops() {
    let windows = Problem::new([4, 2, 37, 143, 16], &[130, 37]).windows();
    for masked in some(windows.iter().step_by(2)) {
        check(masked, Element::F32);
    }
    for at in [4, 10] {
        check_int8(&windows[at], Element::F16, Int8::BOTH);
    }
    // Steps that all rows of a plane see, some of them, or none.
    for window in [Window::Around(70), Window::Chunk(90)] {
        let problem =
            Problem { causal: window == Window::Chunk(90), ..Problem::new([3, 1, 129, 300, 16], &[290, 140]) };
        for hidden_keys in [false, true] {
            check(&Problem { window: Some(window), hidden_keys, ..problem.clone() }, Element::F32);
        }
    }
}

/// Several rules that add to scores, and none that hides a pair.
fn added(problem: &Problem) -> [Problem; 2] {
    let biased = Problem { bias: true, slopes: true, ..problem.clone() };
    [
        Problem { softcap: Some(0.7), window: Some(Window::Back(53)), ..biased.clone() },
        Problem { causal: false, ..biased },
    ]
}

#[test]
fn every_head_size_agrees_with_plain_loops() {
    for head_dim in some([8, 40, 64, 80, 96, 128, 160]) {
        check(&Problem::new([6, 2, 17, 50, head_dim], &[45, 20]), Element::F16);
    }
    check(&Problem::new([3, 1, 17, 50, 128], &[45, 20]), Element::F32);
}

#[test]
fn every_length_agrees_with_plain_loops() {
    for tokens in [1, 17, 65] {
        for cached in [0, 1, 15, 16, 31, 100] {
            let ends = [tokens + cached, (tokens + cached) / 2 + 1];
            let mut problem = Problem::new([3, 1, tokens, tokens + cached + 3, 16], &ends);
            check(&problem, Element::F32);
            problem.window = Some(Window::Back(9));
            check(&problem, Element::F32);
            (problem.window, problem.causal) = (None, false);
            check(&problem, Element::F32);
        }
    }
}

/// Around the rows of a piece, of a plane and of a cube.
const TOKENS: [usize; 12] = [15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129];

#[test]
fn every_number_of_rows_agrees_with_plain_loops() {
    for tokens in TOKENS {
        for processors in PROCESSORS {
            let mut problem = Problem::new([2, 2, tokens, tokens + 9, 40], &[tokens + 7]);
            check_on(&lab(false), processors, &problem, Element::F32, Int8::default(), Engine::Emulated);
            problem.window = Some(Window::Back(21));
            check_on(&lab(false), processors, &problem, Element::F32, Int8::default(), Engine::Emulated);
        }
    }
}

#[test]
fn a_row_that_sees_nothing_is_zero() {
    let mut problem = Problem::new([2, 1, 2, 12, 8], &[0, 3]);
    check(&problem, Element::F32);
    problem.hidden_keys = true;
    check(&problem, Element::F32);
}

#[test]
fn a_sink_joins_the_sum_once() {
    // With scores that are scaled in the exponential, and before; with ALiBi, and without.
    let problem = Problem::new([4, 2, 17, 50, 16], &[45, 0]);
    for sunk in some(problem.sunk()) {
        check(&sunk, Element::F32);
        check(&Problem { slopes: true, ..sunk.clone() }, Element::F32);
        check(&Problem { hidden_keys: true, window: Some(Window::Back(2)), ..sunk }, Element::F32);
    }
    check(&Problem { sink: Some(f32::NAN), ..Problem::new([4, 2, 17, 50, 16], &[45]) }, Element::F32);
    for int8 in [Int8::default(), Int8::BOTH] {
        check_int8(&Problem { sink: Some(0.5), ..problem.clone() }, Element::F16, int8);
    }
}

#[test]
fn int8_agrees_with_plain_loops_on_what_it_holds() {
    let masked = Problem::new([4, 2, 37, 83, 16], &[70, 37]).masked();
    for int8 in Int8::ALL {
        check_int8(&masked[0], Element::F32, int8);
        check_int8(&masked[11], Element::F16, int8);
    }
    for (at, head_dim) in some([8, 40, 64, 80, 96, 128, 160].into_iter().enumerate()) {
        check_int8(&Problem::new([6, 2, 17, 50, head_dim], &[45, 20]), Element::F16, Int8::ALL[(at + 2) % 3]);
    }
    for (tokens, cached) in [(1, 0), (1, 31), (17, 15), (65, 0), (65, 31)] {
        let ends = [tokens + cached, (tokens + cached) / 2 + 1];
        let mut problem = Problem::new([3, 1, tokens, tokens + cached + 3, 16], &ends);
        problem.window = Some(Window::Back(9));
        check_int8(&problem, Element::F32, Int8::BOTH);
    }
}

#[test]
fn a_nan_in_int8_shows_to_those_who_see_it() {
    for int8 in Int8::ALL {
        let int8 = Int8 { strange: Some(0), ..int8 };
        check_int8(&Problem::new([4, 2, 17, 30, 16], &[17, 17]), Element::F32, int8);
    }
}

#[test]
fn a_small_problem_with_every_mask_agrees_with_plain_loops() {
    let masked = Problem::new([4, 2, 37, 143, 16], &[130, 37]).masked().pop().unwrap();
    for problem in
        (Problem { window: Some(Window::Back(100)), softcap: Some(30.0), sink: None, ..masked }).slanted(0.25)
    {
        check(&problem, Element::F32);
    }
}

#[test]
fn a_device_without_tensor_cores_is_told_so() {
    // Without plane operations a CUDA device counts as one.
    let lab = lab(false);
    let half = Element::F16.storage();
    assert_eq!(Engine::tensor_cores(&lab.client, &lab.machine, half, 64), Err(Unsupported::TensorCores(half)));
}

/// What the tests above cannot reach: the instructions, and 16-byte copies in the background.
#[cfg(feature = "cuda")]
mod cuda {
    use super::*;
    use crate::lab::cuda;
    use crate::problem::run;

    const ENGINES: [Engine; 2] = [ASYNCHRONOUS, SYNCHRONOUS];
    const ASYNCHRONOUS: Engine = Engine::TensorCores { asynchronous: true };
    const SYNCHRONOUS: Engine = Engine::TensorCores { asynchronous: false };
    const HALF_TYPES: [Element; 2] = [Element::F16, Element::Bf16];

    /// Head sizes with different tiles.
    fn problems() -> Vec<Problem> {
        let sizes = [8, 40, 64, 80, 96, 128, 160, 256];
        sizes.map(|head_dim| Problem::new([6, 2, 147, 320, head_dim], &[310, 147])).to_vec()
    }

    // Small problems of several tiles of queries and several steps of keys, one instance of the kernel to a test: emulated devices run
    // them, and `scripts/mutants.py` runs them on kernels with mistakes.
    #[test]
    #[ignore = "needs a CUDA device"]
    fn a_small_problem_in_bf16_agrees_with_plain_loops() {
        check_small(|tokens| small(64, tokens), Element::Bf16, ASYNCHRONOUS);
        for slant in [0.1, -0.1] {
            for (processors, tokens) in SMALL_TOKENS {
                let problem = Problem { slant, ..small(64, tokens) };
                check_on(&cuda(), processors, &problem, Element::Bf16, Int8::default(), ASYNCHRONOUS);
            }
        }
    }

    // Scores of steps that are near the middle of their rows and far from 0, above or below it, and that leave the reach of exponents.
    #[test]
    #[ignore = "needs a CUDA device"]
    fn a_small_problem_of_scores_that_drift_agrees_with_plain_loops() {
        let window = Some(Window::Back(100));
        for (element, slants) in [(Element::Bf16, [0.1, 0.3]), (Element::F16, [0.05, -0.05])] {
            for slant in slants {
                let drifting = Problem { slant, ..small(64, 61) };
                for problem in [
                    Problem { window, ..drifting.clone() },
                    Problem { slopes: true, ..drifting.clone() },
                    Problem { causal: false, ..drifting },
                ] {
                    check_on(&cuda(), PROCESSORS[1], &problem, element, Int8::default(), ASYNCHRONOUS);
                }
            }
        }
    }

    // Exponents cannot count from far below the maximum of a row if scores are next to nothing.
    #[test]
    #[ignore = "needs a CUDA device"]
    fn a_small_problem_of_other_scales_agrees_with_plain_loops() {
        for scale in [0.0, 1e-7, 2e-6, -0.2] {
            for slopes in [false, true] {
                let problem = Problem { scale: Some(scale), slopes, ..small(64, 61) };
                check_on(&cuda(), PROCESSORS[1], &problem, Element::Bf16, Int8::default(), ASYNCHRONOUS);
            }
        }
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn a_small_problem_with_a_nan_among_keys_shows_it_to_those_who_see_it() {
        for strange in [3, 80, 150] {
            for element in HALF_TYPES {
                let int8 = Int8 { strange: Some(strange), ..Int8::KEYS };
                check_on(&cuda(), PROCESSORS[1], &small(64, 61), element, int8, SYNCHRONOUS);
            }
        }
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn a_small_problem_with_every_mask_agrees_with_plain_loops() {
        let masked = |tokens| {
            let masked = small(40, tokens).masked().pop().unwrap();
            Problem { window: Some(Window::Back(100)), softcap: Some(30.0), sink: None, ..masked }
        };
        check_small(masked, Element::F16, ASYNCHRONOUS);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn a_small_problem_of_each_window_agrees_with_plain_loops() {
        for (window, causal) in [(Window::Around(60), false), (Window::Chunk(100), true)] {
            let windowed = |tokens| Problem { window: Some(window), causal, hidden_keys: true, ..small(40, tokens) };
            check_small(windowed, Element::F16, ASYNCHRONOUS);
        }
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn a_small_problem_of_large_heads_agrees_without_asynchronous_copies() {
        check_small(|tokens| small(160, tokens), Element::F16, SYNCHRONOUS);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn a_small_problem_of_int8_agrees_with_plain_loops() {
        // Not with large scores: what int8 stands for is rounded to f16.
        let small = small(64, 61);
        for problem in [small.clone(), Problem { slant: 0.1, ..small.clone() }, Problem { slant: -0.1, ..small }] {
            check_on(&cuda(), PROCESSORS[1], &problem, Element::F16, Int8::BOTH, ASYNCHRONOUS);
        }
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn a_small_problem_of_biases_agrees_with_plain_loops() {
        let biased = biased(128, &[284]);
        let drifting = [0.1, -0.1].map(|slant| Problem { slant, ..biased.clone() });
        for slanted in biased.slanted(1.0).into_iter().chain(drifting) {
            check_on(&cuda(), PROCESSORS[1], &slanted, Element::Bf16, Int8::default(), ASYNCHRONOUS);
        }
    }

    /// Biases of 16 bits for large heads: one cube of a multiprocessor takes all but the last of its 256 rows. A multiple of four keys, which makes
    /// vectors of them.
    fn biased(head_dim: usize, ends: &[usize]) -> Problem {
        let keys = *ends.last().unwrap();
        Problem { bias: true, bias_of_elements: true, ..Problem::new([2, 1, 126, keys, head_dim], ends) }
    }

    /// Three steps of keys in one row of the batch, and a query for each place in a step. In the other row, and in the last step, every copy
    /// has keys that no query sees.
    /// A row with a few keys, one whose first query sees all but one key of a whole step of 64, and one that lacks a key of a whole step
    /// and fills its cache: what is read after its end is after the end of the tensor.
    fn small(head_dim: usize, tokens: usize) -> Problem {
        Problem::new([2, 1, tokens, 191, head_dim], &[5, tokens + 62, 191])
    }

    /// Tokens of small problems with 16 rows in a plane, and with 32, where that leaves few rows of the last cube unused.
    const SMALL_TOKENS: [(u32, usize); 2] = [(PROCESSORS[0], 69), (PROCESSORS[1], 61)];

    fn check_small(problem: impl Fn(usize) -> Problem, element: Element, engine: Engine) {
        for (processors, tokens) in SMALL_TOKENS {
            for problem in problem(tokens).slanted(1.0) {
                check_on(&cuda(), processors, &problem, element, Int8::default(), engine);
            }
        }
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn a_sink_joins_the_sum_once_on_tensor_cores() {
        for sunk in some(Problem::new([4, 2, 37, 90, 64], &[80, 0]).sunk()) {
            check_on(&cuda(), PROCESSORS[0], &sunk, Element::F16, Int8::default(), ASYNCHRONOUS);
            let masked = Problem { hidden_keys: true, window: Some(Window::Back(2)), ..sunk.clone() };
            check_on(&cuda(), PROCESSORS[0], &masked, Element::Bf16, Int8::BOTH, SYNCHRONOUS);
            // Planes of 32 rows.
            let slopes = Problem { slopes: true, ..sunk };
            check_on(&cuda(), PROCESSORS[1], &slopes, Element::Bf16, Int8::default(), ASYNCHRONOUS);
        }
    }

    // One test for each engine and element type: each compiles and checks for more than a minute, so they run in parallel.
    #[test]
    #[ignore = "needs a CUDA device"]
    fn every_problem_in_f16_agrees_with_plain_loops() {
        check_every_problem(ASYNCHRONOUS, Element::F16, PROCESSORS[1]);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn every_problem_in_bf16_agrees_with_plain_loops() {
        check_every_problem(ASYNCHRONOUS, Element::Bf16, PROCESSORS[1]);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn every_problem_agrees_with_few_rows_in_a_plane() {
        check_every_problem(ASYNCHRONOUS, Element::F16, PROCESSORS[0]);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn every_problem_in_f16_agrees_without_asynchronous_copies() {
        check_every_problem(SYNCHRONOUS, Element::F16, PROCESSORS[1]);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn every_problem_in_bf16_agrees_without_asynchronous_copies() {
        check_every_problem(SYNCHRONOUS, Element::Bf16, PROCESSORS[0]);
    }

    fn check_every_problem(engine: Engine, element: Element, processors: u32) {
        let lab = cuda();
        let check = |problem: &Problem, int8: Int8| check_on(&lab, processors, problem, element, int8, engine);
        for problem in problems() {
            check(&problem, Int8::default());
            check(&problem, Int8::BOTH);
        }
        let masked = Problem::new([4, 2, 147, 320, 128], &[310, 147]);
        for masked in masked.masked() {
            check(&masked, Int8::default());
            check(&masked, Int8::BOTH);
        }
        for added in added(&masked) {
            check(&added, Int8::default());
        }
        // With 16 bits, cubes of 256 rows for all but the third and the fourth.
        for (head_dim, ends) in
            [(72, [126, 172]), (96, [3, 220]), (96, [126, 175]), (128, [126, 172]), (128, [220, 220])]
        {
            check(&biased(head_dim, &ends), Int8::default());
        }
        for (tokens, end) in [(1, 1), (1, 300), (65, 65), (64, 128), (257, 320), (3, 1)] {
            check(&Problem::new([3, 1, tokens, 321, 64], &[end]), Int8::default());
        }
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn every_number_of_rows_agrees() {
        let lab = cuda();
        for processors in PROCESSORS {
            for tokens in TOKENS {
                let mut problem = Problem::new([2, 2, tokens, tokens + 9, 40], &[tokens + 7]);
                check_on(&lab, processors, &problem, Element::Bf16, Int8::default(), ASYNCHRONOUS);
                problem.slopes = true;
                check_on(&lab, processors, &problem, Element::Bf16, Int8::default(), ASYNCHRONOUS);
            }
            // With biases that are whole vectors, and that are not.
            for keys in [200, 203] {
                let problem = Problem { bias: true, ..Problem::new([4, 2, 147, keys, 64], &[keys, 147]) };
                check_on(&lab, processors, &problem, Element::F16, Int8::default(), ASYNCHRONOUS);
            }
        }
    }

    /// Launches and looks at nothing: for a driver that computes nothing.
    #[test]
    #[ignore = "needs a CUDA driver"]
    fn every_kernel_compiles() {
        let lab = cuda();
        let compile = |problem: &Problem, element: Element, engine: Engine| {
            let (context, ()) =
                run(problem, &lab, element, |attention| launch(&lab.client, &lab.machine, attention, engine));
            std::hint::black_box(context);
        };
        for element in HALF_TYPES {
            for problem in problems() {
                compile(&problem, element, ENGINES[0]);
            }
            compile(problems()[5].masked().last().unwrap(), element, ENGINES[0]);
            compile(&problems()[5], element, ENGINES[1]);
        }
    }
}
