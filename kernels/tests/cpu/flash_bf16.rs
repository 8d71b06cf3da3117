//! Attention of many queries with keys and values in bf16, which AMX multiplies where the processor has it.

use burn_deepspeed_core::visibility::Window;
use burn_deepspeed_kernels::cpu::flash::flash;

use crate::oracle::{Problem, assert_near};
use crate::problem::{Form, TOLERANCE, Tensors};

/// Keys and values in bf16; queries that have as many significant bits.
fn tensors(problem: &Problem, bits: u32) -> Tensors {
    let mut tensors = Tensors::new(problem).stored(problem, [Form::BF16; 2]);
    let mask = u32::MAX << (24 - bits);
    tensors.query.iter_mut().for_each(|x| *x = f32::from_bits(x.to_bits() & mask));
    tensors
}

fn check(problem: &Problem) {
    for bits in [8, 16, 24] {
        let tensors = tensors(problem, bits);
        let expected = tensors.expected(problem);
        assert_near(&format!("{bits} bits, {problem:?}"), &tensors.solve(problem, flash), &expected, TOLERANCE);
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn every_size_agrees_with_f64() {
    // Unused slots, those after the end of a row and hidden ones, are NaN.
    for tokens in [1, 15, 16, 17, 33, 100] {
        for keys in [1, 31, 33, 70, 257] {
            let head_dim = [8, 40, 64, 72, 128, 256][(tokens + keys) % 6];
            let value_dim = [256, 72, 8, 128, 40, 64][(tokens + keys) % 6];
            let ends = [keys, keys / 2 + 1];
            let problem = Problem { value_dim, ..Problem::new([4, 2, tokens, keys + 5, head_dim], &ends) };
            check(&problem);
            check(&Problem { causal: false, hidden_keys: true, ..problem });
        }
    }
}

#[test]
fn every_mask_agrees_with_f64() {
    let problem = Problem::new([6, 2, 37, 190, 40], &[183, 70]);
    problem.masked().iter().chain(&problem.windows()).for_each(check);
    // A window that begins within a step of keys, and one that begins in another part.
    for window in [Window::Back(9), Window::Around(140), Window::Chunk(100)] {
        check(&Problem { window: Some(window), causal: false, ..Problem::new([2, 1, 70, 700, 24], &[690, 333]) });
    }
    for problem in Problem::new([6, 2, 19, 83, 40], &[70, 0]).sunk() {
        check(&problem);
    }
}

#[test]
fn what_is_not_finite_shows_only_where_it_is_seen() {
    // The last keys are seen by the last queries alone, which are in tiles and steps of others.
    let sizes = [2, 1, 90, 90, 24];
    let problem = Problem::new(sizes, &[90]);
    let clean = tensors(&problem, 24).solve(&problem, flash);
    let first = 85 * 2 * 24;
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for side in 0..3 {
            let mut tensors = Tensors::new(&problem);
            match side {
                0 => tensors.key[85 * 24 + 3] = bad,
                1 => tensors.value[85 * 24 + 3] = bad,
                // A query of the first head.
                _ => tensors.query[85 * 24 + 3] = bad,
            }
            let tensors = tensors.stored(&problem, [Form::BF16; 2]);
            let (found, expected) = (tensors.solve(&problem, flash), tensors.expected(&problem));
            assert_eq!(bits(&found[..first]), bits(&clean[..first]), "{bad}, side {side}: the others");
            for (at, (found, expected)) in found.iter().zip(expected).enumerate().skip(first) {
                let near = (f64::from(*found) - expected).abs() <= TOLERANCE * expected.abs().max(1.0);
                let same = f64::from(*found) == expected || found.is_nan() && expected.is_nan();
                assert!(near || same, "{bad}, side {side}, element {at}: {found}, expected {expected}");
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_next_to_any_others_on_any_threads() {
    let pools = [1, 2, 5].map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap());
    for (window, hidden_keys) in [(None, false), (Some(Window::Back(150)), false), (None, true)] {
        let problem = Problem { window, hidden_keys, ..Problem::new([4, 2, 140, 500, 40], &[500, 333, 500]) };
        // A row of 24 bits between rows of 8, alone, and with a value that is not finite.
        let mut mixed = tensors(&problem, 8);
        let exact = tensors(&problem, 24);
        let row = mixed.query.len() / 3;
        mixed.query[row..2 * row].copy_from_slice(&exact.query[row..2 * row]);
        let results: Vec<Vec<u32>> =
            pools.iter().map(|pool| pool.install(|| bits(&mixed.solve(&problem, flash)))).collect();
        let whole = pools[0].install(|| bits(&exact.solve(&problem, flash)));
        let own = whole.len() / 3..2 * (whole.len() / 3);
        for found in results {
            assert_eq!(found[own.clone()], whole[own.clone()], "{window:?}");
        }
    }
}

#[test]
fn a_query_has_the_same_bits_next_to_queries_of_any_length() {
    let problem = Problem::new([1, 1, 64, 200, 72], &[200]);
    let short = tensors(&problem, 8);
    let mut mixed = tensors(&problem, 24);
    mixed.query[..72].copy_from_slice(&short.query[..72]);
    let (found, expected) = (mixed.solve(&problem, flash), short.solve(&problem, flash));
    assert_eq!(bits(&found[..72]), bits(&expected[..72]));
}

#[test]
fn the_largest_error_is_near_that_of_f32() {
    let problem = Problem::new([2, 1, 100, 257, 64], &[257]);
    let worst = |found: &[f32], expected: &[f64]| {
        found
            .iter()
            .zip(expected)
            .fold(0.0f64, |worst, (found, expected)| worst.max((f64::from(*found) - expected).abs()))
    };
    let tensors = tensors(&problem, 24);
    let expected = tensors.expected(&problem);
    let found = worst(&tensors.solve(&problem, flash), &expected);
    // The same numbers in f32.
    let mut wide = Tensors::new(&problem);
    (wide.query, wide.key, wide.value) = (tensors.query.clone(), tensors.key.clone(), tensors.value.clone());
    let in_f32 = worst(&wide.solve(&problem, flash), &expected);
    println!("largest error with bf16 {found:.2e}, with f32 {in_f32:.2e}");
    // Weights that add up to 1, off by 2^-17 each, and values of at most 1.
    assert!(found <= in_f32 + 2f64.powi(-17), "{found}, in f32 {in_f32}");
}
