//! Conversions. PTX ISA, "Data Movement and Conversion Instructions: cvt".

use super::builder::Builder;
use super::instruction::Action;
use super::lanewise::{map1, map2};
use crate::numbers::{bf16_of, f16_of, f32_of, flush, low, signed, to_bf16, to_f16};
use crate::ptx::{Kind, Type};

pub fn compile(b: &mut Builder<'_>) -> Result<Action, String> {
    let to_integer: Option<fn(f64) -> f64> = match b.one_of(&["rni", "rzi", "rmi", "rpi"]) {
        Some("rni") => Some(f64::round_ties_even),
        Some("rzi") => Some(f64::trunc),
        Some("rmi") => Some(f64::floor),
        Some(_) => Some(f64::ceil),
        None => None,
    };
    let nearest = b.one_of(&["rn", "rna"]).is_some();
    let (ftz, sat, relu) = (b.flag("ftz"), b.flag("sat"), b.flag("relu"));
    let (into, of) = (b.type_()?, b.type_()?);
    let to = b.destination(0)?;
    if into.packed {
        // The first input becomes the upper half.
        let from = [b.source(1, 32)?, b.source(2, 32)?];
        let down = if into.kind == Kind::Half { to_f16 } else { to_bf16 };
        let one = move |value: u32| down(if relu { f32_of(value).max(0.0) } else { f32_of(value) }.into());
        return Ok(Action::Compute(map2(to, from, move |upper: u32, lower: u32| one(upper) << 16 | one(lower))));
    }
    let from = b.source(1, of.width())?;
    if into.is_float() && !of.is_float() && !nearest {
        return Err("an integer becomes a float by rounding to nearest only".into());
    }
    Ok(Action::Compute(match (into.is_float(), of.is_float()) {
        (false, false) => {
            let (bits, limits) = (into.bits, limits(into));
            map1(to, from, move |value: u64| {
                let value = integer(value, of);
                low(if sat { value.clamp(limits.0, limits.1) } else { value } as u64, bits)
            })
        }
        (true, false) if into.bits == 64 => map1(to, from, move |value: u64| (integer(value, of) as f64).to_bits()),
        (true, false) => map1(to, from, move |value: u64| write(integer_as_float(value, of), into, false)),
        (true, true) => map1(to, from, move |value: u64| {
            let mut number = read(value, of, ftz);
            if let Some(round) = to_integer {
                number = round(number);
            }
            if sat {
                number = if number.is_nan() { 0.0 } else { number.clamp(0.0, 1.0) };
            }
            write(if relu { number.max(0.0) } else { number }, into, ftz)
        }),
        (false, true) => {
            let round = to_integer.ok_or("a float becomes an integer by a rounding that is named")?;
            let (bits, limits) = (into.bits, limits(into));
            map1(to, from, move |value: u64| {
                let number = round(read(value, of, ftz));
                // Clamped, whether or not `.sat` is there; a NaN gives 0, in 64 bits the lowest number.
                let lowest = if bits == 64 { 1u64 << 63 } else { 0 };
                if number.is_nan() { lowest } else { low((number as i128).clamp(limits.0, limits.1) as u64, bits) }
            })
        }
    }))
}

/// The smallest and largest integer of a type.
fn limits(of: Type) -> (i128, i128) {
    match of.is_signed() {
        true => (-(1 << (of.bits - 1)), (1 << (of.bits - 1)) - 1),
        false => (0, (1 << of.bits) - 1),
    }
}

fn integer(value: u64, of: Type) -> i128 {
    if of.is_signed() { signed(value, of.bits).into() } else { low(value, of.bits).into() }
}

/// An integer as a number that [`write`] rounds correctly: integers of 64 bits are rounded to odd first.
fn integer_as_float(value: u64, of: Type) -> f64 {
    let value = integer(value, of);
    let near = value as f64;
    let difference = near as i128 - value;
    if difference == 0 {
        return near;
    }
    let towards_zero = if near.abs() as u128 > value.unsigned_abs() { near.to_bits() - 1 } else { near.to_bits() };
    f64::from_bits(towards_zero | 1)
}

fn read(value: u64, of: Type, ftz: bool) -> f64 {
    match (of.kind, of.bits) {
        (Kind::Half, _) => f16_of(value as u32).into(),
        (Kind::Brain, _) => bf16_of(value as u32).into(),
        (_, 64) => f64::from_bits(value),
        _ if ftz => flush(f32_of(value as u32)).into(),
        _ => f32_of(value as u32).into(),
    }
}

fn write(value: f64, into: Type, ftz: bool) -> u64 {
    match (into.kind, into.bits) {
        (Kind::Half, _) => to_f16(value).into(),
        (Kind::Brain, _) => to_bf16(value).into(),
        (Kind::TensorFloat, _) if value.is_nan() => 0x7fff_ffff,
        // To nearest, ties away from zero.
        (Kind::TensorFloat, _) => u64::from((value as f32).to_bits().wrapping_add(0x1000) & !0x1fff),
        (_, 64) => value.to_bits(),
        _ if ftz => flush(value as f32).to_bits().into(),
        _ => (value as f32).to_bits().into(),
    }
}
