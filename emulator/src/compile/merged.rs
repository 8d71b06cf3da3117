//! Logical operations that the assembler merges.

use std::collections::HashMap;

use super::instruction::Instruction;
use crate::registers::Register;

/// Which instructions take no place of their own on the device: a logical operation of 32 bits whose result is read once, by another one.
/// `ptxas` makes one `LOP3` of the two, which combines three inputs, of which one may be a constant.
pub fn merged(instructions: &[Instruction]) -> Vec<bool> {
    let mut uses: HashMap<Register, Uses> = HashMap::new();
    for (at, instruction) in instructions.iter().enumerate() {
        for register in &instruction.reads {
            uses.entry(*register).or_default().reads.push(at);
        }
        for register in &instruction.writes {
            uses.entry(*register).or_default().writes += 1;
        }
    }
    let mut merged = vec![false; instructions.len()];
    // Instructions with the operation before them: three inputs.
    let mut full = vec![false; instructions.len()];
    for (at, first) in instructions.iter().enumerate() {
        let [written] = first.writes[..] else { continue };
        let Some(Uses { writes: 1, reads }) = uses.get(&written) else { continue };
        let &[next] = &reads[..] else { continue };
        let second = &instructions[next];
        if !is_logical(first) || !is_logical(second) || full[at] || full[next] {
            continue;
        }
        if constants(first) + constants(second) <= 1 {
            merged[at] = true;
            full[next] = true;
        }
    }
    merged
}

/// Where a register is read, and how often it is written.
#[derive(Default)]
struct Uses {
    reads: Vec<usize>,
    writes: usize,
}

/// Whether an instruction combines two values of 32 bits in all lanes.
fn is_logical(instruction: &Instruction) -> bool {
    instruction.condition.is_none() && matches!(instruction.opcode.as_str(), "and.b32" | "or.b32" | "xor.b32")
}

/// Operands of a logical operation that are constants.
fn constants(instruction: &Instruction) -> usize {
    2usize.saturating_sub(instruction.reads.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Device;
    use crate::module::Module;

    /// Which instructions of a body are merged.
    fn of(body: &str) -> Vec<String> {
        let source = format!(
            ".version 9.0\n.target sm_90\n.address_size 64\n.visible .entry k() {{\n.reg .b32 %r<20>;\n.reg .pred %p<2>;\n{body}\nret;\n}}\n"
        );
        let module = Module::load(&source, &Device::new()).expect("it is valid");
        let instructions = &module.kernels[0].instructions;
        let texts = instructions.iter().zip(merged(instructions)).filter(|(_, merged)| *merged);
        texts.map(|(instruction, _)| instruction.text.clone()).collect()
    }

    #[test]
    fn an_operation_on_the_result_of_another_takes_its_place() {
        let masked = "and.b32 %r2, %r1, 15;";
        assert_eq!(of(&format!("{masked} or.b32 %r3, %r2, %r4; xor.b32 %r5, %r3, %r6;")).len(), 1, "three inputs");
        assert_eq!(of(&format!("{masked} or.b32 %r3, %r2, 240;")).len(), 0, "two constants");
        assert_eq!(of(&format!("{masked} or.b32 %r3, %r2, %r4; add.s32 %r5, %r2, %r3;")).len(), 0, "read twice");
        assert_eq!(of(&format!("{masked} add.s32 %r3, %r2, %r4;")).len(), 0, "not logical");
        assert_eq!(of("and.b32 %r2, %r1, %r4; and.b32 %r3, %r5, %r6; or.b32 %r7, %r2, %r3;").len(), 1, "four inputs");
    }
}
