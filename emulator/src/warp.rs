//! A warp: its registers, the memory of its threads, and where its lanes are.

use crate::error::Misuse;
use crate::memory::{Bytes, Thread};
use crate::registers::{Lanes, Registers, WARP};

/// Lanes at one instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// The instruction that they execute next.
    pub at: usize,
    /// Which lanes.
    pub lanes: Lanes,
    /// Whether they wait there for other lanes.
    pub waits: bool,
}

/// What a test of an mbarrier found. PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier.test_wait,
/// mbarrier.try_wait".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tested {
    Complete,
    /// The phase is not complete, and the test says so. The instruction is this one.
    Pending(usize),
    /// The phase is not complete, and the warp sleeps until it is.
    Sleeps,
}

/// A warp.
#[derive(Debug)]
pub struct Warp {
    /// Its number in the block.
    pub index: usize,
    pub registers: Registers,
    /// Lanes that have not ended.
    pub alive: Lanes,
    /// Its lanes by instruction.
    pub groups: Vec<Group>,
    /// The barrier at which all of its lanes wait.
    pub barrier: Option<u32>,
    /// What the last test found.
    pub tested: Tested,
    /// The instruction that was executed last.
    pub at: usize,
    local: Local,
}

impl Warp {
    /// A warp whose threads have `local` bytes of memory each.
    pub fn new(index: usize, registers: Registers, local: usize) -> Self {
        let local = Local { bytes: vec![0xff; local * WARP], written: vec![false; local * WARP], each: local };
        Self { index, registers, alive: 0, groups: Vec::new(), barrier: None, tested: Tested::Complete, at: 0, local }
    }

    /// One of its lanes.
    pub fn thread(&self, lane: usize) -> Thread {
        Thread { warp: self.index, lane }
    }

    /// Begins a kernel with these lanes.
    pub fn begin(&mut self, lanes: Lanes) {
        self.alive = lanes;
        self.groups.clear();
        self.groups.push(Group { at: 0, lanes, waits: false });
        self.barrier = None;
        self.tested = Tested::Complete;
        self.local.written.fill(false);
    }

    /// Reads at most 16 bytes of the memory of one thread.
    pub fn load_local(&self, address: u64, bytes: u64, lane: usize) -> Result<Bytes, Misuse> {
        let at = self.local.check(address, bytes, lane)?;
        if self.local.written[at..at + bytes as usize].contains(&false) {
            return Err(Misuse::Uninitialised { what: format!("{bytes} bytes at {address:#x} of local memory") });
        }
        let mut found = [0; 16];
        found[..bytes as usize].copy_from_slice(&self.local.bytes[at..at + bytes as usize]);
        Ok(found)
    }

    /// Writes at most 16 bytes of the memory of one thread.
    pub fn store_local(&mut self, address: u64, bytes: u64, value: &Bytes, lane: usize) -> Result<(), Misuse> {
        let at = self.local.check(address, bytes, lane)?;
        self.local.bytes[at..at + bytes as usize].copy_from_slice(&value[..bytes as usize]);
        self.local.written[at..at + bytes as usize].fill(true);
        Ok(())
    }
}

/// The memory of the threads of a warp, one after the other. PTX ISA, "State Spaces: Local State Space".
#[derive(Debug)]
struct Local {
    bytes: Vec<u8>,
    written: Vec<bool>,
    each: usize,
}

impl Local {
    fn check(&self, address: u64, bytes: u64, lane: usize) -> Result<usize, Misuse> {
        if !address.is_multiple_of(bytes) {
            return Err(Misuse::Misaligned { address, bytes });
        }
        match address.checked_add(bytes) {
            Some(end) if end <= self.each as u64 => Ok(lane * self.each + address as usize),
            _ => {
                let limit = format!("the {} bytes of the thread", self.each);
                Err(Misuse::OutOfBounds { space: "local", address, bytes, limit })
            }
        }
    }
}
