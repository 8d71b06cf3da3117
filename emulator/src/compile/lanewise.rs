//! Functions of one lane as instructions.

use super::instruction::{Action, Compute};
use crate::numbers::{bits_of, f32_of, flush};
use crate::registers::{Register, Value, WARP};

/// `to = f(a)` in every lane.
pub fn map1<A: Value, D: Value>(to: Register, a: Register, f: impl Fn(A) -> D + Send + Sync + 'static) -> Compute {
    Box::new(move |registers, lanes| {
        let a = registers.get::<A>(a);
        let mut values = [D::ZERO; WARP];
        for lane in 0..WARP {
            values[lane] = f(a[lane]);
        }
        registers.set(to, &values, lanes);
    })
}

/// `to = f(a, b)` in every lane.
pub fn map2<A: Value, B: Value, D: Value>(
    to: Register,
    [a, b]: [Register; 2],
    f: impl Fn(A, B) -> D + Send + Sync + 'static,
) -> Compute {
    Box::new(move |registers, lanes| {
        let (a, b) = (registers.get::<A>(a), registers.get::<B>(b));
        let mut values = [D::ZERO; WARP];
        for lane in 0..WARP {
            values[lane] = f(a[lane], b[lane]);
        }
        registers.set(to, &values, lanes);
    })
}

/// `to = f(a, b, c)` in every lane.
pub fn map3<A: Value, B: Value, C: Value, D: Value>(
    to: Register,
    [a, b, c]: [Register; 3],
    f: impl Fn(A, B, C) -> D + Send + Sync + 'static,
) -> Compute {
    Box::new(move |registers, lanes| {
        let (a, b, c) = (registers.get::<A>(a), registers.get::<B>(b), registers.get::<C>(c));
        let mut values = [D::ZERO; WARP];
        for lane in 0..WARP {
            values[lane] = f(a[lane], b[lane], c[lane]);
        }
        registers.set(to, &values, lanes);
    })
}

/// A function of one f32; with `ftz`, subnormal inputs and results are zeros.
pub fn float1(to: Register, a: Register, ftz: bool, f: impl Fn(f32) -> f32 + Send + Sync + 'static) -> Action {
    Action::Compute(match ftz {
        true => map1(to, a, move |a: u32| bits_of(flush(f(flush(f32_of(a)))))),
        false => map1(to, a, move |a: u32| bits_of(f(f32_of(a)))),
    })
}

/// A function of two f32.
pub fn float2(
    to: Register,
    from: [Register; 2],
    ftz: bool,
    f: impl Fn(f32, f32) -> f32 + Send + Sync + 'static,
) -> Action {
    Action::Compute(match ftz {
        true => map2(to, from, move |a: u32, b: u32| bits_of(flush(f(flush(f32_of(a)), flush(f32_of(b)))))),
        false => map2(to, from, move |a: u32, b: u32| bits_of(f(f32_of(a), f32_of(b)))),
    })
}

/// A function of three f32.
pub fn float3(
    to: Register,
    from: [Register; 3],
    ftz: bool,
    f: impl Fn(f32, f32, f32) -> f32 + Send + Sync + 'static,
) -> Action {
    Action::Compute(match ftz {
        true => map3(to, from, move |a: u32, b: u32, c: u32| {
            bits_of(flush(f(flush(f32_of(a)), flush(f32_of(b)), flush(f32_of(c)))))
        }),
        false => map3(to, from, move |a: u32, b: u32, c: u32| bits_of(f(f32_of(a), f32_of(b), f32_of(c)))),
    })
}
