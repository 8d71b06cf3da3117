//! Which block of a launch touched a byte of device memory. Blocks of a launch have no order, so two of them may not touch a byte
//! if one writes, unless both do it atomically. PTX ISA, "Memory Consistency Model: Conflict and Data-races". What `ld.global.nc` reads may not be
//! written by any block while the kernel runs. PTX ISA, "Data Movement and Conversion Instructions: ld.global.nc".
//!
//! Blocks run on several threads. Each notes its own access before it looks for others, so one of two that race sees the other,
//! in whatever order they run.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// Epochs before records must be cleared; a launch has one epoch.
pub const EPOCHS: u32 = 255;

/// Bytes whose records are allocated together.
const PAGE: usize = 4096;

/// A record: the epoch in the upper 8 bits, below it the block's number plus 1, or one of these.
const MANY: u32 = 0x00ff_ffff;
const ATOMIC: u32 = 0x00ff_fffe;
const READ_ONLY: u32 = 0x00ff_fffd;

/// Largest number of a block that fits.
pub const MOST_BLOCKS: u64 = READ_ONLY as u64 - 1;

/// Who accesses memory.
#[derive(Debug, Clone, Copy)]
pub struct Accessor {
    /// The epoch of the launch.
    pub epoch: u32,
    /// The number of the block in the grid.
    pub block: u32,
    /// Whether it reads what nothing may write while the kernel runs, not even itself: `ld.global.nc`.
    pub read_only: bool,
}

impl Accessor {
    /// How it is written into a record.
    fn mark(self) -> u32 {
        self.epoch << 24 | if self.read_only { READ_ONLY } else { self.block + 1 }
    }
}

#[derive(Debug)]
struct Record {
    writer: AtomicU32,
    reader: AtomicU32,
}

/// The records of an allocation, in pages that exist once they are touched.
#[derive(Debug)]
pub struct Accesses {
    pages: Vec<OnceLock<Box<[Record]>>>,
}

impl Accesses {
    pub fn new(bytes: usize) -> Self {
        Self { pages: (0..bytes.div_ceil(PAGE)).map(|_| OnceLock::new()).collect() }
    }

    /// The records of an aligned access, which never crosses a page.
    fn records(&self, offset: u64, bytes: u64) -> &[Record] {
        let (page, at) = (offset as usize / PAGE, offset as usize % PAGE);
        let new = || (0..PAGE).map(|_| Record { writer: AtomicU32::new(0), reader: AtomicU32::new(0) }).collect();
        &self.pages[page].get_or_init(new)[at..at + bytes as usize]
    }

    /// Notes a read; the other access if another block wrote.
    pub fn read(&self, offset: u64, bytes: u64, by: Accessor) -> Result<(), String> {
        let (mine, epoch) = (by.mark(), by.epoch);
        for record in self.records(offset, bytes) {
            if record.reader.load(SeqCst) != mine {
                // Always succeeds: the closure returns a value.
                let _ = record.reader.fetch_update(SeqCst, SeqCst, |reader| {
                    Some(if reader >> 24 == epoch && reader != mine && !by.read_only {
                        epoch << 24 | MANY
                    } else {
                        mine
                    })
                });
            }
            check("a write", record.writer.load(SeqCst), epoch, mine)?;
        }
        Ok(())
    }

    /// Notes a write; the other access if another block read or wrote.
    pub fn write(&self, offset: u64, bytes: u64, by: Accessor) -> Result<(), String> {
        let (mine, epoch) = (by.mark(), by.epoch);
        for record in self.records(offset, bytes) {
            if record.writer.load(SeqCst) != mine {
                check("a write", record.writer.swap(mine, SeqCst), epoch, mine)?;
            }
            check("a read", record.reader.load(SeqCst), epoch, mine)?;
        }
        Ok(())
    }

    /// Notes an atomic update; the other access if another block did something that is not atomic.
    pub fn update(&self, offset: u64, bytes: u64, by: Accessor) -> Result<(), String> {
        let (mine, epoch, atomic) = (by.mark(), by.epoch, by.epoch << 24 | ATOMIC);
        for record in self.records(offset, bytes) {
            let writer = record.writer.swap(atomic, SeqCst);
            if writer != atomic {
                check("a write", writer, epoch, mine)?;
            }
            check("a read", record.reader.load(SeqCst), epoch, mine)?;
        }
        Ok(())
    }

    /// Clears every record.
    pub fn forget(&self) {
        for record in self.pages.iter().filter_map(OnceLock::get).flatten() {
            record.writer.store(0, SeqCst);
            record.reader.store(0, SeqCst);
        }
    }
}

fn check(what: &str, other: u32, epoch: u32, mine: u32) -> Result<(), String> {
    if other >> 24 != epoch || other == mine {
        return Ok(());
    }
    Err(match other & MANY {
        MANY => format!("{what} of other blocks"),
        READ_ONLY => "`ld.global.nc`, which reads what the kernel may not write".into(),
        ATOMIC => "an atomic update of another block, and is none".into(),
        block => format!("{what} of block {}", block - 1),
    })
}
