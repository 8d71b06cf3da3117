//! Changes of what the lanes of a warp do together.

use super::{Registers, with_operand, with_part};
use crate::ptx::{Operand, Statement};

/// Products of tensor cores with other registers, or without their sum.
pub fn products(statement: &Statement) -> Vec<Statement> {
    let [_, first, second, Operand::Vector(sums)] = &statement.operands[..] else { return Vec::new() };
    let mut all = Vec::new();
    for (at, factor) in [(1, first), (2, second)] {
        if let Operand::Vector(list) = factor {
            let mut list = list.clone();
            if list.len() > 1 && list[0] != list[1] {
                list.swap(0, 1);
                all.push(with_operand(statement, at, Operand::Vector(list)));
            }
        }
    }
    let zeros = Operand::Vector(vec![Operand::Number(0); sums.len()]);
    all.push(with_operand(statement, 3, zeros));
    all
}

/// Whether its operands after the second say which lanes exchange something.
pub fn exchanges_lanes(statement: &Statement) -> bool {
    matches!(statement.opcode.name(), "shfl" | "vote" | "redux")
}

/// Exchanges with other lanes.
pub fn exchanges(statement: &Statement, registers: &Registers<'_>) -> Vec<Statement> {
    let mut all = Vec::new();
    let mut replace = |at: usize, by: fn(u64) -> u64| {
        if let Some(value) = registers.constant(statement.operands.get(at)) {
            all.push(with_operand(statement, at, Operand::Number(by(value))));
        }
    };
    if statement.opcode.name() == "shfl" {
        // Twice the same step of a butterfly, so that lanes miss each other, and no step at all.
        replace(2, |lane| if lane > 1 { lane / 2 } else { lane + 1 });
        replace(3, |clamp| clamp & !31);
    }
    replace(statement.operands.len() - 1, |members| members & 0x7fff_ffff);
    for (at, part) in statement.opcode.parts.iter().enumerate() {
        match part.as_str() {
            "any" => all.push(with_part(statement, at, "all")),
            "all" => all.push(with_part(statement, at, "any")),
            _ => {}
        }
    }
    all
}
