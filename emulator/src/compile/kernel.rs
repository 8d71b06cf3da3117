//! What a compiled kernel is.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::changed::Changed;
use super::instruction::Instruction;
use super::special::Special;
use crate::registers::{Register, Sizes};

/// A kernel that can run.
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Most threads of a block; `None` if it does not say.
    pub most_threads: Option<u32>,
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
    pub(crate) allowed_dynamic_shared: AtomicUsize,
    /// The instruction that a mutant changed.
    pub(crate) changed: Option<Changed>,
    /// Bytes of a thread's own memory.
    pub local_bytes: usize,
}

impl Kernel {
    /// Bytes of shared memory that launches were [allowed](Self::allow_dynamic_shared) to add; 0 without.
    pub fn allowed_dynamic_shared(&self) -> usize {
        self.allowed_dynamic_shared.load(Ordering::Relaxed)
    }

    /// Bytes of shared memory that a launch with so many adds: no fewer than the kernel must have.
    pub fn dynamic_shared(&self, launched: usize) -> usize {
        launched.max(self.least_dynamic_shared)
    }

    /// Lets launches add so many bytes of shared memory.
    pub fn allow_dynamic_shared(&self, bytes: usize) {
        self.allowed_dynamic_shared.store(bytes, Ordering::Relaxed);
    }
}
