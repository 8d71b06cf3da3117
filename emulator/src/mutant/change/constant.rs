//! Changes of constants.

use super::{Registers, memory, with_operand};
use crate::mutant::text::bits_of_float;
use crate::ptx::{Operand, Statement};

/// What computes, and may do so with a constant.
const COMPUTES: [&str; 26] = [
    "add", "sub", "mul", "mad", "fma", "div", "rem", "min", "max", "dp4a", "dp2a", "and", "or", "xor", "shl", "shr",
    "shf", "lop3", "prmt", "bfe", "bfi", "setp", "set", "selp", "mov", "copysign",
];

/// Constants that are others. Those of addresses and of exchanges between lanes belong to kinds of their own.
pub fn of(statement: &Statement, registers: &Registers<'_>) -> Vec<Statement> {
    let name = statement.opcode.name();
    let is_other = |to: &Operand| match to {
        Operand::Name(to) => registers.bases.contains_key(to.as_str()) || registers.lanes.contains(to.as_str()),
        _ => false,
    };
    let skipped = match &statement.operands[..] {
        _ if !COMPUTES.contains(&name) => return Vec::new(),
        [to, Operand::Number(_)] if name == "mov" && is_other(to) => return Vec::new(),
        _ => memory::in_address(statement, registers).map(|(at, _)| at),
    };
    let operands = statement.operands.iter().enumerate().filter(|(at, _)| Some(*at) != skipped);
    let constants = operands.filter_map(|(at, operand)| match operand {
        Operand::Number(value) => Some((at, *value)),
        _ => None,
    });
    constants
        .filter_map(|(at, value)| Some(with_operand(statement, at, Operand::Number(other(statement, value)?))))
        .collect()
}

/// The constant that takes the place of one; none where the comparison would be what [`Compare`](crate::mutant::Kind::Compare) makes of it.
fn other(statement: &Statement, value: u64) -> Option<u64> {
    if let Some(bits) = bits_of_float(statement) {
        return Some(if bits == 64 {
            float(f64::from_bits(value)).to_bits()
        } else {
            // Doubling is exact, and so is the way there and back.
            let number = f32::from_bits(value as u32);
            let other = float(number.into()) as f32;
            u64::from(if other.is_infinite() { 0 } else { other.to_bits() })
        });
    }
    let has = |names: &[&str]| statement.opcode.parts.iter().any(|part| names.contains(&part.as_str()));
    let is_signed = has(&["s16", "s32", "s64"]);
    match statement.opcode.name() {
        "setp" | "set" if has(&["lt", "ge", "lo", "hs"]) => match is_signed {
            true => Some(value.wrapping_sub(1)),
            false => value.checked_sub(1),
        },
        "setp" | "set" if has(&["le", "gt", "ls", "hi"]) => Some(value.wrapping_add(1)),
        "mov" if has(&["pred"]) => Some(u64::from(value == 0)),
        _ => Some(value ^ 1),
    }
}

/// Twice a number; 1 for 0, and 0 for what cannot be doubled.
fn float(number: f64) -> f64 {
    match number {
        0.0 => 1.0,
        _ if (2.0 * number).is_finite() => 2.0 * number,
        _ => 0.0,
    }
}
