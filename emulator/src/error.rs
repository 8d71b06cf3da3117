//! What goes wrong: a module that cannot be loaded, and a kernel that must not go on.

use std::fmt;

/// A module that cannot be loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The text is not understood.
    #[error("the PTX cannot be read: {reason}")]
    Module {
        /// What, and where.
        reason: String,
    },
    /// An instruction is not understood.
    #[error("kernel `{kernel}`, `{statement}`: {reason}")]
    Statement {
        /// The kernel.
        kernel: String,
        /// The instruction.
        statement: String,
        /// What is not understood.
        reason: String,
    },
}

impl LoadError {
    pub(crate) fn of_module(reason: impl Into<String>) -> Self {
        Self::Module { reason: reason.into() }
    }
}

/// What a kernel does that no kernel may do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    /// An address that belongs to no allocation, array or variable.
    #[error("{bytes} bytes at {address:#x} of {space} memory are outside of {limit}")]
    OutOfBounds {
        /// The kind of memory.
        space: &'static str,
        /// The address.
        address: u64,
        /// Bytes of the access.
        bytes: u64,
        /// What there is.
        limit: String,
    },
    /// An address that is not a multiple of the size of the access.
    #[error("{bytes} bytes at {address:#x} are not aligned")]
    Misaligned {
        /// The address.
        address: u64,
        /// Bytes of the access.
        bytes: u64,
    },
    /// A read of something that was never written.
    #[error("reads {what}, which nothing has written")]
    Uninitialised {
        /// What.
        what: String,
    },
    /// Two accesses that nothing orders, of which one writes.
    #[error("races with {other} at {address:#x} of {space} memory")]
    Race {
        /// The kind of memory.
        space: &'static str,
        /// The address.
        address: u64,
        /// The other access.
        other: String,
    },
    /// Lanes or warps that wait for each other without end.
    #[error("waits without end: {why}")]
    Deadlock {
        /// For what.
        why: String,
    },
    /// Arguments of an instruction that have no meaning.
    #[error("{0}")]
    Invalid(String),
}

/// A [`Misuse`], and where it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What happened.
    pub misuse: Misuse,
    /// The kernel.
    pub kernel: String,
    /// The instruction.
    pub statement: String,
    /// The line of the CUDA source; 0 if unknown.
    pub line: u32,
    /// The block.
    pub block: [u32; 3],
    /// The warp in the block, and the lane where it is known.
    pub warp: usize,
    /// The lane in the warp.
    pub lane: Option<usize>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { misuse, kernel, statement, line, block: [x, y, z], warp, lane } = self;
        write!(f, "kernel `{kernel}`, block ({x}, {y}, {z}), warp {warp}")?;
        if let Some(lane) = lane {
            write!(f, ", lane {lane}")?;
        }
        write!(f, ", `{statement}`")?;
        if *line > 0 {
            write!(f, " (line {line} of its source)")?;
        }
        write!(f, ": {misuse}")
    }
}

impl std::error::Error for Fault {}
