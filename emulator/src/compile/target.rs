//! Which targets have an instruction.

use crate::ptx::{Opcode, Target};

/// The least compute capability that has an instruction, as far as this emulator knows instructions that an A100 lacks; PTX ISA,
/// "Target ISA Notes" of each.
fn least_capability(opcode: &Opcode) -> u32 {
    let has = |part: &str| opcode.parts.iter().any(|found| found == part);
    let bf16 = has("bf16") || has("bf16x2");
    match opcode.name() {
        "elect" | "stmatrix" => 90,
        "mbarrier" if has("try_wait") || has("expect_tx") => 90,
        "cp" if has("bulk") => 90,
        "fence" if has("proxy") || has("mbarrier_init") => 90,
        "barrier" if has("cluster") => 90,
        "add" | "sub" | "mul" | "set" | "setp" | "ex2" | "tanh" | "atom" | "red" if bf16 => 90,
        _ => 0,
    }
}

/// Fails if a module for this target may not use the instruction.
pub fn check(opcode: &Opcode, target: Target) -> Result<(), String> {
    let least = least_capability(opcode);
    match target.capability >= least {
        true => Ok(()),
        false => Err(format!("`{}` needs sm_{least}, the module is for {target}", opcode.text())),
    }
}
