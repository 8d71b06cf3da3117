//! The changes of one statement.

mod arithmetic;
mod constant;
mod copies;
mod memory;
mod together;

use std::collections::{HashMap, HashSet};

use super::Kind;
use crate::ptx::{KernelSource, Opcode, Operand, Statement};

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
    /// Those that say which lanes exchange what.
    lanes: HashSet<&'a str>,
}

impl<'a> Registers<'a> {
    pub fn of(kernel: &'a KernelSource) -> Self {
        let (mut bases, mut constants, mut lanes) = (HashMap::new(), HashMap::new(), HashSet::new());
        let mut written = HashMap::<&str, usize>::new();
        for statement in &kernel.statements {
            if let [Operand::Name(to), rest @ ..] = &statement.operands[..] {
                *written.entry(to).or_default() += 1;
                if let ("mov", [Operand::Number(value)]) = (statement.opcode.name(), rest) {
                    constants.insert(to.as_str(), *value);
                }
            }
            if together::exchanges_lanes(statement) {
                lanes.extend(statement.operands.iter().skip(2).filter_map(|operand| match operand {
                    Operand::Name(name) => Some(name.as_str()),
                    _ => None,
                }));
            }
            let Some(bytes) = memory::accessed(statement).filter(|_| !memory::is_parameter(statement)) else {
                continue;
            };
            for operand in &statement.operands {
                if let Operand::Address(base, _) = operand
                    && let Operand::Name(name) = &**base
                {
                    bases.entry(name.as_str()).or_insert(bytes);
                }
            }
        }
        constants.retain(|name, _| written[name] == 1);
        Self { bases, constants, lanes }
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
        "cp" | "mbarrier" => all.extend(copies::of(statement, registers).into_iter().map(|after| (Kind::Copy, after))),
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
        "mma" => all.extend(together::products(statement).into_iter().map(|after| (Kind::Product, after))),
        _ if together::exchanges_lanes(statement) => {
            all.extend(together::exchanges(statement, registers).into_iter().map(|after| (Kind::Shuffle, after)))
        }
        _ => {}
    }
    all.extend(memory::addresses(statement, registers).into_iter().map(|after| (Kind::Address, after)));
    all.extend(memory::is_store(statement).then(|| (Kind::Store, removed(statement))));
    all.extend(arithmetic::of(statement).into_iter().map(|after| (Kind::Arithmetic, after)));
    all.extend(constant::of(statement, registers).into_iter().map(|after| (Kind::Constant, after)));
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
