//! The shared memory of a block, with the accesses of its warps.
//!
//! Each warp has a vector clock: what it knows of the progress of every warp. A barrier joins the clocks of all warps; an mbarrier
//! passes on the clocks of those that arrived. An access that the clock of a warp does not know of is not ordered before it.
//!
//! The lanes of a warp are not in step either (CUDA C++ Programming Guide, "Independent Thread Scheduling"): exchanges between them
//! order no memory, and only a barrier does. A warp counts the barriers that it passed; accesses of two lanes with none between them
//! race.

use super::Bytes;
use crate::error::Misuse;
use crate::numbers::little_endian;

/// What a warp knows of the progress of every warp.
pub type Clock = Vec<u32>;

/// The clocks of the warps of a block.
#[derive(Debug, Clone, Default)]
pub struct Warps {
    clocks: Vec<Clock>,
    /// Barriers that each warp passed.
    passed: Vec<u32>,
}

/// Who accesses shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thread {
    pub warp: usize,
    pub lane: usize,
}

impl Warps {
    /// Clocks of `warps` warps that know nothing of each other.
    pub fn new(warps: usize) -> Self {
        let clock = |warp| (0..warps).map(|other| u32::from(other == warp)).collect();
        Self { clocks: (0..warps).map(clock).collect(), passed: vec![1; warps] }
    }

    /// A barrier: what any warp did is before what any does next.
    pub fn join_all(&mut self) {
        let mut known = self.clocks[0].clone();
        self.clocks.iter().for_each(|clock| raise(&mut known, clock));
        for (warp, clock) in self.clocks.iter_mut().enumerate() {
            clock.clone_from(&known);
            clock[warp] += 1;
        }
        self.passed.iter_mut().for_each(|passed| *passed += 1);
    }

    /// A barrier of a warp: what any of its lanes did is before what any does next.
    pub fn join_lanes(&mut self, warp: usize) {
        self.passed[warp] += 1;
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
        self.join_lanes(warp);
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
    lane: u8,
    time: u32,
    /// Barriers that the warp had passed.
    passed: u32,
}

/// The last read of a byte by a warp.
#[derive(Debug, Clone, Copy, Default)]
struct Read {
    time: u32,
    /// Barriers that the warp had passed.
    passed: u32,
    /// The lane, if only one has read it since that barrier.
    lane: Option<u8>,
}

/// The shared memory of the blocks that run one after the other on a thread of the host.
#[derive(Debug)]
pub struct Shared {
    bytes: Vec<u8>,
    writes: Vec<Write>,
    /// The last read of each byte by each warp.
    reads: Vec<Read>,
    /// Bytes that a copy which has not landed will write.
    in_flight: Vec<bool>,
    warps: usize,
    block: u32,
    /// Whether lanes of a warp may race with each other.
    lenient: bool,
}

impl Shared {
    /// `bytes` bytes, for blocks of `warps` warps, whose lanes may race with each other if it is lenient.
    pub fn new(bytes: usize, warps: usize, lenient: bool) -> Self {
        let (writes, reads) = (vec![Write::default(); bytes], vec![Read::default(); bytes * warps]);
        Self { bytes: vec![0xff; bytes], writes, reads, in_flight: vec![false; bytes], warps, block: 0, lenient }
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

    /// What a write by a thread leaves behind.
    fn write_of(&self, Thread { warp, lane }: Thread, warps: &Warps) -> Write {
        let (time, passed) = (warps.knows(warp, warp), warps.passed[warp]);
        Write { block: self.block, warp: warp as u16, lane: lane as u8, time, passed }
    }

    /// Whether a write of this block is ordered before what a thread does.
    fn check_write(&self, byte: usize, Thread { warp, lane }: Thread, warps: &Warps) -> Result<(), Misuse> {
        let write = self.writes[byte];
        let other = usize::from(write.warp);
        if warps.knows(warp, other) < write.time {
            return Err(race(byte, &format!("a write of warp {other}")));
        }
        if other == warp && write.passed == warps.passed[warp] && usize::from(write.lane) != lane && !self.lenient {
            return Err(race(byte, &format!("a write of lane {} of this warp", write.lane)));
        }
        Ok(())
    }

    /// Notes a read by a thread.
    fn note_read(&mut self, at: usize, bytes: usize, by: Thread, warps: &Warps) -> Result<(), Misuse> {
        let (time, passed) = (warps.knows(by.warp, by.warp), warps.passed[by.warp]);
        for byte in at..at + bytes {
            if self.writes[byte].block != self.block {
                return Err(Misuse::Uninitialised { what: format!("byte {byte} of shared memory") });
            }
            if self.in_flight[byte] {
                return Err(race(byte, "a copy that may not have landed"));
            }
            self.check_write(byte, by, warps)?;
            let read = &mut self.reads[byte * self.warps + by.warp];
            let alone = read.passed != passed || read.lane == Some(by.lane as u8);
            *read = Read { time, passed, lane: alone.then_some(by.lane as u8) };
        }
        Ok(())
    }

    /// Notes a write by a thread.
    fn note_write(&mut self, at: usize, bytes: usize, by: Thread, warps: &Warps) -> Result<(), Misuse> {
        for byte in at..at + bytes {
            if self.in_flight[byte] {
                return Err(race(byte, "a copy that may not have landed"));
            }
            if self.writes[byte].block == self.block {
                self.check_write(byte, by, warps)?;
            }
            let reads = &self.reads[byte * self.warps..(byte + 1) * self.warps];
            if let Some(reader) = (0..self.warps).find(|&reader| warps.knows(by.warp, reader) < reads[reader].time) {
                return Err(race(byte, &format!("a read of warp {reader}")));
            }
            let own = reads[by.warp];
            if own.passed == warps.passed[by.warp] && own.lane != Some(by.lane as u8) && !self.lenient {
                let lane = own.lane.map_or("other lanes".into(), |lane| format!("lane {lane}"));
                return Err(race(byte, &format!("a read of {lane} of this warp")));
            }
            self.writes[byte] = self.write_of(by, warps);
        }
        Ok(())
    }

    /// Reads at most 16 bytes for a thread.
    pub fn load(&mut self, address: u64, bytes: u64, by: Thread, warps: &Warps) -> Result<Bytes, Misuse> {
        let at = self.check(address, bytes)?;
        self.note_read(at, bytes as usize, by, warps)?;
        let mut found = [0; 16];
        found[..bytes as usize].copy_from_slice(&self.bytes[at..at + bytes as usize]);
        Ok(found)
    }

    /// Writes at most 16 bytes for a thread.
    pub fn store(&mut self, address: u64, bytes: u64, value: &Bytes, by: Thread, warps: &Warps) -> Result<(), Misuse> {
        let at = self.check(address, bytes)?;
        self.note_write(at, bytes as usize, by, warps)?;
        self.bytes[at..at + bytes as usize].copy_from_slice(&value[..bytes as usize]);
        Ok(())
    }

    /// Begins a copy of at most 16 bytes: from now on nobody may touch them.
    pub fn begin_copy(&mut self, address: u64, bytes: u64, by: Thread, warps: &Warps) -> Result<(), Misuse> {
        let at = self.check(address, bytes)?;
        self.note_write(at, bytes as usize, by, warps)?;
        self.in_flight[at..at + bytes as usize].fill(true);
        Ok(())
    }

    /// Ends a copy that [`begin_copy`](Self::begin_copy) began: the bytes are there, written by this thread.
    pub fn end_copy(&mut self, address: u64, bytes: u64, value: &Bytes, by: Thread, warps: &Warps) {
        let at = address as usize;
        let write = self.write_of(by, warps);
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
        by: Thread,
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
        let write = self.write_of(by, warps);
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
