//! Arithmetic. PTX ISA, "Integer Arithmetic Instructions", "Floating Point Instructions" and "Half Precision Floating Point
//! Instructions".

use super::builder::Builder;
use super::instruction::{Action, Compute};
use super::lanewise::{float1, float2, float3, map1, map2, map3};
use crate::numbers::{bf16_of, f16_of, low, signed, to_bf16, to_f16};
use crate::ptx::{Kind, Type};
use crate::registers::Register;

pub fn compile(b: &mut Builder<'_>) -> Result<Action, String> {
    let of = b.type_()?;
    match of.kind {
        Kind::Float if of.bits == 32 => single(b),
        Kind::Float => double(b),
        Kind::Half | Kind::Brain => half(b, of),
        Kind::Bits | Kind::Unsigned | Kind::Signed => integer(b, of),
        other => Err(format!("arithmetic on {other:?}")),
    }
}

/// `d, a`, `d, a, b` or `d, a, b, c`.
struct Operands {
    to: Register,
    from: Vec<Register>,
}

impl Operands {
    fn read(b: &mut Builder<'_>, bits: u32) -> Result<Self, String> {
        let to = b.destination(0)?;
        let from = (1..b.operands().len()).map(|index| b.source(index, bits)).collect::<Result<_, _>>()?;
        Ok(Self { to, from })
    }

    fn take<const N: usize>(&self) -> Result<[Register; N], String> {
        <[Register; N]>::try_from(&self.from[..]).map_err(|_| format!("{} inputs, expected {N}", self.from.len()))
    }
}

/// PTX's `max`: a NaN gives the other number, and +0 is above -0.
pub fn maximum(a: f32, b: f32) -> f32 {
    match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a == b => {
            if a.is_sign_negative() {
                b
            } else {
                a
            }
        }
        _ => {
            if a > b {
                a
            } else {
                b
            }
        }
    }
}

/// PTX's `min`.
pub fn minimum(a: f32, b: f32) -> f32 {
    -maximum(-a, -b)
}

/// A NaN if one of the two is one: `.NaN`.
fn with_nan(f: fn(f32, f32) -> f32) -> impl Fn(f32, f32) -> f32 {
    move |a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { f(a, b) }
}

/// `a · b + c` rounded towards minus infinity.
fn fma_down(a: f32, b: f32, c: f32) -> f32 {
    // The product is exact in f64, and the sum is off by `error`, which decides whether it was rounded up.
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    if !sum.is_finite() {
        return sum as f32;
    }
    let virtual_c = sum - product;
    let error = (product - (sum - virtual_c)) + (c - virtual_c);
    let near = sum as f32;
    if f64::from(near) > sum || (f64::from(near) == sum && error < 0.0) { near.next_down() } else { near }
}

/// `.sat`: to 0..1, and a NaN to 0.
fn saturate(value: f32) -> f32 {
    if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) }
}

fn single(b: &mut Builder<'_>) -> Result<Action, String> {
    let (ftz, sat, nan) = (b.flag("ftz"), b.flag("sat"), b.flag("NaN"));
    // `div.approx` and `div.full` may be off by 2 ulp; here they are exact.
    let rounding = b.one_of(&["rn", "rm", "approx", "full"]);
    let down = rounding == Some("rm");
    let operands = Operands::read(b, 32)?;
    let to = operands.to;
    if down && b.opcode() != "fma" {
        return Err("rounding towards minus infinity is supported for `fma` only".into());
    }
    let clamp = move |value| if sat { saturate(value) } else { value };
    Ok(match b.opcode() {
        "add" => float2(to, operands.take()?, ftz, move |a, b| clamp(a + b)),
        "sub" => float2(to, operands.take()?, ftz, move |a, b| clamp(a - b)),
        "mul" => float2(to, operands.take()?, ftz, move |a, b| clamp(a * b)),
        "fma" if down => float3(to, operands.take()?, ftz, move |a, b, c| clamp(fma_down(a, b, c))),
        "fma" | "mad" => float3(to, operands.take()?, ftz, move |a, b, c| clamp(a.mul_add(b, c))),
        _ if sat => return Err("`.sat` is supported for sums and products only".into()),
        "div" => float2(to, operands.take()?, ftz, |a, b| a / b),
        "min" if nan => float2(to, operands.take()?, ftz, with_nan(minimum)),
        "max" if nan => float2(to, operands.take()?, ftz, with_nan(maximum)),
        "min" => float2(to, operands.take()?, ftz, minimum),
        "max" => float2(to, operands.take()?, ftz, maximum),
        "abs" => float1(to, operands.take::<1>()?[0], ftz, f32::abs),
        "neg" => float1(to, operands.take::<1>()?[0], ftz, |a| -a),
        // The sign of the first, the magnitude of the second.
        "copysign" => float2(to, operands.take()?, ftz, |sign, magnitude| magnitude.copysign(sign)),
        other => return Err(format!("`{other}` of f32")),
    })
}

fn double(b: &mut Builder<'_>) -> Result<Action, String> {
    b.flag("rn");
    let operands = Operands::read(b, 64)?;
    let to = operands.to;
    let f = f64::from_bits;
    Ok(Action::Compute(match b.opcode() {
        "add" => map2(to, operands.take()?, move |a: u64, b: u64| (f(a) + f(b)).to_bits()),
        "sub" => map2(to, operands.take()?, move |a: u64, b: u64| (f(a) - f(b)).to_bits()),
        "mul" => map2(to, operands.take()?, move |a: u64, b: u64| (f(a) * f(b)).to_bits()),
        "div" => map2(to, operands.take()?, move |a: u64, b: u64| (f(a) / f(b)).to_bits()),
        "fma" => map3(to, operands.take()?, move |a: u64, b: u64, c: u64| f(a).mul_add(f(b), f(c)).to_bits()),
        "abs" => map1(to, operands.take::<1>()?[0], move |a: u64| f(a).abs().to_bits()),
        "neg" => map1(to, operands.take::<1>()?[0], move |a: u64| (-f(a)).to_bits()),
        other => return Err(format!("`{other}` of f64")),
    }))
}

/// Computes in f64, where sums and products of halves are exact, and rounds once.
fn half(b: &mut Builder<'_>, of: Type) -> Result<Action, String> {
    let (_, nan) = (b.flag("rn"), b.flag("NaN"));
    let up = if of.kind == Kind::Half { f16_of } else { bf16_of };
    let down = if of.kind == Kind::Half { to_f16 } else { to_bf16 };
    let operands = Operands::read(b, of.width())?;
    let to = operands.to;
    let signs = if of.packed { 0x8000_8000 } else { 0x8000u32 };
    let compute: fn(f64, f64, f64) -> f64 = match b.opcode() {
        "neg" => return Ok(Action::Compute(map1(to, operands.take::<1>()?[0], move |a: u32| a ^ signs))),
        "abs" => return Ok(Action::Compute(map1(to, operands.take::<1>()?[0], move |a: u32| a & !signs))),
        "add" => |a, b, _| a + b,
        "sub" => |a, b, _| a - b,
        "mul" => |a, b, _| a * b,
        "fma" => |a, b, c| a.mul_add(b, c),
        "min" if nan => |a, b, _| with_nan(minimum)(a as f32, b as f32).into(),
        "max" if nan => |a, b, _| with_nan(maximum)(a as f32, b as f32).into(),
        "min" => |a, b, _| minimum(a as f32, b as f32).into(),
        "max" => |a, b, _| maximum(a as f32, b as f32).into(),
        other => return Err(format!("`{other}` of {:?}", of.kind)),
    };
    // Two inputs are three of which the last is not used.
    let from = match operands.from[..] {
        [a, b] => [a, b, b],
        [a, b, c] => [a, b, c],
        _ => return Err(format!("{} inputs", operands.from.len())),
    };
    let one = move |a: u32, b: u32, c: u32| down(compute(up(a).into(), up(b).into(), up(c).into()));
    Ok(Action::Compute(match of.packed {
        true => map3(to, from, move |a: u32, b: u32, c: u32| one(a, b, c) | one(a >> 16, b >> 16, c >> 16) << 16),
        false => map3(to, from, one),
    }))
}

/// Integers of 16, 32 and 64 bits, all computed in 64 bits or more and cut.
fn integer(b: &mut Builder<'_>, of: Type) -> Result<Action, String> {
    let part = b.one_of(&["lo", "hi", "wide"]);
    let sat = b.flag("sat");
    let (bits, is_signed) = (of.bits, of.is_signed());
    let to = b.destination(0)?;
    let count = b.operands().len() - 1;
    let wide = part == Some("wide");
    // The third input of a wide product is as wide as the result.
    let width = |index: usize| if index == 3 && wide { 2 * bits } else { bits };
    let from = (1..=count).map(|index| b.source(index, width(index))).collect::<Result<Vec<_>, _>>()?;
    let take = |count: usize| match from.len() == count {
        true => Ok(()),
        false => Err(format!("{} inputs, expected {count}", from.len())),
    };
    if sat && !(b.opcode() == "add" || b.opcode() == "sub") {
        return Err("`.sat` is supported for sums only".into());
    }
    let read = move |value: u64| {
        if is_signed { i128::from(signed(value, bits)) } else { i128::from(low(value, bits)) }
    };
    let result_bits = if wide { 2 * bits } else { bits };
    let cut = move |value: i128| low(value as u64, result_bits);
    let name = b.opcode();
    if let Some(fast) = fast(name, of, part, sat, to, &from) {
        return Ok(Action::Compute(fast));
    }
    let shift = if part == Some("hi") { bits } else { 0 };
    let limits = (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1);
    let two = |f: fn(i128, i128) -> i128| -> Result<Compute, String> {
        take(2)?;
        Ok(map2(to, [from[0], from[1]], move |a: u64, b: u64| {
            let result = f(read(a), read(b)) >> shift;
            cut(if sat { result.clamp(limits.0, limits.1) } else { result })
        }))
    };
    let one = |f: fn(i128) -> i128| -> Result<Compute, String> {
        take(1)?;
        Ok(map1(to, from[0], move |a: u64| cut(f(read(a)))))
    };
    Ok(Action::Compute(match name {
        "add" => two(|a, b| a + b)?,
        "sub" => two(|a, b| a - b)?,
        // The product of two 64-bit integers without a sign needs all of 128 bits; only its bits matter.
        "mul" if bits == 64 && !is_signed => {
            take(2)?;
            map2(to, [from[0], from[1]], move |a: u64, b: u64| ((u128::from(a) * u128::from(b)) >> shift) as u64)
        }
        "mul" => two(|a, b| a * b)?,
        "mad" => {
            take(3)?;
            map3(to, [from[0], from[1], from[2]], move |a: u64, b: u64, c: u64| {
                let product = read(a).wrapping_mul(read(b)) >> shift;
                cut(product.wrapping_add(i128::from(c)))
            })
        }
        // Division by zero has no defined result; GPUs give all ones, and the dividend as remainder.
        "div" => two(|a, b| a.checked_div(b).unwrap_or(-1))?,
        "rem" => two(|a, b| a.checked_rem(b).unwrap_or(a))?,
        "min" => two(i128::min)?,
        "max" => two(i128::max)?,
        "abs" => one(i128::abs)?,
        "neg" => one(|a| -a)?,
        other => return Err(format!("`{other}` of integers")),
    }))
}

/// `dp4a` and `dp2a`: four bytes times four bytes, or two halves times the lower or the upper two bytes; the products are added to the third
/// input.
pub fn dot(b: &mut Builder<'_>) -> Result<Action, String> {
    let upper = b.one_of(&["lo", "hi"]) == Some("hi");
    let (first, second) = (b.type_()?, b.type_()?);
    let count = if b.opcode() == "dp4a" { 4 } else { 2 };
    let (to, from) = (b.destination(0)?, [b.source(1, 32)?, b.source(2, 32)?, b.source(3, 32)?]);
    // Element `at` of a word, one of `bits`.
    let element = |of: Type, word: u32, at: u32, bits: u32| {
        let value = u64::from(word >> (at * bits));
        if of.kind == Kind::Signed { signed(value, bits) as u32 } else { low(value, bits) as u32 }
    };
    Ok(Action::Compute(map3(to, from, move |a: u32, b: u32, c: u32| {
        let product = |at: u32| {
            let other = if upper { at + 2 } else { at };
            element(first, a, at, 32 / count).wrapping_mul(element(second, b, other, 8))
        };
        (0..count).map(product).fold(c, u32::wrapping_add)
    })))
}

/// The instructions that address arithmetic is made of, without the detour over 128 bits.
fn fast(name: &str, of: Type, part: Option<&str>, sat: bool, to: Register, from: &[Register]) -> Option<Compute> {
    if sat {
        return None;
    }
    Some(match (name, of.bits, part, from) {
        ("add", 32, None, &[a, b]) => map2(to, [a, b], u32::wrapping_add),
        ("sub", 32, None, &[a, b]) => map2(to, [a, b], u32::wrapping_sub),
        ("add", 64, None, &[a, b]) => map2(to, [a, b], u64::wrapping_add),
        ("sub", 64, None, &[a, b]) => map2(to, [a, b], u64::wrapping_sub),
        ("mul", 32, Some("lo"), &[a, b]) => map2(to, [a, b], u32::wrapping_mul),
        ("mul", 64, Some("lo"), &[a, b]) => map2(to, [a, b], u64::wrapping_mul),
        ("mad", 32, Some("lo"), &[a, b, c]) => {
            map3(to, [a, b, c], |a: u32, b: u32, c: u32| a.wrapping_mul(b).wrapping_add(c))
        }
        ("mul", 32, Some("wide"), &[a, b]) if of.kind == Kind::Signed => {
            map2(to, [a, b], |a: u32, b: u32| (i64::from(a as i32) * i64::from(b as i32)) as u64)
        }
        ("mul", 32, Some("wide"), &[a, b]) => map2(to, [a, b], |a: u32, b: u32| u64::from(a) * u64::from(b)),
        ("div", 32, None, &[a, b]) if of.kind == Kind::Unsigned => {
            map2(to, [a, b], |a: u32, b: u32| a.checked_div(b).unwrap_or(u32::MAX))
        }
        ("min", 32, None, &[a, b]) if of.kind == Kind::Unsigned => map2(to, [a, b], u32::min),
        ("max", 32, None, &[a, b]) if of.kind == Kind::Unsigned => map2(to, [a, b], u32::max),
        _ => return None,
    })
}
