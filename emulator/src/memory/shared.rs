//! The shared memory of a block, with the accesses of its warps.
//!
//! Each warp has a vector clock: what it knows of the progress of every warp. A barrier joins the clocks of all warps; an mbarrier
//! passes on the clocks of those that arrived. An access that the clock of a warp does not know of is not ordered before it.

use super::Bytes;
use crate::error::Misuse;
use crate::numbers::little_endian;

/// What a warp knows of the progress of every warp.
pub type Clock = Vec<u32>;

/// The clocks of the warps of a block.
#[derive(Debug, Clone, Default)]
pub struct Warps {
    clocks: Vec<Clock>,
}

impl Warps {
    /// Clocks of `warps` warps that know nothing of each other.
    pub fn new(warps: usize) -> Self {
        let clock = |warp| (0..warps).map(|other| u32::from(other == warp)).collect();
        Self { clocks: (0..warps).map(clock).collect() }
    }

    /// A barrier: what any warp did is before what any does next.
    pub fn join_all(&mut self) {
        let mut known = self.clocks[0].clone();
        self.clocks.iter().for_each(|clock| raise(&mut known, clock));
        for (warp, clock) in self.clocks.iter_mut().enumerate() {
            clock.clone_from(&known);
            clock[warp] += 1;
        }
    }

    /// What a warp knows, for another to [`learn`](Self::learn). What it does next is not included.
    pub fn release(&mut self, warp: usize) -> Clock {
        let known = self.clocks[warp].clone();
        self.clocks[warp][warp] += 1;
        known
    }

    /// Puts the work of another before what this warp does next.
    pub fn learn(&mut self, warp: usize, known: &[u32]) {
        raise(&mut self.clocks[warp], known);
    }

    /// What warp `warp` knows of warp `of`.
    fn knows(&self, warp: usize, of: usize) -> u32 {
        self.clocks[warp][of]
    }
}

/// Joins two clocks.
pub fn raise(clock: &mut [u32], other: &[u32]) {
    clock.iter_mut().zip(other).for_each(|(time, other)| *time = (*time).max(*other));
}

/// The last write to a byte.
#[derive(Debug, Clone, Copy, Default)]
struct Write {
    /// The block, in the order in which this memory ran them, plus 1.
    block: u32,
    warp: u16,
    time: u32,
}

/// The shared memory of the blocks that run one after the other on a thread of the host.
#[derive(Debug)]
pub struct Shared {
    bytes: Vec<u8>,
    writes: Vec<Write>,
    /// The time of the last read of each byte by each warp.
    reads: Vec<u32>,
    /// Bytes that a copy which has not landed will write.
    in_flight: Vec<bool>,
    warps: usize,
    block: u32,
}

impl Shared {
    /// `bytes` bytes, for blocks of `warps` warps.
    pub fn new(bytes: usize, warps: usize) -> Self {
        let (writes, reads) = (vec![Write::default(); bytes], vec![0; bytes * warps]);
        Self { bytes: vec![0xff; bytes], writes, reads, in_flight: vec![false; bytes], warps, block: 0 }
    }

    /// Begins with the next block, which finds nothing written. Clocks continue, so that accesses of the block before are known.
    pub fn next_block(&mut self) {
        self.bytes.fill(0xff);
        self.in_flight.fill(false);
        self.block += 1;
    }

    fn check(&self, address: u64, bytes: u64) -> Result<usize, Misuse> {
        if !address.is_multiple_of(bytes) {
            return Err(Misuse::Misaligned { address, bytes });
        }
        match address.checked_add(bytes) {
            Some(end) if end <= self.bytes.len() as u64 => Ok(address as usize),
            _ => {
                let limit = format!("the {} bytes of the block", self.bytes.len());
                Err(Misuse::OutOfBounds { space: "shared", address, bytes, limit })
            }
        }
    }

    /// Notes a read by a warp.
    fn note_read(&mut self, at: usize, bytes: usize, warp: usize, warps: &Warps) -> Result<(), Misuse> {
        let now = warps.knows(warp, warp);
        for byte in at..at + bytes {
            let write = self.writes[byte];
            if write.block != self.block {
                return Err(Misuse::Uninitialised { what: format!("byte {byte} of shared memory") });
            }
            if self.in_flight[byte] {
                return Err(race(byte, "a copy that may not have landed"));
            }
            if warps.knows(warp, write.warp.into()) < write.time {
                return Err(race(byte, &format!("a write of warp {}", write.warp)));
            }
            self.reads[byte * self.warps + warp] = now;
        }
        Ok(())
    }

    /// Notes a write by a warp.
    fn note_write(&mut self, at: usize, bytes: usize, warp: usize, warps: &Warps) -> Result<(), Misuse> {
        let now = warps.knows(warp, warp);
        for byte in at..at + bytes {
            let write = self.writes[byte];
            if self.in_flight[byte] {
                return Err(race(byte, "a copy that may not have landed"));
            }
            if write.block == self.block && warps.knows(warp, write.warp.into()) < write.time {
                return Err(race(byte, &format!("a write of warp {}", write.warp)));
            }
            let reads = &self.reads[byte * self.warps..(byte + 1) * self.warps];
            if let Some(reader) = (0..self.warps).find(|&reader| warps.knows(warp, reader) < reads[reader]) {
                return Err(race(byte, &format!("a read of warp {reader}")));
            }
            self.writes[byte] = Write { block: self.block, warp: warp as u16, time: now };
        }
        Ok(())
    }

    /// Reads at most 16 bytes for a warp.
    pub fn load(&mut self, address: u64, bytes: u64, warp: usize, warps: &Warps) -> Result<Bytes, Misuse> {
        let at = self.check(address, bytes)?;
        self.note_read(at, bytes as usize, warp, warps)?;
        let mut found = [0; 16];
        found[..bytes as usize].copy_from_slice(&self.bytes[at..at + bytes as usize]);
        Ok(found)
    }

    /// Writes at most 16 bytes for a warp.
    pub fn store(&mut self, address: u64, bytes: u64, value: &Bytes, warp: usize, warps: &Warps) -> Result<(), Misuse> {
        let at = self.check(address, bytes)?;
        self.note_write(at, bytes as usize, warp, warps)?;
        self.bytes[at..at + bytes as usize].copy_from_slice(&value[..bytes as usize]);
        Ok(())
    }

    /// Begins a copy of at most 16 bytes: from now on nobody may touch them.
    pub fn begin_copy(&mut self, address: u64, bytes: u64, warp: usize, warps: &Warps) -> Result<(), Misuse> {
        let at = self.check(address, bytes)?;
        self.note_write(at, bytes as usize, warp, warps)?;
        self.in_flight[at..at + bytes as usize].fill(true);
        Ok(())
    }

    /// Ends a copy that [`begin_copy`](Self::begin_copy) began: the bytes are there, written by this warp.
    pub fn end_copy(&mut self, address: u64, bytes: u64, value: &Bytes, warp: usize, warps: &Warps) {
        let at = address as usize;
        let write = Write { block: self.block, warp: warp as u16, time: warps.knows(warp, warp) };
        self.bytes[at..at + bytes as usize].copy_from_slice(&value[..bytes as usize]);
        self.in_flight[at..at + bytes as usize].fill(false);
        self.writes[at..at + bytes as usize].fill(write);
    }

    /// Replaces an element by a function of it; returns the element before. Updates of different warps have an order, whatever
    /// it is, so only other accesses race with them; the element counts as written by the last.
    pub fn update(
        &mut self,
        address: u64,
        bytes: u64,
        warp: usize,
        warps: &Warps,
        change: impl Fn(u64) -> u64,
    ) -> Result<u64, Misuse> {
        let at = self.check(address, bytes)?;
        if self.writes[at..at + bytes as usize].iter().any(|write| write.block != self.block) {
            return Err(Misuse::Uninitialised { what: format!("byte {at} of shared memory") });
        }
        let element = &mut self.bytes[at..at + bytes as usize];
        let before = little_endian(element);
        element.copy_from_slice(&change(before).to_le_bytes()[..bytes as usize]);
        let write = Write { block: self.block, warp: warp as u16, time: warps.knows(warp, warp) };
        self.writes[at..at + bytes as usize].fill(write);
        Ok(before)
    }

    /// The 8 bytes of an mbarrier. Barriers order accesses and are not data themselves, so these are not checked for races.
    pub fn barrier(&self, address: u64) -> Result<u64, Misuse> {
        let at = self.check(address, 8)?;
        if self.writes[at..at + 8].iter().any(|write| write.block != self.block) {
            return Err(Misuse::Uninitialised { what: format!("the mbarrier at {address:#x} of shared memory") });
        }
        Ok(little_endian(&self.bytes[at..at + 8]))
    }

    /// Changes an mbarrier.
    pub fn set_barrier(&mut self, address: u64, value: u64) -> Result<(), Misuse> {
        let at = self.check(address, 8)?;
        self.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        Ok(())
    }
}

fn race(byte: usize, other: &str) -> Misuse {
    Misuse::Race { space: "shared", address: byte as u64, other: other.into() }
}
