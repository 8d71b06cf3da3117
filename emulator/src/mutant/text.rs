//! Statements as PTX.

use crate::ptx::{Kind, Operand, Statement, Type};

/// Bits of the floats among the constants of a statement; none if they are integers.
pub fn bits_of_float(statement: &Statement) -> Option<u32> {
    let of = statement.opcode.parts.iter().find_map(|part| Type::parse(part));
    match of {
        Some(of) if of.kind == Kind::Float => Some(of.bits),
        // `mov.b32 %r1, 0f3F800000`
        _ if statement.text.contains(", 0f") => Some(32),
        _ if statement.text.contains(", 0d") => Some(64),
        _ => None,
    }
}

/// A statement as PTX.
pub fn of(statement: &Statement) -> String {
    let guard = match &statement.predicate {
        Some((register, negated)) => format!("@{}{register} ", if *negated { "!" } else { "" }),
        None => String::new(),
    };
    let bits = bits_of_float(statement);
    let operands: Vec<String> = statement.operands.iter().map(|of| operand(of, bits)).collect();
    format!("{guard}{} {}", statement.opcode.text(), operands.join(", "))
}

/// An operand as PTX. Constants are floats of so many bits, or integers.
fn operand(of: &Operand, bits: Option<u32>) -> String {
    let inner = |of: &Operand| operand(of, bits);
    match (of, bits) {
        (Operand::Name(name), _) => name.clone(),
        (Operand::Number(value), Some(32)) => format!("0f{value:08X}"),
        (Operand::Number(value), Some(_)) => format!("0d{value:016X}"),
        (Operand::Number(value), None) => (*value as i64).to_string(),
        (Operand::Vector(list), _) => format!("{{{}}}", list.iter().map(inner).collect::<Vec<_>>().join(", ")),
        (Operand::Address(base, 0), _) => format!("[{}]", operand(base, None)),
        (Operand::Address(base, offset), _) => format!("[{}+{offset}]", operand(base, None)),
        (Operand::Not(of), _) => format!("!{}", inner(of)),
        (Operand::Pair(first, second), _) => format!("{}|{}", inner(first), inner(second)),
    }
}
