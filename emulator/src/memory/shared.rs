//! The shared memory of a block, with the accesses of its warps. PTX ISA, "Memory Consistency Model: Conflict and Data-races".
//!
//! Two accesses of a byte race if one of them writes, not both are atomic, and [`Warps`] do not order them. Operations on mbarriers
//! are atomic updates here.

use std::collections::BTreeMap;

use super::Bytes;
use super::clocks::{Thread, Warps};
use crate::error::Misuse;
use crate::numbers::little_endian;

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
    /// Whether atomic updates came after it.
    updated: bool,
}

/// The last read, or atomic update, of a byte by a warp.
#[derive(Debug, Clone, Copy, Default)]
struct Touch {
    time: u32,
    /// Barriers that the warp had passed.
    passed: u32,
    /// The lane, if only one has done so since that barrier.
    lane: Option<u8>,
}

impl Touch {
    /// Becomes that of a thread, now.
    fn note(&mut self, Thread { warp, lane }: Thread, warps: &Warps) {
        let (time, passed) = (warps.knows(warp, warp), warps.passed(warp));
        let alone = self.passed != passed || self.lane == Some(lane as u8);
        *self = Self { time, passed, lane: alone.then_some(lane as u8) };
    }
}

/// The shared memory of the blocks that run one after the other on a thread of the host.
#[derive(Debug)]
pub struct Shared {
    bytes: Vec<u8>,
    writes: Vec<Write>,
    /// The last read of each byte by each warp.
    reads: Vec<Touch>,
    /// The last atomic update by each warp of the bytes that were updated after their last write.
    updates: BTreeMap<usize, Vec<Touch>>,
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
        let (writes, reads) = (vec![Write::default(); bytes], vec![Touch::default(); bytes * warps]);
        let (updates, in_flight) = (BTreeMap::new(), vec![false; bytes]);
        Self { bytes: vec![0xff; bytes], writes, reads, updates, in_flight, warps, block: 0, lenient }
    }

    /// Begins with the next block, which finds nothing written. Clocks continue, so that accesses of the block before are known.
    pub fn next_block(&mut self) {
        self.bytes.fill(0xff);
        self.in_flight.fill(false);
        self.updates.clear();
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
        let (time, passed) = (warps.knows(warp, warp), warps.passed(warp));
        Write { block: self.block, warp: warp as u16, lane: lane as u8, time, passed, updated: false }
    }

    /// Whether this block wrote a byte, and no copy to it may still land.
    fn check_there(&self, byte: usize) -> Result<(), Misuse> {
        if self.writes[byte].block != self.block {
            return Err(Misuse::Uninitialised { what: format!("byte {byte} of shared memory") });
        }
        self.check_landed(byte)
    }

    fn check_landed(&self, byte: usize) -> Result<(), Misuse> {
        if self.in_flight[byte] { Err(race(byte, "a copy that may not have landed")) } else { Ok(()) }
    }

    /// Whether the last write of this block is ordered before what a thread does.
    fn check_write(&self, byte: usize, Thread { warp, lane }: Thread, warps: &Warps) -> Result<(), Misuse> {
        let write = self.writes[byte];
        let other = usize::from(write.warp);
        if warps.knows(warp, other) < write.time {
            return Err(race(byte, &format!("a write of warp {other}")));
        }
        if other == warp && write.passed == warps.passed(warp) && usize::from(write.lane) != lane && !self.lenient {
            return Err(race(byte, &format!("a write of lane {} of this warp", write.lane)));
        }
        Ok(())
    }

    /// Whether the reads of a byte are ordered before what a thread does.
    fn check_reads(&self, byte: usize, by: Thread, warps: &Warps) -> Result<(), Misuse> {
        let reads = &self.reads[byte * self.warps..(byte + 1) * self.warps];
        self.check_touches(byte, reads, "a read", by, warps)
    }

    /// Whether the atomic updates of a byte after its last write are ordered before what a thread does.
    fn check_updates(&self, byte: usize, by: Thread, warps: &Warps) -> Result<(), Misuse> {
        // Few bytes are ever updated, so the table is looked at for those alone.
        match self.writes[byte].updated.then(|| self.updates.get(&byte)).flatten() {
            Some(updates) => self.check_touches(byte, updates, "an atomic update", by, warps),
            None => Ok(()),
        }
    }

    fn check_touches(
        &self,
        byte: usize,
        touches: &[Touch],
        kind: &str,
        by: Thread,
        warps: &Warps,
    ) -> Result<(), Misuse> {
        let mut others = touches.iter().enumerate();
        if let Some((other, _)) = others.find(|(other, touch)| warps.knows(by.warp, *other) < touch.time) {
            return Err(race(byte, &format!("{kind} of warp {other}")));
        }
        let own = touches[by.warp];
        if own.passed == warps.passed(by.warp) && own.lane != Some(by.lane as u8) && !self.lenient {
            let lane = own.lane.map_or("other lanes".into(), |lane| format!("lane {lane}"));
            return Err(race(byte, &format!("{kind} of {lane} of this warp")));
        }
        Ok(())
    }

    /// Notes a read by a thread.
    fn note_read(&mut self, at: usize, bytes: usize, by: Thread, warps: &Warps) -> Result<(), Misuse> {
        for byte in at..at + bytes {
            self.check_there(byte)?;
            self.check_write(byte, by, warps)?;
            self.check_updates(byte, by, warps)?;
            self.reads[byte * self.warps + by.warp].note(by, warps);
        }
        Ok(())
    }

    /// Notes a write by a thread.
    fn note_write(&mut self, at: usize, bytes: usize, by: Thread, warps: &Warps) -> Result<(), Misuse> {
        for byte in at..at + bytes {
            self.check_landed(byte)?;
            if self.writes[byte].block == self.block {
                self.check_write(byte, by, warps)?;
                self.check_updates(byte, by, warps)?;
            }
            self.check_reads(byte, by, warps)?;
            self.writes[byte] = self.write_of(by, warps);
        }
        Ok(())
    }

    /// Notes an atomic update by a thread. Updates of two threads have an order, whatever it is, so only other accesses race with them.
    fn note_update(&mut self, at: usize, bytes: usize, by: Thread, warps: &Warps) -> Result<(), Misuse> {
        for byte in at..at + bytes {
            self.check_there(byte)?;
            self.check_write(byte, by, warps)?;
            self.check_reads(byte, by, warps)?;
            let touches = self.updates.entry(byte).or_insert_with(|| vec![Touch::default(); self.warps]);
            if !std::mem::replace(&mut self.writes[byte].updated, true) {
                // Those before the last write, with which whatever comes after that is ordered.
                touches.fill(Touch::default());
            }
            touches[by.warp].note(by, warps);
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

    /// Replaces an element by a function of it; returns the element before.
    pub fn update(
        &mut self,
        address: u64,
        bytes: u64,
        by: Thread,
        warps: &Warps,
        change: impl Fn(u64) -> u64,
    ) -> Result<u64, Misuse> {
        let at = self.check(address, bytes)?;
        self.note_update(at, bytes as usize, by, warps)?;
        let element = &mut self.bytes[at..at + bytes as usize];
        let before = little_endian(element);
        element.copy_from_slice(&change(before).to_le_bytes()[..bytes as usize]);
        Ok(before)
    }

    /// The 8 bytes of an mbarrier, for an operation of a thread.
    pub fn barrier(&mut self, address: u64, by: Thread, warps: &Warps) -> Result<u64, Misuse> {
        let at = self.check(address, 8)?;
        self.note_update(at, 8, by, warps)?;
        Ok(little_endian(&self.bytes[at..at + 8]))
    }

    /// Changes an mbarrier on which a thread operates.
    pub fn set_barrier(&mut self, address: u64, value: u64) -> Result<(), Misuse> {
        let at = self.check(address, 8)?;
        self.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        Ok(())
    }
}

fn race(byte: usize, other: &str) -> Misuse {
    Misuse::Race { space: "shared", address: byte as u64, other: other.into() }
}
