//! What a compiled kernel is.

use super::changed::Changed;
use super::instruction::Instruction;
use super::special::Special;
use crate::registers::{Register, Sizes};

/// A kernel that can run.
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Offset and size of each parameter among the arguments.
    pub parameters: Vec<(usize, usize)>,
    /// Bytes of all arguments.
    pub parameter_bytes: usize,
    pub(crate) instructions: Vec<Instruction>,
    pub(crate) sizes: Sizes,
    /// Registers that hold a constant.
    pub(crate) constants: Vec<(Register, u64)>,
    /// Registers that hold what a thread is.
    pub(crate) specials: Vec<(Register, Special)>,
    /// Bytes of shared memory, without those that the launch adds.
    pub shared_bytes: usize,
    /// Bytes of shared memory that a launch must give at least; 0 if that is not known.
    pub least_dynamic_shared: usize,
    /// The instruction that a mutant changed.
    pub(crate) changed: Option<Changed>,
    /// Bytes of a thread's own memory.
    pub local_bytes: usize,
}
