//! Powers of two, the sigmoid, the hyperbolic tangent and the error function on vectors, and rounding of floats to integers.

use pulp::Simd;

/// Below this, `exp2` is less than the smallest normal number; hidden scores, which are `-inf`, are below it too.
pub(super) const SMALLEST: f32 = -126.0;

/// Coefficients of 2^f for `|f| ≤ 1/2`, that of the highest power first, without the last, 1. They minimise the largest relative error, 9e-8.
#[allow(clippy::approx_constant, reason = "it is near ln 2, but not ln 2")]
pub(super) const POWERS: [f32; 5] = [1.326_472_7e-3, 9.671_513e-3, 5.550_733_6e-2, 0.240_222_42, 0.693_147];

/// Divides by a scale and rounds to nearest, ties to even. Returns the scale: the largest magnitude over `most`, so that the
/// integers are within `±most`, all of which `whole` must accept. An infinity or NaN makes the scale NaN and all integers 0.
#[inline(always)]
pub(super) fn round<E: Copy>(numbers: &[f32], most: f32, places: &mut [E], whole: impl Fn(i32) -> E) -> f32 {
    // The bits of magnitudes are ordered as they are, those of infinity and NaN after all others.
    let mut largest = 0;
    for number in numbers {
        largest = largest.max(number.to_bits() & !(1 << 31));
    }
    if largest >= f32::INFINITY.to_bits() {
        places.fill(whole(0));
        return f32::NAN;
    }
    let scale = f32::from_bits(largest) / most;
    if scale == 0.0 {
        places.fill(whole(0));
        return 0.0;
    }
    for (place, number) in places.iter_mut().zip(numbers) {
        // The smallest scales are subnormal and have too few digits to stay in the range.
        let nearest = (number / scale).round_ties_even().clamp(-most, most);
        // SAFETY: it is no NaN and within the limits. A checked conversion is not vectorised.
        *place = whole(unsafe { nearest.to_int_unchecked() });
    }
    scale
}

/// `2^x` for an `x` that is not above 0, within two units in the last place; 0 below -126, NaN for NaN, 1 for 0.
///
/// `x = n + f` with an integer `n` and `|f| ≤ 1/2`: a polynomial gives `2^f`, the exponent bits `2^n`.
#[inline(always)]
pub(super) fn exp2<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // Adding it leaves the nearest integer plus 127 in the lowest bits: an exponent.
    const ROUND: f32 = 12_582_912.0 + 127.0;
    // By comparison: a NaN passes.
    let nothing = simd.less_than_f32s(x, simd.splat_f32s(SMALLEST));
    let x = simd.select_f32s(nothing, simd.splat_f32s(SMALLEST), x);
    let round = simd.splat_f32s(ROUND);
    let shifted = simd.add_f32s(x, round);
    let rest = simd.sub_f32s(x, simd.sub_f32s(shifted, round));

    let mut power = simd.splat_f32s(POWERS[0]);
    for coefficient in &POWERS[1..] {
        power = simd.mul_add_e_f32s(power, rest, simd.splat_f32s(*coefficient));
    }
    let power = simd.mul_add_e_f32s(power, rest, simd.splat_f32s(1.0));
    let scale = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    simd.select_f32s(nothing, simd.splat_f32s(0.0), simd.mul_f32s(power, simd.transmute_f32s_u32s(scale)))
}

/// `1 / (1 + e^(-x))`, within a few units in the last place; NaN for NaN.
#[inline(always)]
pub(super) fn sigmoid<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // With t = e^(-|x|), 1 / (1 + t) above zero and t / (1 + t) below: exponents are not above 0.
    let one = simd.splat_f32s(1.0);
    let t = exp2(simd, simd.mul_f32s(simd.abs_f32s(x), simd.splat_f32s(-std::f32::consts::LOG2_E)));
    let below = simd.less_than_f32s(x, simd.splat_f32s(0.0));
    simd.div_f32s(simd.select_f32s(below, t, one), simd.add_f32s(one, t))
}

/// `tanh x`, within a few units in the last place.
#[inline(always)]
pub(super) fn tanh<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let one = simd.splat_f32s(1.0);
    // (1 - t) / (1 + t) with t = e^(-2 |x|).
    let magnitude = simd.abs_f32s(x);
    let t = exp2(simd, simd.mul_f32s(magnitude, simd.splat_f32s(-2.0 * std::f32::consts::LOG2_E)));
    let far = simd.div_f32s(simd.sub_f32s(one, t), simd.add_f32s(one, t));
    let sign = simd.and_f32s(x, simd.splat_f32s(-0.0));
    let far = simd.or_f32s(far, sign);
    // Near zero the difference cancels; there the series is short.
    let square = simd.mul_f32s(x, x);
    let mut sum = simd.splat_f32s(62.0 / 2835.0);
    for coefficient in [-17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0] {
        sum = simd.mul_add_e_f32s(sum, square, simd.splat_f32s(coefficient));
    }
    let near = simd.mul_add_e_f32s(simd.mul_f32s(sum, square), x, x);
    simd.select_f32s(simd.less_than_f32s(magnitude, simd.splat_f32s(0.2)), near, far)
}

/// The error function, within 2e-7; NaN for NaN.
#[inline(always)]
pub(super) fn erf<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // erf x / x in powers of x² for |x| ≤ 1, and log2 (1 - erf x) in powers of x from there to 4. Both minimise the largest error.
    #[allow(clippy::approx_constant, reason = "it is near 2 / √π, but not 2 / √π")]
    const NEAR: [f32; 6] = [-5.631_42e-4, 4.917_551e-3, -2.671_131e-2, 0.112_801_8, -0.376_123_25, 1.128_379_1];
    const FAR: [f32; 7] =
        [2.677_267e-4, -4.240_957e-3, 3.145_842_6e-2, -0.148_651_51, -0.920_765_04, -1.625_975_1, -5.103_088e-4];
    let magnitude = simd.abs_f32s(x);
    let square = simd.mul_f32s(x, x);
    let mut near = simd.splat_f32s(NEAR[0]);
    for coefficient in &NEAR[1..] {
        near = simd.mul_add_e_f32s(near, square, simd.splat_f32s(*coefficient));
    }
    let near = simd.mul_f32s(near, x);
    // Above 4 it is 1. By comparison: a NaN passes.
    let four = simd.splat_f32s(4.0);
    let end = simd.select_f32s(simd.less_than_f32s(four, magnitude), four, magnitude);
    let mut power = simd.splat_f32s(FAR[0]);
    for coefficient in &FAR[1..] {
        power = simd.mul_add_e_f32s(power, end, simd.splat_f32s(*coefficient));
    }
    let far = simd.sub_f32s(simd.splat_f32s(1.0), exp2(simd, power));
    let far = simd.or_f32s(far, simd.and_f32s(x, simd.splat_f32s(-0.0)));
    simd.select_f32s(simd.less_than_f32s(magnitude, simd.splat_f32s(1.0)), near, far)
}

#[cfg(test)]
mod tests {
    use pulp::{Arch, Simd, WithSimd};

    struct Each<'a>(&'a mut [f32], bool);

    impl WithSimd for Each<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let (vectors, rest) = S::as_mut_simd_f32s(self.0);
            assert!(rest.is_empty());
            for vector in vectors {
                *vector = if self.1 { super::tanh(simd, *vector) } else { super::exp2(simd, *vector) };
            }
        }
    }

    fn check(tanh: bool, last: i32, exact: fn(f64) -> f64) {
        let inputs: Vec<f32> = (-16_000..last).map(|at| at as f32 * 0.0071).collect();
        let mut outputs = inputs.clone();
        Arch::new().dispatch(Each(&mut outputs, tanh));
        for (input, output) in inputs.iter().zip(outputs) {
            let expected = exact(f64::from(*input));
            let error = (f64::from(output) - expected).abs();
            assert!(error <= 4e-7 * expected.abs() || error < 2e-38, "{input}: {output}, expected {expected}");
        }
    }

    #[test]
    fn exp2_is_exact_to_a_few_units_in_the_last_place() {
        check(false, 0, f64::exp2);
    }

    #[test]
    fn tanh_is_exact_to_a_few_units_in_the_last_place() {
        check(true, 16_000, f64::tanh);
    }

    #[test]
    fn exp2_of_the_ends() {
        let mut values = vec![0.0f32; 16];
        values[..5].copy_from_slice(&[0.0, f32::NEG_INFINITY, -0.0, f32::NAN, f32::MIN]);
        Arch::new().dispatch(Each(&mut values, false));
        assert_eq!(values[..3], [1.0, 0.0, 1.0]);
        assert!(values[3].is_nan());
        assert_eq!(values[4], 0.0);
    }
}
