//! Changes of arithmetic, bit operations and conversions.

use super::{has, with_operand, with_part};
use crate::ptx::{Kind, Operand, Statement, Type};

/// Operations, each with the one that takes its place.
const OPERATIONS: [[&str; 2]; 9] = [
    ["add", "sub"],
    ["sub", "add"],
    ["min", "max"],
    ["max", "min"],
    ["shl", "shr"],
    ["shr", "shl"],
    ["and", "or"],
    ["or", "and"],
    ["xor", "or"],
];

/// Roundings to an integer, each with the one that takes its place.
const ROUNDINGS: [[&str; 2]; 4] = [["rni", "rzi"], ["rzi", "rni"], ["rmi", "rpi"], ["rpi", "rmi"]];

/// Other operations, and operations without one of their inputs.
pub fn of(statement: &Statement) -> Vec<Statement> {
    let Some(of) = statement.opcode.parts.iter().find_map(|part| Type::parse(part)) else { return Vec::new() };
    let (at_last, mut all) = (statement.operands.len().saturating_sub(1), Vec::new());
    let mut without = |at: usize, neutral: u64| {
        let neutral = Operand::Number(neutral);
        all.extend((statement.operands.get(at) != Some(&neutral)).then(|| with_operand(statement, at, neutral)));
    };
    match statement.opcode.name() {
        // Of predicates that is a selection.
        "and" | "or" if of.kind == Kind::Predicate => {}
        "mul" => without(2, one(of)),
        "fma" | "mad" => {
            without(2, one(of));
            without(3, 0);
        }
        "dp4a" | "dp2a" => without(3, 0),
        "div" if of.is_float() => without(2, one(of)),
        "div" => all.push(with_part(statement, 0, "rem")),
        "rem" => all.push(with_part(statement, 0, "div")),
        "neg" | "abs" | "not" | "copysign" => {
            let mut after = statement.clone();
            let kind = if of.kind == Kind::Predicate { "pred".into() } else { format!("b{}", of.width()) };
            after.opcode.parts = vec!["mov".into(), kind];
            after.operands = vec![statement.operands[0].clone(), statement.operands[at_last].clone()];
            all.push(after);
        }
        "cvt" => all.extend(conversion(statement)),
        name => {
            let other = OPERATIONS.iter().find(|[one, _]| *one == name);
            all.extend(other.map(|[_, other]| with_part(statement, 0, other)));
        }
    }
    all
}

/// The bits of 1.
fn one(of: Type) -> u64 {
    let bits = match (of.kind, of.bits) {
        (Kind::Half, _) => 0x3c00,
        (Kind::Brain, _) => 0x3f80,
        (Kind::Float, 64) => 1f64.to_bits(),
        (Kind::Float, _) => 1f32.to_bits().into(),
        _ => 1,
    };
    if of.packed { bits << 16 | bits } else { bits }
}

/// Rounds in another way, does not saturate, or takes what has a sign for what has none.
fn conversion(statement: &Statement) -> Option<Statement> {
    let parts = &statement.opcode.parts;
    for (at, part) in parts.iter().enumerate() {
        if let Some([_, other]) = ROUNDINGS.iter().find(|[one, _]| one == part) {
            return Some(with_part(statement, at, other));
        }
    }
    let [.., into, of] = &parts[..] else { return None };
    if into == of && has(statement, "sat") {
        let mut after = statement.clone();
        after.opcode.parts.retain(|part| part != "sat");
        return Some(after);
    }
    let unsigned = Type::parse(of).filter(|of| of.is_signed()).map(|of| format!("u{}", of.bits))?;
    Some(with_part(statement, parts.len() - 1, &unsigned))
}
