//! Changes of accesses to memory.

use super::{Registers, with_operand};
use crate::ptx::{Operand, Space, Statement, Type};

pub fn is_parameter(statement: &Statement) -> bool {
    statement.opcode.parts.iter().any(|part| Space::parse(part) == Some(Space::Parameter))
}

/// Bytes of an access.
pub fn accessed(statement: &Statement) -> Option<u64> {
    let parts = &statement.opcode.parts;
    let of_type = || parts.iter().rev().find_map(|part| Type::parse(part)).map(|of| of.bytes() as u64);
    match statement.opcode.name() {
        "ld" | "st" | "atom" | "red" => {
            let elements = parts.iter().find_map(|part| part.strip_prefix('v')?.parse().ok()).unwrap_or(1);
            Some(of_type()? * elements)
        }
        "ldmatrix" | "stmatrix" => Some(16),
        "mbarrier" => Some(8),
        "cp" => match statement.operands.get(2) {
            Some(Operand::Number(bytes)) => Some(*bytes),
            _ => Some(8), // the mbarrier of an arrival
        },
        _ => None,
    }
}

/// Whether it writes to memory, and does nothing else that outlasts it.
pub fn is_store(statement: &Statement) -> bool {
    matches!(statement.opcode.name(), "st" | "stmatrix" | "atom" | "red")
}

/// The place of the constant in a sum that is an address, and the bytes of an access there.
pub fn in_address(statement: &Statement, registers: &Registers<'_>) -> Option<(usize, u64)> {
    let ("add" | "mad", [Operand::Name(to), .., Operand::Number(_)]) =
        (statement.opcode.name(), &statement.operands[..])
    else {
        return None;
    };
    Some((statement.operands.len() - 1, *registers.bases.get(to.as_str())?))
}

/// Addresses one access further, and sums that are addresses.
pub fn addresses(statement: &Statement, registers: &Registers<'_>) -> Vec<Statement> {
    let mut all = Vec::new();
    if let (false, Some(bytes)) = (is_parameter(statement), accessed(statement)) {
        for (at, operand) in statement.operands.iter().enumerate() {
            if let Operand::Address(base, offset) = operand {
                all.push(with_operand(statement, at, Operand::Address(base.clone(), offset + bytes as i64)));
            }
        }
    }
    if let Some((at, bytes)) = in_address(statement, registers)
        && let Operand::Number(value) = statement.operands[at]
    {
        all.push(with_operand(statement, at, Operand::Number(value.wrapping_add(bytes))));
    }
    all
}
