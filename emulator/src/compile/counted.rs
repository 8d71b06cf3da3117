//! As what the instructions of PTX count: the assembler merges some, and makes several of others.

use std::collections::{HashMap, HashSet};

use super::instruction::Instruction;
use crate::registers::Register;

/// The first constant that instructions of memory do not add to an address.
const LARGEST_OFFSET: i64 = 1 << 23;

/// The names under which instructions are counted: their opcodes, but for two kinds.
///
/// - `merged`: those that take no place of their own; see [`merged`].
/// - `ex2.approx.f32.abs`: exponentials of absolute values. The result is not below the normal numbers, so `ptxas` needs one instruction. For others it
///   adds three, which compare and scale what may be below.
pub fn names(instructions: &[Instruction]) -> Vec<&str> {
    let uses = Uses::of(instructions);
    let is_absolute = |register: &Register| {
        let [write] = uses[register].writes[..] else { return false };
        let write = &instructions[write];
        write.opcode == "abs.f32" && write.condition.is_none()
    };
    let merged = merged(instructions, &uses);
    let names = instructions.iter().zip(merged).map(|(instruction, merged)| match instruction.opcode.as_str() {
        _ if merged => "merged",
        "ex2.approx.f32" if matches!(&instruction.reads[..], [read] if is_absolute(read)) => "ex2.approx.f32.abs",
        opcode => opcode,
    });
    names.collect()
}

/// Which instructions take no place of their own on the device, as `ptxas` makes it:
///
/// - a logical operation of 32 bits whose result is read once, by another one: one `LOP3` combines three inputs, of which one may be a constant;
/// - the second of two numbers that are rounded to 16 bits for the halves of a word: one `F2FP` rounds both;
/// - `abs.f32` and `neg.f32`, where all that reads them takes an absolute value, or a sign, with its operand;
/// - a constant that is added to an address, where all that reads the sum adds a constant of its own: instructions of memory have 24 bits for it;
/// - a product that `add` alone reads: `IMAD.WIDE` adds 64 bits to one of 32 bits, and `LEA` adds to what was shifted, 32 bits or the lower half
///   of 64 bits, if nothing reads the upper one;
/// - `cvt.u64.u32`, if nothing reads the upper half of what comes of it. Addresses in shared memory have none.
fn merged(instructions: &[Instruction], uses: &AllUses) -> Vec<bool> {
    let mut merged = vec![false; instructions.len()];
    logical(instructions, uses, &mut merged);
    rounded(instructions, uses, &mut merged);
    modifiers(instructions, uses, &mut merged);
    let addresses = registers(instructions, uses, |reader, register, known| match reader.writes[..] {
        [half] if is_half(reader) => known.contains(&half),
        _ => times(register, &reader.addresses) == times(register, &reader.reads),
    });
    let halved = registers(instructions, uses, |reader, _, known| match reader.writes[..] {
        [next] if keeps_halves(reader) => known.contains(&next),
        _ => is_half(reader),
    });
    // Additions that take a product.
    let mut taking = HashSet::new();
    for (at, instruction) in instructions.iter().enumerate() {
        let [written] = instruction.writes[..] else { continue };
        if instruction.condition.is_none() {
            merged[at] |= adds_constant(instruction) && addresses.contains(&written)
                || instruction.opcode == "cvt.u64.u32" && halved.contains(&written)
                || addition(instruction, written, instructions, uses, &halved).is_some_and(|next| taking.insert(next));
        }
    }
    merged
}

fn logical(instructions: &[Instruction], uses: &AllUses, merged: &mut [bool]) {
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

fn rounded(instructions: &[Instruction], uses: &AllUses, merged: &mut [bool]) {
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

fn modifiers(instructions: &[Instruction], uses: &AllUses, merged: &mut [bool]) {
    for (at, instruction) in instructions.iter().enumerate() {
        let takers: &[&str] = match instruction.opcode.as_str() {
            "neg.f32" => &["add", "sub", "mul", "fma", "max", "min", "setp"],
            // There is none in a fused multiply-add.
            "abs.f32" => &["add", "sub", "mul", "max", "min", "setp", "ex2"],
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

/// The registers that are written once, and of which `takes` says of everything that reads them: of this instruction, this register and those that
/// are known to be among them.
fn registers(
    instructions: &[Instruction],
    uses: &AllUses,
    takes: impl Fn(&Instruction, Register, &HashSet<Register>) -> bool,
) -> HashSet<Register> {
    let mut known = HashSet::new();
    loop {
        let before = known.len();
        // What reads a register mostly comes after what writes it.
        for register in instructions.iter().rev().flat_map(|instruction| &instruction.writes) {
            let uses = &uses[register];
            if uses.writes.len() == 1 && uses.reads.iter().all(|at| takes(&instructions[*at], *register, &known)) {
                known.insert(*register);
            }
        }
        if known.len() == before {
            return known;
        }
    }
}

fn times(register: Register, among: &[Register]) -> usize {
    among.iter().filter(|one| **one == register).count()
}

/// Whether an instruction takes the lower half of 64 bits.
fn is_half(instruction: &Instruction) -> bool {
    instruction.condition.is_none() && instruction.opcode == "cvt.u32.u64"
}

/// Whether the lower half of what an instruction writes depends on the lower halves of what it reads alone.
fn keeps_halves(instruction: &Instruction) -> bool {
    instruction.condition.is_none()
        && matches!(instruction.opcode.as_str(), "add.s64" | "shl.b64" | "and.b64" | "or.b64" | "xor.b64")
}

/// Whether an instruction adds a constant that instructions of memory can add.
fn adds_constant(instruction: &Instruction) -> bool {
    let constant = instruction.text.rsplit([' ', ',']).next().and_then(|last| last.parse::<i64>().ok());
    matches!(instruction.opcode.as_str(), "add.s64" | "add.s32")
        && instruction.reads.len() == 1
        && constant.is_some_and(|constant| (-LARGEST_OFFSET..LARGEST_OFFSET).contains(&constant))
}

/// The addition of two registers for which alone an instruction multiplies. It can take one product.
fn addition(
    instruction: &Instruction,
    written: Register,
    instructions: &[Instruction],
    uses: &AllUses,
    halved: &HashSet<Register>,
) -> Option<usize> {
    let (_, at) = uses[&written].only()?;
    let next = &instructions[at];
    let by_constant = instruction.reads.len() == 1;
    let takes = match (instruction.opcode.as_str(), next.opcode.as_str()) {
        ("mul.wide.u32" | "mul.wide.s32", "add.s64") => true,
        ("shl.b32", "add.s32") => by_constant,
        ("shl.b64", "add.s64") => by_constant && halved.contains(&next.writes[0]),
        _ => false,
    };
    (takes && next.condition.is_none() && next.reads.len() == 2).then_some(at)
}

type AllUses = HashMap<Register, Uses>;

/// Where a register is read, and where it is written.
#[derive(Default)]
struct Uses {
    reads: Vec<usize>,
    writes: Vec<usize>,
}

impl Uses {
    fn of(instructions: &[Instruction]) -> AllUses {
        let mut uses = AllUses::new();
        for (at, instruction) in instructions.iter().enumerate() {
            for register in &instruction.reads {
                uses.entry(*register).or_default().reads.push(at);
            }
            for register in &instruction.writes {
                uses.entry(*register).or_default().writes.push(at);
            }
        }
        uses
    }

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
        named(body, "merged")
    }

    /// Which instructions of a body are counted under a name.
    fn named(body: &str, name: &str) -> Vec<String> {
        let source = format!(
            ".version 9.0\n.target sm_90\n.address_size 64\n.visible .entry k() {{\n.reg .b32 %r<20>;\n.reg .b16 %h<9>;\n.reg .f32 %f<9>;\n.reg .b64 %a;\n.reg .b64 %d<9>;\n.reg .pred %p<2>;\n{body}\nret;\n}}\n"
        );
        let module = Module::load(&source, &Device::new()).expect("it is valid");
        let instructions = &module.kernels[0].instructions;
        let texts = instructions.iter().zip(names(instructions)).filter(|(_, own)| *own == name);
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
        assert_eq!(of("abs.f32 %f1, %f2; sqrt.rn.f32 %f3, %f1;").len(), 0, "not in a function of several instructions");
    }

    #[test]
    fn exponentials_of_absolute_values_are_one_instruction() {
        let short = |body| named(body, "ex2.approx.f32.abs");
        let absolute = "abs.f32 %f1, %f2; ex2.approx.f32 %f3, %f1;";
        assert_eq!(short(absolute), ["ex2.approx.f32 %f3, %f1"]);
        assert_eq!(of(absolute), ["abs.f32 %f1, %f2"]);
        assert_eq!(short("ex2.approx.f32 %f3, %f1;").len(), 0, "of any number");
        assert_eq!(short("neg.f32 %f1, %f2; ex2.approx.f32 %f3, %f1;").len(), 0, "of another sign");
        assert_eq!(short("abs.f32 %f1, %f2; @%p1 mov.f32 %f1, %f4; ex2.approx.f32 %f3, %f1;").len(), 0, "or another");
    }

    #[test]
    fn addresses_have_constants() {
        let sum = "add.s64 %d1, %d0, 2048;";
        let load = "ld.global.u32 %r1, [%d1];";
        assert_eq!(of(&format!("{sum} {load}")), ["add.s64 %d1, %d0, 2048"]);
        assert_eq!(of(&format!("{sum} cvt.u32.u64 %r0, %d1; ld.shared.u32 %r1, [%r0];")).len(), 1, "the lower half");
        assert_eq!(of(&format!("{sum} {load} st.global.u64 [%a], %d1;")).len(), 0, "stored as well");
        assert_eq!(of(&format!("{sum} st.global.u64 [%d1], %d1;")).len(), 0, "stored at itself");
        assert_eq!(of(&format!("add.s64 %d1, %d0, 8388608; {load}")).len(), 0, "more than 24 bits");
        assert_eq!(of(&format!("add.s64 %d1, %d0, %d2; {load}")).len(), 0, "no constant");
        assert_eq!(of(&format!("{sum} add.s64 %d2, %d1, %d3; ld.global.u32 %r1, [%d2];")).len(), 0, "another sum");
    }

    #[test]
    fn upper_halves_that_nothing_reads_take_no_instructions() {
        let sum = "cvt.u64.u32 %d0, %r1; add.s64 %d2, %d0, %d1;";
        assert_eq!(of(&format!("{sum} cvt.u32.u64 %r2, %d2; ld.shared.u32 %r3, [%r2];")), ["cvt.u64.u32 %d0, %r1"]);
        assert_eq!(of(&format!("{sum} ld.global.u32 %r3, [%d2];")).len(), 0, "an address of 64 bits");
        assert_eq!(of(&format!("{sum} cvt.u32.u64 %r2, %d2; shr.u64 %d3, %d2, 4;")).len(), 0, "moved down");
    }

    #[test]
    fn additions_multiply() {
        let product = "mul.wide.u32 %d1, %r1, 16;";
        assert_eq!(of(&format!("{product} add.s64 %d2, %d0, %d1;")), ["mul.wide.u32 %d1, %r1, 16"]);
        assert_eq!(of(&format!("{product} add.s64 %d2, %d0, %d1; add.s64 %d3, %d1, %d0;")).len(), 0, "read twice");
        assert_eq!(
            of(&format!("{product} add.s64 %d2, %d1, 64; ld.global.u32 %r2, [%d2];")).len(),
            1,
            "the address alone"
        );
        assert_eq!(of(&format!("{product} mul.wide.u32 %d2, %r2, 8; add.s64 %d3, %d1, %d2;")).len(), 1, "two products");
        assert_eq!(of("shl.b32 %r2, %r1, 4; add.s32 %r3, %r2, %r4;").len(), 1, "32 bits");
        assert_eq!(of("shl.b32 %r2, %r1, %r5; add.s32 %r3, %r2, %r4;").len(), 0, "by a register");
        let shifted = "shl.b64 %d1, %d0, 4; add.s64 %d2, %d3, %d1;";
        assert_eq!(of(&format!("{shifted} cvt.u32.u64 %r1, %d2; ld.shared.u32 %r2, [%r1];")).len(), 1, "a half");
        assert_eq!(of(&format!("{shifted} ld.global.u32 %r2, [%d2];")).len(), 0, "64 bits");
        let further = "add.s64 %d4, %d2, 64; cvt.u32.u64 %r3, %d4; ld.shared.u32 %r4, [%r3];";
        assert_eq!(of(&format!("{shifted} {further} cvt.u32.u64 %r1, %d2; ld.shared.u32 %r2, [%r1];")).len(), 2);
    }
}
