//! Instructions that the assembler merges.

use std::collections::HashMap;

use super::instruction::Instruction;
use crate::registers::Register;

/// Which instructions take no place of their own on the device, as `ptxas` makes it:
///
/// - a logical operation of 32 bits whose result is read once, by another one: one `LOP3` combines three inputs, of which one may be a constant;
/// - the second of two numbers that are rounded to 16 bits for the halves of a word: one `F2FP` rounds both;
/// - `abs.f32` and `neg.f32`, where all that reads them takes an absolute value, or a sign, with its operand.
pub fn merged(instructions: &[Instruction]) -> Vec<bool> {
    let mut uses: HashMap<Register, Uses> = HashMap::new();
    for (at, instruction) in instructions.iter().enumerate() {
        for register in &instruction.reads {
            uses.entry(*register).or_default().reads.push(at);
        }
        for register in &instruction.writes {
            uses.entry(*register).or_default().writes.push(at);
        }
    }
    let mut merged = vec![false; instructions.len()];
    logical(instructions, &uses, &mut merged);
    rounded(instructions, &uses, &mut merged);
    modifiers(instructions, &uses, &mut merged);
    merged
}

fn logical(instructions: &[Instruction], uses: &HashMap<Register, Uses>, merged: &mut [bool]) {
    // Instructions with the operation before them: three inputs.
    let mut full = vec![false; instructions.len()];
    for (at, first) in instructions.iter().enumerate() {
        let [written] = first.writes[..] else { continue };
        let Some((_, next)) = uses.get(&written).and_then(Uses::only) else { continue };
        let second = &instructions[next];
        if !is_logical(first) || !is_logical(second) || full[at] || full[next] {
            continue;
        }
        if constants(first) + constants(second) <= 1 {
            merged[at] = true;
            full[next] = true;
        }
    }
}

fn rounded(instructions: &[Instruction], uses: &HashMap<Register, Uses>, merged: &mut [bool]) {
    // What rounds a number that is read nowhere else.
    let rounding = |register: &Register| {
        let (at, _) = uses.get(register).and_then(Uses::only)?;
        is_rounding(&instructions[at]).then_some(at)
    };
    for instruction in instructions {
        let halves = &instruction.reads[instruction.reads.len() - halves(instruction)..];
        for word in halves.chunks_exact(2) {
            if let (Some(_), Some(second)) = (rounding(&word[0]), rounding(&word[1])) {
                merged[second] = true;
            }
        }
    }
}

fn modifiers(instructions: &[Instruction], uses: &HashMap<Register, Uses>, merged: &mut [bool]) {
    for (at, instruction) in instructions.iter().enumerate() {
        let takers: &[&str] = match instruction.opcode.as_str() {
            "neg.f32" => &["add", "sub", "mul", "fma", "max", "min", "setp"],
            // There is none in a fused multiply-add.
            "abs.f32" => &["add", "sub", "mul", "max", "min", "setp"],
            _ => continue,
        };
        let takes = |next: &usize| {
            let opcode = &instructions[*next].opcode;
            opcode.ends_with(".f32") && opcode.split('.').next().is_some_and(|first| takers.contains(&first))
        };
        let [written] = instruction.writes[..] else { continue };
        merged[at] = uses.get(&written).is_some_and(|uses| uses.writes.len() == 1 && uses.reads.iter().all(takes));
    }
}

/// Where a register is read, and where it is written.
#[derive(Default)]
struct Uses {
    reads: Vec<usize>,
    writes: Vec<usize>,
}

impl Uses {
    /// Where it is written and where it is read, if each is one place.
    fn only(&self) -> Option<(usize, usize)> {
        match (&self.writes[..], &self.reads[..]) {
            (&[write], &[read]) => Some((write, read)),
            _ => None,
        }
    }
}

/// Whether an instruction combines two values of 32 bits in all lanes.
fn is_logical(instruction: &Instruction) -> bool {
    instruction.condition.is_none() && matches!(instruction.opcode.as_str(), "and.b32" | "or.b32" | "xor.b32")
}

/// Whether an instruction rounds an f32 to 16 bits.
fn is_rounding(instruction: &Instruction) -> bool {
    instruction.condition.is_none() && matches!(instruction.opcode.as_str(), "cvt.rn.f16.f32" | "cvt.rn.bf16.f32")
}

/// Registers of 16 bits, the last ones that an instruction reads, of which it makes words: those of a vector that it stores, or halves of a register.
fn halves(instruction: &Instruction) -> usize {
    let mut parts = instruction.opcode.split('.');
    match parts.next() {
        Some("st") if instruction.opcode.ends_with("16") => [("v2", 2), ("v4", 4), ("v8", 8)]
            .iter()
            .find(|(part, _)| parts.clone().any(|at| at == *part))
            .map_or(0, |v| v.1),
        Some("mov") if matches!((parts.next(), instruction.reads.len()), (Some("b32"), 2) | (Some("b64"), 4)) => {
            instruction.reads.len()
        }
        _ => 0,
    }
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
            ".version 9.0\n.target sm_90\n.address_size 64\n.visible .entry k() {{\n.reg .b32 %r<20>;\n.reg .b16 %h<9>;\n.reg .f32 %f<9>;\n.reg .b64 %a;\n.reg .pred %p<2>;\n{body}\nret;\n}}\n"
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

    #[test]
    fn two_numbers_are_rounded_for_a_word() {
        let round = |from: usize, to: usize| {
            (from..to).map(|at| format!("cvt.rn.f16.f32 %h{at}, %f{at};\n")).collect::<String>()
        };
        let store = "st.shared.v4.u16 [%a], {%h0, %h1, %h2, %h3};";
        assert_eq!(of(&format!("{}{store}", round(0, 4))), ["cvt.rn.f16.f32 %h1, %f1", "cvt.rn.f16.f32 %h3, %f3"]);
        assert_eq!(of(&format!("{}{store}", round(1, 3))).len(), 0, "halves of two words");
        let pack = "mov.b32 %r1, {%h0, %h1};";
        assert_eq!(of(&format!("{}{pack}", round(0, 2))), ["cvt.rn.f16.f32 %h1, %f1"]);
        assert_eq!(of(&format!("{}{pack} mov.b32 %r2, {{%h1, %h2}};", round(0, 2))).len(), 0, "read twice");
        assert_eq!(of(&format!("{}st.shared.u16 [%a], %h0;", round(0, 1))).len(), 0, "no word");
    }

    #[test]
    fn operands_take_absolute_values_and_signs() {
        assert_eq!(of("abs.f32 %f1, %f2; max.f32 %f3, %f1, %f4;"), ["abs.f32 %f1, %f2"]);
        assert_eq!(of("neg.f32 %f1, %f2; fma.rn.f32 %f3, %f1, %f4, %f5; add.f32 %f6, %f1, %f4;"), ["neg.f32 %f1, %f2"]);
        assert_eq!(of("abs.f32 %f1, %f2; fma.rn.f32 %f3, %f1, %f4, %f5;").len(), 0, "not in a fused multiply-add");
        assert_eq!(of("abs.f32 %f1, %f2; ex2.approx.f32 %f3, %f1;").len(), 0, "not in a function");
    }
}
