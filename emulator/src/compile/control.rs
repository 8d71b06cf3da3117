//! Branches, barriers and ends. PTX ISA, "Control Flow Instructions" and "Parallel Synchronization and Communication Instructions".

use super::builder::Builder;
use super::instruction::Action;
use crate::ptx::Operand;

pub fn compile(b: &mut Builder<'_>) -> Result<Action, String> {
    match b.opcode() {
        "bra" => {
            b.flag("uni");
            Ok(Action::Branch(b.label(0)?))
        }
        "ret" | "exit" => {
            b.flag("uni");
            Ok(Action::Exit)
        }
        "trap" => Ok(Action::Trap),
        "bar" | "barrier" => barrier(b),
        // Accesses of one block become visible in the order of its barriers, and blocks do not see each other.
        _ => {
            while b.starting("").is_some() {}
            Ok(Action::Compute(Box::new(|_, _| {})))
        }
    }
}

fn barrier(b: &mut Builder<'_>) -> Result<Action, String> {
    b.flag("cta");
    if b.flag("warp") {
        b.flag("sync");
        let members = b.source(0, 32)?;
        return Ok(Action::Together(
            Some(members),
            Box::new(|warp, block, _| {
                block.clocks.join_lanes(warp.index);
                Ok(())
            }),
        ));
    }
    if !b.flag("sync") {
        return Err("only `.sync` barriers are supported".into());
    }
    b.flag("aligned");
    match b.operands() {
        [Operand::Number(number)] if *number < 16 => Ok(Action::Barrier(*number as u32)),
        _ => Err("a barrier needs a constant number below 16, and is for all threads of the block".into()),
    }
}
