//! What a compiled instruction is.

use crate::block::{Block, Outcome};
use crate::registers::{Condition, Lanes, Register, Registers};
use crate::warp::Warp;

/// An instruction that reads and writes registers of its own lanes.
pub type Compute = Box<dyn Fn(&mut Registers, Lanes) + Send + Sync>;
/// An instruction that also touches memory, or registers of other lanes.
pub type Execute = Box<dyn Fn(&mut Warp, &mut Block<'_>, Lanes) -> Outcome + Send + Sync>;

/// What an instruction does.
pub enum Action {
    Compute(Compute),
    Execute(Execute),
    /// Waits until all of these lanes are here, or all of the warp; then they execute it together.
    Together(Option<Register>, Execute),
    /// Executes, and lets other warps run before it is tried again: a test that may have to wait.
    Test(Execute),
    /// Continues at this instruction.
    Branch(usize),
    /// Waits until every thread of the block is at this barrier.
    Barrier(u32),
    Exit,
    Trap,
}

/// An instruction.
pub struct Instruction {
    /// Which lanes execute it.
    pub condition: Option<Condition>,
    pub action: Action,
    /// Registers that must hold something in the lanes that execute it.
    pub reads: Vec<Register>,
    /// Registers that hold something afterwards.
    pub writes: Vec<Register>,
    /// Those of the registers that are read which are addresses, to which the instruction adds a constant.
    pub addresses: Vec<Register>,
    /// Its opcode.
    pub opcode: String,
    /// Its text.
    pub text: String,
    /// The line of the CUDA source; 0 if unknown.
    pub line: u32,
}
