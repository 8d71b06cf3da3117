//! Changes of asynchronous copies and of what waits for them.

use super::{Registers, has, removed, with_operand};
use crate::ptx::{Operand, Statement};

/// Copies, commits, arrivals and waits that are removed or too short.
pub fn of(statement: &Statement, registers: &Registers<'_>) -> Vec<Statement> {
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
