//! Bits. PTX ISA, "Integer Arithmetic Instructions" and "Logic and Shift Instructions".

use super::builder::Builder;
use super::instruction::Action;
use super::lanewise::{map1, map2, map3};
use crate::numbers::{low, signed};
use crate::ptx::{Kind, Operand, Type};

pub fn compile(b: &mut Builder<'_>) -> Result<Action, String> {
    match b.opcode() {
        "and" | "or" | "xor" | "not" => logic(b),
        "shl" | "shr" => shift(b),
        "shf" => funnel_shift(b),
        "lop3" => any_logic(b),
        "prmt" => permute_bytes(b),
        "bfe" => extract(b),
        "bfi" => insert(b),
        _ => count(b),
    }
}

fn logic(b: &mut Builder<'_>) -> Result<Action, String> {
    let of = b.type_()?;
    let name = b.opcode();
    let f: fn(u64, u64) -> u64 = match name {
        "and" => |a, b| a & b,
        "or" => |a, b| a | b,
        "xor" => |a, b| a ^ b,
        _ => |a, _| !a,
    };
    if of.kind == Kind::Predicate {
        let operands = b.operands();
        let to = b.predicate(&operands[0])?;
        let first = b.condition(1)?;
        let second = if name == "not" { first } else { b.condition(2)? };
        return Ok(Action::Compute(Box::new(move |registers, lanes| {
            let (a, c) = (registers.condition(first), registers.condition(second));
            registers.set_predicate(to, f(a.into(), c.into()) as u32, lanes);
        })));
    }
    let to = b.destination(0)?;
    let first = b.source(1, of.bits)?;
    let second = if name == "not" { first } else { b.source(2, of.bits)? };
    let bits = of.bits;
    Ok(Action::Compute(match (name, bits) {
        ("and", 32) => map2(to, [first, second], |a: u32, b: u32| a & b),
        ("or", 32) => map2(to, [first, second], |a: u32, b: u32| a | b),
        ("xor", 32) => map2(to, [first, second], |a: u32, b: u32| a ^ b),
        _ => map2(to, [first, second], move |a: u64, b: u64| low(f(a, b), bits)),
    }))
}

/// Shifts by the width or more give zeros, or copies of the sign.
fn shift(b: &mut Builder<'_>) -> Result<Action, String> {
    let Type { bits, kind, .. } = b.type_()?;
    let (to, value, by) = (b.destination(0)?, b.source(1, bits)?, b.source(2, 32)?);
    let from = [value, by];
    Ok(Action::Compute(match (b.opcode(), bits) {
        ("shl", 32) => map2(to, from, |a: u32, by: u32| a.checked_shl(by).unwrap_or(0)),
        ("shr", 32) if kind != Kind::Signed => map2(to, from, |a: u32, by: u32| a.checked_shr(by).unwrap_or(0)),
        ("shl", _) => map2(to, from, move |a: u64, by: u32| low(a.checked_shl(by).unwrap_or(0), bits)),
        _ if kind == Kind::Signed => {
            map2(to, from, move |a: u64, by: u32| low((signed(a, bits) >> by.min(63)) as u64, bits))
        }
        _ => map2(to, from, move |a: u64, by: u32| low(a, bits).checked_shr(by).unwrap_or(0)),
    }))
}

/// `shf`: 64 bits of two registers, shifted, of which one half is taken.
fn funnel_shift(b: &mut Builder<'_>) -> Result<Action, String> {
    let left = b.one_of(&["l", "r"]) == Some("l");
    let clamp = b.one_of(&["clamp", "wrap"]) == Some("clamp");
    b.type_()?;
    let (to, from) = (b.destination(0)?, [b.source(1, 32)?, b.source(2, 32)?, b.source(3, 32)?]);
    Ok(Action::Compute(map3(to, from, move |lower: u32, upper: u32, by: u32| {
        let by = if clamp { by.min(32) } else { by & 31 };
        let both = u64::from(lower) | u64::from(upper) << 32;
        if left { (both << by >> 32) as u32 } else { (both >> by) as u32 }
    })))
}

/// `lop3`: any function of three bits, as a table of its eight results.
fn any_logic(b: &mut Builder<'_>) -> Result<Action, String> {
    b.type_()?;
    let (to, from) = (b.destination(0)?, [b.source(1, 32)?, b.source(2, 32)?, b.source(3, 32)?]);
    let Operand::Number(table) = b.operand(4)? else { return Err("the table must be a constant".into()) };
    let table = *table;
    Ok(Action::Compute(map3(to, from, move |a: u32, b: u32, c: u32| {
        let row = |row: u32| {
            let pick = |bit: u32, value: u32| if row >> bit & 1 == 1 { value } else { !value };
            pick(2, a) & pick(1, b) & pick(0, c)
        };
        (0..8).filter(|index| table >> index & 1 == 1).fold(0, |result, index| result | row(index))
    })))
}

/// `prmt`: four bytes out of eight; the highest bit of a selector copies the sign of its byte.
fn permute_bytes(b: &mut Builder<'_>) -> Result<Action, String> {
    b.type_()?;
    let (to, from) = (b.destination(0)?, [b.source(1, 32)?, b.source(2, 32)?, b.source(3, 32)?]);
    Ok(Action::Compute(map3(to, from, |lower: u32, upper: u32, selectors: u32| {
        let bytes = (u64::from(lower) | u64::from(upper) << 32).to_le_bytes();
        u32::from_le_bytes(std::array::from_fn(|index| {
            let selector = selectors >> (4 * index) & 15;
            let byte = bytes[(selector & 7) as usize];
            if selector & 8 != 0 { (byte as i8 >> 7) as u8 } else { byte }
        }))
    })))
}

/// `bfe`: `length` bits from bit `start` on, with the sign of the last that exists.
fn extract(b: &mut Builder<'_>) -> Result<Action, String> {
    let Type { bits, kind, .. } = b.type_()?;
    let (to, from) = (b.destination(0)?, [b.source(1, bits)?, b.source(2, 32)?, b.source(3, 32)?]);
    let is_signed = kind == Kind::Signed;
    Ok(Action::Compute(map3(to, from, move |value: u64, start: u32, length: u32| {
        let (start, length) = (start & 255, (length & 255).min(bits));
        if length == 0 {
            return 0u64;
        }
        let shifted = match is_signed {
            true => (signed(value, bits) >> start.min(63)) as u64,
            false => low(value, bits).checked_shr(start).unwrap_or(0),
        };
        let field = if is_signed { signed(shifted, length) as u64 } else { low(shifted, length) };
        low(field, bits)
    })))
}

/// `bfi`: replaces `length` bits of the second from bit `start` on by the lower bits of the first.
fn insert(b: &mut Builder<'_>) -> Result<Action, String> {
    let bits = b.type_()?.bits;
    let (to, first, second) = (b.destination(0)?, b.source(1, bits)?, b.source(2, bits)?);
    let (start, length) = (b.source(3, 32)?, b.source(4, 32)?);
    Ok(Action::Compute(Box::new(move |registers, lanes| {
        let (first, second) = (registers.get::<u64>(first), registers.get::<u64>(second));
        let (start, length) = (registers.get::<u32>(start), registers.get::<u32>(length));
        let values: [u64; 32] = std::array::from_fn(|lane| {
            let (start, length) = (start[lane] & 255, (length[lane] & 255).min(64));
            let field = low(low(u64::MAX, length).checked_shl(start).unwrap_or(0), bits);
            second[lane] & !field | first[lane].checked_shl(start).unwrap_or(0) & field
        });
        registers.set(to, &values, lanes);
    })))
}

fn count(b: &mut Builder<'_>) -> Result<Action, String> {
    let bits = b.type_()?.bits;
    let (to, from) = (b.destination(0)?, b.source(1, bits)?);
    let unused = 64 - bits;
    Ok(Action::Compute(match b.opcode() {
        "popc" => map1(to, from, move |a: u64| low(a, bits).count_ones()),
        "clz" => map1(to, from, move |a: u64| low(a, bits).leading_zeros() - unused),
        _ => map1(to, from, move |a: u64| low(a, bits).reverse_bits() >> unused),
    }))
}
