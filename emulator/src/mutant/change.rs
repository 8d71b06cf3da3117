//! The changes of one statement.

use std::collections::HashMap;

use super::Kind;
use crate::ptx::{KernelSource, Opcode, Operand, Space, Statement, Type};

/// Comparisons, each with the one that takes its place.
const COMPARISONS: [[&str; 2]; 9] = [
    ["lt", "le"],
    ["gt", "ge"],
    ["eq", "ne"],
    ["lo", "ls"],
    ["hi", "hs"],
    ["ltu", "leu"],
    ["gtu", "geu"],
    ["equ", "neu"],
    ["num", "nan"],
];

/// What is known of the registers of a kernel.
pub struct Registers<'a> {
    /// Those that are bases of addresses, with the bytes of an access there.
    bases: HashMap<&'a str, u64>,
    /// Those that hold a constant.
    constants: HashMap<&'a str, u64>,
}

impl<'a> Registers<'a> {
    pub fn of(kernel: &'a KernelSource) -> Self {
        let (mut bases, mut constants) = (HashMap::new(), HashMap::new());
        let mut written = HashMap::<&str, usize>::new();
        for statement in &kernel.statements {
            if let [Operand::Name(to), rest @ ..] = &statement.operands[..] {
                *written.entry(to).or_default() += 1;
                if let ("mov", [Operand::Number(value)]) = (statement.opcode.name(), rest) {
                    constants.insert(to.as_str(), *value);
                }
            }
            let Some(bytes) = accessed(statement).filter(|_| !is_parameter(statement)) else { continue };
            for operand in &statement.operands {
                if let Operand::Address(base, _) = operand
                    && let Operand::Name(name) = &**base
                {
                    bases.entry(name.as_str()).or_insert(bytes);
                }
            }
        }
        constants.retain(|name, _| written[name] == 1);
        Self { bases, constants }
    }

    /// The constant that an operand is.
    fn constant(&self, operand: Option<&Operand>) -> Option<u64> {
        match operand? {
            Operand::Number(value) => Some(*value),
            Operand::Name(name) => self.constants.get(name.as_str()).copied(),
            _ => None,
        }
    }
}

/// The changes of a statement: what takes its place. Where the text is that of the statement, it is to be written anew.
pub fn of(statement: &Statement, registers: &Registers<'_>) -> Vec<(Kind, Statement)> {
    let mut all = guards(statement);
    match statement.opcode.name() {
        "bar" | "barrier" => all.push((Kind::Barrier, removed(statement))),
        "membar" | "fence" => all.push((Kind::Fence, removed(statement))),
        "cp" | "mbarrier" => all.extend(copies(statement, registers).into_iter().map(|after| (Kind::Copy, after))),
        "setp" | "set" => all.extend(comparisons(statement).map(|after| (Kind::Compare, after))),
        "selp" => {
            let mut after = statement.clone();
            after.operands.swap(1, 2);
            all.extend((after.operands != statement.operands).then_some((Kind::Select, after)));
        }
        "and" | "or" if has(statement, "pred") => {
            let other = if statement.opcode.name() == "and" { "or" } else { "and" };
            all.push((Kind::Select, with_part(statement, 0, other)));
        }
        "mma" => all.extend(products(statement).into_iter().map(|after| (Kind::Product, after))),
        "shfl" | "vote" | "redux" => {
            all.extend(exchanges(statement, registers).into_iter().map(|after| (Kind::Shuffle, after)))
        }
        _ => {}
    }
    all.extend(addresses(statement, registers).into_iter().map(|after| (Kind::Address, after)));
    all
}

/// A statement that does nothing.
fn removed(statement: &Statement) -> Statement {
    Statement {
        predicate: None,
        opcode: Opcode { parts: vec!["membar".into()] },
        operands: Vec::new(),
        line: statement.line,
        text: "(removed)".into(),
    }
}

fn has(statement: &Statement, modifier: &str) -> bool {
    statement.opcode.parts.iter().any(|part| part == modifier)
}

fn with_part(statement: &Statement, at: usize, part: &str) -> Statement {
    let mut after = statement.clone();
    after.opcode.parts[at] = part.into();
    after
}

fn with_operand(statement: &Statement, at: usize, operand: Operand) -> Statement {
    let mut after = statement.clone();
    after.operands[at] = operand;
    after
}

fn guards(statement: &Statement) -> Vec<(Kind, Statement)> {
    let Some((register, negated)) = &statement.predicate else { return Vec::new() };
    let with = |predicate| Statement { predicate, ..statement.clone() };
    let mut all = vec![with(Some((register.clone(), !negated))), with(None)];
    if statement.opcode.name() == "bra" {
        all.push(removed(statement));
    }
    all.into_iter().map(|after| (Kind::Guard, after)).collect()
}

fn comparisons(statement: &Statement) -> Option<Statement> {
    statement.opcode.parts.iter().enumerate().find_map(|(at, part)| {
        let other = COMPARISONS.iter().find_map(|[one, other]| match part {
            part if part == one => Some(other),
            part if part == other => Some(one),
            _ => None,
        });
        other.map(|other| with_part(statement, at, other))
    })
}

fn copies(statement: &Statement, registers: &Registers<'_>) -> Vec<Statement> {
    if has(statement, "inval") {
        return Vec::new(); // the last word on an mbarrier
    }
    if has(statement, "init") {
        let Some(count) = registers.constant(statement.operands.get(1)) else { return Vec::new() };
        return vec![with_operand(statement, 1, Operand::Number(count + 1))];
    }
    if has(statement, "try_wait") || has(statement, "test_wait") {
        // The phase is always complete.
        let mut after = statement.clone();
        after.opcode.parts = ["setp", "eq", "u32"].map(String::from).to_vec();
        after.operands = vec![statement.operands[0].clone(), Operand::Number(0), Operand::Number(0)];
        return vec![after];
    }
    let mut all = vec![removed(statement)];
    if let (true, Some(Operand::Number(groups))) = (has(statement, "wait_group"), statement.operands.first()) {
        all.push(with_operand(statement, 0, Operand::Number(groups + 1)));
    }
    if statement.operands.len() == 4 {
        // All bytes are read, whatever the size that a register gives.
        let mut after = statement.clone();
        after.operands.pop();
        all.push(after);
    }
    all
}

fn products(statement: &Statement) -> Vec<Statement> {
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

fn exchanges(statement: &Statement, registers: &Registers<'_>) -> Vec<Statement> {
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

fn is_parameter(statement: &Statement) -> bool {
    statement.opcode.parts.iter().any(|part| Space::parse(part) == Some(Space::Parameter))
}

/// Bytes of an access.
fn accessed(statement: &Statement) -> Option<u64> {
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

/// Addresses one access further, and sums that are addresses.
fn addresses(statement: &Statement, registers: &Registers<'_>) -> Vec<Statement> {
    let mut all = Vec::new();
    if let (false, Some(bytes)) = (is_parameter(statement), accessed(statement)) {
        for (at, operand) in statement.operands.iter().enumerate() {
            if let Operand::Address(base, offset) = operand {
                all.push(with_operand(statement, at, Operand::Address(base.clone(), offset + bytes as i64)));
            }
        }
    }
    if let ("add" | "mad", Some(Operand::Name(to))) = (statement.opcode.name(), statement.operands.first())
        && let Some(bytes) = registers.bases.get(to.as_str())
        && let Some(Operand::Number(value)) = statement.operands.last()
    {
        let last = statement.operands.len() - 1;
        all.push(with_operand(statement, last, Operand::Number(value.wrapping_add(*bytes))));
    }
    all
}
