//! Mutants: kernels with one mistake each, which tests should find.
//!
//! [`candidates`] lists what can be changed in a kernel, in the order of its statements, and [`Mutant::apply`] makes one of these
//! changes. Equal PTX has equal lists.

mod change;

use std::fmt;

use crate::ptx::{KernelSource, Operand, Statement};

/// What is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A barrier of the block or of a warp is removed.
    Barrier,
    /// A copy, its commit, its wait or an arrival is removed, or waits for less; an mbarrier expects another count.
    Copy,
    /// A fence is removed. The emulator does not see the difference.
    Fence,
    /// A guard is negated or dropped; a branch is taken always or never.
    Guard,
    /// A comparison includes or excludes equality, or becomes its opposite.
    Compare,
    /// A selection takes the other value; `and` of predicates becomes `or`, and the other way around.
    Select,
    /// An address moves by the size of the access.
    Address,
    /// Registers of a tensor core's factor change places, or its sum starts from zero.
    Product,
    /// An exchange between lanes takes another lane, leaves out one, or asks for any instead of all.
    Shuffle,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Barrier => "barrier",
            Self::Copy => "copy",
            Self::Fence => "fence",
            Self::Guard => "guard",
            Self::Compare => "compare",
            Self::Select => "select",
            Self::Address => "address",
            Self::Product => "product",
            Self::Shuffle => "shuffle",
        })
    }
}

/// One change of a kernel.
#[derive(Debug, Clone)]
pub struct Mutant {
    pub kind: Kind,
    /// The index of the statement in its kernel.
    at: usize,
    /// The text before.
    pub before: String,
    /// The line of the CUDA source; 0 if unknown.
    pub line: u32,
    /// What takes its place.
    after: Statement,
}

impl Mutant {
    /// Makes the change.
    pub fn apply(self, kernel: &mut KernelSource) {
        kernel.statements[self.at] = self.after;
    }

    /// What takes the place of the statement.
    pub fn after(&self) -> &str {
        &self.after.text
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, before, line, after, .. } = self;
        write!(f, "{kind}\t{line}\t{before}\t{}", after.text)
    }
}

/// Every change of a kernel, in the order of its statements.
pub fn candidates(kernel: &KernelSource) -> Vec<Mutant> {
    let registers = change::Registers::of(kernel);
    let mut all = Vec::new();
    for (at, statement) in kernel.statements.iter().enumerate() {
        for (kind, mut after) in change::of(statement, &registers) {
            if after.text == statement.text {
                after.text = text(&after);
            }
            all.push(Mutant { kind, at, before: statement.text.clone(), line: statement.line, after });
        }
    }
    all
}

/// A statement as PTX.
fn text(statement: &Statement) -> String {
    let guard = match &statement.predicate {
        Some((register, negated)) => format!("@{}{register} ", if *negated { "!" } else { "" }),
        None => String::new(),
    };
    let operands: Vec<String> = statement.operands.iter().map(operand).collect();
    format!("{guard}{} {}", statement.opcode.text(), operands.join(", "))
}

fn operand(of: &Operand) -> String {
    match of {
        Operand::Name(name) => name.clone(),
        Operand::Number(value) => (*value as i64).to_string(),
        Operand::Vector(list) => format!("{{{}}}", list.iter().map(operand).collect::<Vec<_>>().join(", ")),
        Operand::Address(base, 0) => format!("[{}]", operand(base)),
        Operand::Address(base, offset) => format!("[{}+{offset}]", operand(base)),
        Operand::Not(inner) => format!("!{}", operand(inner)),
        Operand::Pair(first, second) => format!("{}|{}", operand(first), operand(second)),
    }
}

#[cfg(test)]
mod tests;
