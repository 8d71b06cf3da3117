//! f32, f64 and halves.

use half::{bf16, f16};

use crate::lab::{check_floats, each, interesting};

fn flush(value: f32) -> f32 {
    if value.is_subnormal() { 0f32.copysign(value) } else { value }
}

#[test]
fn single_precision_rounds_to_nearest() {
    check_floats("add.f32", 2, |v| v[0] + v[1]);
    check_floats("sub.rn.f32", 2, |v| v[0] - v[1]);
    check_floats("mul.f32", 2, |v| v[0] * v[1]);
    check_floats("div.rn.f32", 2, |v| v[0] / v[1]);
    check_floats("fma.rn.f32", 3, |v| v[0].mul_add(v[1], v[2]));
    check_floats("neg.f32", 1, |v| -v[0]);
    check_floats("abs.f32", 1, |v| v[0].abs());
    check_floats("copysign.f32", 2, |v| v[1].copysign(v[0]));
    check_floats("sqrt.rn.f32", 1, |v| v[0].sqrt());
    check_floats("rcp.rn.f32", 1, |v| 1.0 / v[0]);
}

#[test]
fn subnormal_numbers_are_zeros_with_ftz_only() {
    check_floats("add.ftz.f32", 2, |v| flush(flush(v[0]) + flush(v[1])));
    check_floats("mul.ftz.f32", 2, |v| flush(flush(v[0]) * flush(v[1])));
    check_floats("fma.rn.ftz.f32", 3, |v| flush(flush(v[0]).mul_add(flush(v[1]), flush(v[2]))));
    check_floats("ex2.approx.ftz.f32", 1, |v| flush(flush(v[0]).exp2()));
}

#[test]
fn saturation_gives_0_to_1_and_0_for_a_nan() {
    let saturate = |x: f32| if x.is_nan() { 0.0 } else { x.clamp(0.0, 1.0) };
    check_floats("add.sat.f32", 2, |v| saturate(v[0] + v[1]));
    check_floats("cvt.sat.f32.f32", 1, |v| saturate(v[0]));
}

/// A NaN gives the other number, unless `.NaN` asks for it; +0 is above -0.
#[test]
fn smallest_and_largest_of_floats() {
    let largest = |v: &[f32]| match (v[0].is_nan(), v[1].is_nan()) {
        (true, _) => v[1],
        (_, true) => v[0],
        _ if v[0] == 0.0 && v[1] == 0.0 => {
            if v[0].is_sign_positive() {
                v[0]
            } else {
                v[1]
            }
        }
        _ => v[0].max(v[1]),
    };
    let smallest = |v: &[f32]| -largest(&[-v[0], -v[1]]);
    check_floats("max.f32", 2, largest);
    check_floats("min.f32", 2, smallest);
    check_floats("max.NaN.f32", 2, |v| if v[0].is_nan() || v[1].is_nan() { f32::NAN } else { largest(v) });
}

/// The exact result lies between the rounded one and the next number above.
#[test]
fn rounding_down_never_gives_more_than_the_exact_result() {
    check_floats("fma.rm.f32", 3, |v| {
        let (a, b, c) = (f64::from(v[0]), f64::from(v[1]), f64::from(v[2]));
        let near = v[0].mul_add(v[1], v[2]);
        if !near.is_finite() && a.is_finite() && b.is_finite() && c.is_finite() {
            return if near > 0.0 { f32::MAX } else { near };
        }
        // Whether the nearest number is above the exact result, from the exact error of the sum.
        let product = a * b;
        let sum = product + c;
        let back = sum - product;
        let error = (product - (sum - back)) + (c - back);
        let above = f64::from(near) > sum || f64::from(near) == sum && error < 0.0;
        if above { near.next_down() } else { near }
    });
}

/// PTX ISA, "Floating Point Instructions: rcp, sqrt, rsqrt, sin, cos, lg2, tanh". Here an approximation is the function in f64, rounded.
#[test]
fn approximations_are_rounded_from_double_precision() {
    type Function = fn(f64) -> f64;
    let functions: [(&str, Function); 7] = [
        ("rcp", |x| 1.0 / x),
        ("sqrt", f64::sqrt),
        ("rsqrt", |x| 1.0 / x.sqrt()),
        ("sin", f64::sin),
        ("cos", f64::cos),
        ("lg2", f64::log2),
        ("tanh", f64::tanh),
    ];
    for (name, function) in functions {
        check_floats(&format!("{name}.approx.f32"), 1, |v| function(v[0].into()) as f32);
        if name != "tanh" {
            check_floats(&format!("{name}.approx.ftz.f32"), 1, |v| flush(function(flush(v[0]).into()) as f32));
        }
    }
}

/// The tables of the same sections, for inputs without a usual result.
#[test]
fn approximations_of_zeros_and_infinities_follow_the_tables() {
    let (zero, infinity) = (0f32, f32::INFINITY);
    let inputs = [-infinity, -0.0, zero, infinity, f32::NAN];
    for (operation, expected) in [
        ("rcp.approx.f32", [-0.0, -infinity, infinity, zero, f32::NAN]),
        ("sqrt.approx.f32", [f32::NAN, -0.0, zero, infinity, f32::NAN]),
        ("rsqrt.approx.f32", [f32::NAN, -infinity, infinity, zero, f32::NAN]),
        ("sin.approx.f32", [f32::NAN, -0.0, zero, f32::NAN, f32::NAN]),
        ("cos.approx.f32", [f32::NAN, 1.0, 1.0, f32::NAN, f32::NAN]),
        ("lg2.approx.f32", [f32::NAN, -infinity, -infinity, infinity, f32::NAN]),
        ("ex2.approx.f32", [zero, 1.0, 1.0, infinity, f32::NAN]),
        ("tanh.approx.f32", [-1.0, -0.0, zero, 1.0, f32::NAN]),
    ] {
        let values: Vec<Vec<u64>> = inputs.iter().map(|input| vec![input.to_bits().into()]).collect();
        for ((found, input), expected) in each(operation, 32, &[32], &values).into_iter().zip(inputs).zip(expected) {
            let found = f32::from_bits(found as u32);
            let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
            assert!(same, "{operation} of {input}: {found}, expected {expected}");
        }
    }
}

/// PTX ISA, "Half Precision Floating Point Instructions: tanh, ex2".
#[test]
fn approximations_in_halves() {
    let check = |operation: &str, expected: &dyn Fn(u16) -> u16| {
        let values: Vec<Vec<u64>> = interesting(16).into_iter().map(|bits| vec![bits]).collect();
        for (found, value) in each(operation, 16, &[16], &values).into_iter().zip(&values) {
            let expected = expected(value[0] as u16);
            // Both NaN, whichever of the two types it is.
            let same = found == u64::from(expected) || found == 0x7fff && expected & 0x7fff > 0x7c00;
            assert!(same, "{operation} of {value:x?}: {found:x}, expected {expected:x}");
        }
    };
    let f16_by = |f: fn(f64) -> f64| move |bits: u16| f16::from_f64(f(f16::from_bits(bits).to_f64())).to_bits();
    let bf16_by = |f: fn(f64) -> f64| move |bits: u16| bf16::from_f64(f(bf16::from_bits(bits).to_f64())).to_bits();
    check("tanh.approx.f16", &f16_by(f64::tanh));
    check("ex2.approx.f16", &f16_by(f64::exp2));
    check("tanh.approx.bf16", &bf16_by(f64::tanh));
    check("ex2.approx.ftz.bf16", &bf16_by(f64::exp2));
    let pair =
        |low: f32, high: f32| u64::from(f16::from_f32(low).to_bits()) | u64::from(f16::from_f32(high).to_bits()) << 16;
    assert_eq!(each("ex2.approx.f16x2", 32, &[32], &[vec![pair(3.0, -1.0)]]), [pair(8.0, 0.5)]);
}

#[test]
fn double_precision() {
    let values: Vec<Vec<u64>> = [(1.5, -2.25), (0.1, 0.2), (1e300, 1e300), (f64::INFINITY, 1.0), (3.0, 7.0)]
        .map(|(a, b): (f64, f64)| vec![a.to_bits(), b.to_bits()])
        .to_vec();
    for (operation, expected) in
        [("add.f64", (|a, b| a + b) as fn(f64, f64) -> f64), ("mul.rn.f64", |a, b| a * b), ("div.rn.f64", |a, b| a / b)]
    {
        for (found, v) in each(operation, 64, &[64, 64], &values).into_iter().zip(&values) {
            assert_eq!(found, expected(f64::from_bits(v[0]), f64::from_bits(v[1])).to_bits(), "{operation}");
        }
    }
}

/// Sums and products of halves are exact in f64, so one rounding of the f64 is right.
#[test]
fn halves_are_rounded_once() {
    let some: Vec<u64> = interesting(16).into_iter().chain([0x3c00, 0x3c01, 0x7bff, 0x0001, 0x3f80, 0x3f81]).collect();
    let values: Vec<Vec<u64>> = some.iter().flat_map(|a| some.iter().map(|b| vec![*a, *b])).collect();
    for values in values.chunks(1024) {
        for (found, v) in each("mul.rn.f16", 16, &[16, 16], values).into_iter().zip(values) {
            let [a, b] = [v[0], v[1]].map(|bits| f16::from_bits(bits as u16));
            // The product has 22 bits, so f32 holds it.
            let expected = f16::from_f32(a.to_f32() * b.to_f32());
            assert!(
                found == u64::from(expected.to_bits()) || expected.is_nan() && found == 0x7fff,
                "{v:x?}: {found:x}"
            );
        }
        for (found, v) in each("add.rn.bf16", 16, &[16, 16], values).into_iter().zip(values) {
            let [a, b] = [v[0], v[1]].map(|bits| bf16::from_bits(bits as u16).to_f32());
            // Where f32 is exact; otherwise the sum has lost bits.
            let sum = a + b;
            if f64::from(sum) == f64::from(a) + f64::from(b) {
                assert_eq!(found, u64::from(bf16::from_f32(sum).to_bits()), "{v:x?}");
            }
        }
    }
}

#[test]
fn both_halves_of_a_word_are_computed() {
    let word = |a: f32, b: f32| u64::from(f16::from_f32(a).to_bits()) | u64::from(f16::from_f32(b).to_bits()) << 16;
    let values = vec![vec![word(1.5, -2.0), word(0.25, 8.0), word(1.0, 1.0)]];
    assert_eq!(each("fma.rn.f16x2", 32, &[32; 3], &values), [word(1.375, -15.0)]);
    assert_eq!(each("max.f16x2", 32, &[32; 2], &[vec![values[0][0], values[0][1]]]), [word(1.5, 8.0)]);
    assert_eq!(each("neg.f16x2", 32, &[32], &[vec![values[0][0]]]), [word(-1.5, 2.0)]);
}
