//! What an instruction did, summed over its executions.

use std::ops::AddAssign;

use crate::registers::{Lanes, WARP, each};

/// What an instruction did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Times that a warp executed it.
    pub warps: u64,
    /// Lanes that executed it.
    pub lanes: u64,
    /// Bytes that lanes asked for.
    pub bytes: u64,
    /// Sectors of 32 bytes of global memory that were moved.
    pub sectors: u64,
    /// Passes through shared memory, each of which serves every bank once.
    pub passes: u64,
    /// The passes that as many bytes need without conflicts; those of an asynchronous copy move what one line of global memory has.
    pub ideal_passes: u64,
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.warps += other.warps;
        self.lanes += other.lanes;
        self.bytes += other.bytes;
        self.sectors += other.sectors;
        self.passes += other.passes;
        self.ideal_passes += other.ideal_passes;
    }
}

/// Bytes of a sector of global memory.
pub const SECTOR: u64 = 32;
/// Banks of shared memory, each of which gives 4 bytes in a pass.
const BANKS: u64 = 32;

/// Bytes that move together between global and shared memory in a pass of asynchronous copies.
const LINE: u64 = 128;
/// Sectors that shared memory has at most.
const SHARED_SECTORS: u64 = 1 << 16;

/// Different numbers among those of some lanes, in the order of the lanes.
#[derive(Debug)]
pub struct Different {
    numbers: [u64; WARP],
    count: usize,
}

impl Different {
    /// Those that `what` makes of each lane's number.
    pub fn of(numbers: &[u64; WARP], lanes: Lanes, what: impl Fn(u64) -> u64) -> Self {
        let mut found = Self { numbers: [0; WARP], count: 0 };
        for lane in each(lanes) {
            let number = what(numbers[lane]);
            // Lanes mostly follow each other, so the last numbers are the likely ones.
            if !found.all().iter().rev().any(|other| *other == number) {
                found.numbers[found.count] = number;
                found.count += 1;
            }
        }
        found
    }

    /// The sectors that an aligned access of at most 16 bytes touches: one for each lane.
    pub fn sectors(addresses: &[u64; WARP], lanes: Lanes) -> Self {
        Self::of(addresses, lanes, |address| address / SECTOR)
    }

    /// Each of them once.
    pub fn all(&self) -> &[u64] {
        &self.numbers[..self.count]
    }
}

impl Count {
    /// Counts an access to global memory that touched these sectors.
    pub fn global(&mut self, addresses: &[u64; WARP], lanes: Lanes, bytes: u64) {
        self.bytes += bytes * u64::from(lanes.count_ones());
        self.sectors += Different::sectors(addresses, lanes).all().len() as u64;
    }

    /// Counts asynchronous copies of 16 bytes that lanes make `from` global memory `to` shared memory; those of `some` read, the others
    /// write zeros.
    ///
    /// The two copies of a sector move together if they end in the same 32 bytes of shared memory; otherwise the sector is read twice. A
    /// pass moves such parts from one line of 128 bytes to another. That is how an H100 counts (`ncu`, "L2 Theoretical Sectors Global"
    /// and "L1 Wavefronts Shared" of `LDGSTS`).
    pub fn copied(&mut self, from: &[u64; WARP], to: &[u64; WARP], lanes: Lanes, some: Lanes) {
        const BYTES: u64 = 16;
        // The addresses of lanes that take no part may be anything.
        let moved = |lane: usize| (from[lane] / SECTOR).wrapping_mul(SHARED_SECTORS).wrapping_add(to[lane] / SECTOR);
        let moves: [_; WARP] = std::array::from_fn(moved);
        let read = Different::of(&moves, some, |both| both);
        self.bytes += BYTES * u64::from(lanes.count_ones() + some.count_ones());
        self.sectors += read.count as u64;
        let parts = Different::of(&moves, lanes, |both| both);
        let passes: [_; WARP] = std::array::from_fn(|at| {
            let both = parts.numbers[at];
            let (sector, target) = (both / SHARED_SECTORS, both % SHARED_SECTORS);
            let second = parts.all()[..at.min(parts.count)].iter().any(|other| other / SHARED_SECTORS == sector);
            let in_line = LINE / SECTOR;
            (sector / in_line * SHARED_SECTORS + target / in_line) * 2 + u64::from(second)
        });
        let found = (1u64 << parts.count) - 1;
        self.passes += Different::of(&passes, found as Lanes, |pass| pass).count as u64;
        let lines = Different::of(from, lanes, |address| address / LINE).count as u64;
        self.ideal_passes += lines.max((u64::from(lanes.count_ones()) * BYTES).div_ceil(LINE));
    }

    /// Counts an access to shared memory. Lanes are served in groups of 128 bytes: all of them, halves or quarters. A pass serves
    /// each bank once, and lanes that read the same word share it.
    pub fn shared(&mut self, addresses: &[u64; WARP], lanes: Lanes, bytes: u64) {
        self.bytes += bytes * u64::from(lanes.count_ones());
        let served = if bytes <= 4 { WARP } else { WARP * 4 / bytes as usize };
        let words = bytes.div_ceil(4);
        for first in (0..WARP).step_by(served) {
            // The first word of each access, and how many accesses a bank serves. Accesses are aligned, so two of them have all
            // words in common or none.
            let (mut starts, mut count, mut banks) = ([0; WARP], 0, [0u8; BANKS as usize]);
            for lane in first..first + served {
                if lanes >> lane & 1 == 0 {
                    continue;
                }
                let start = addresses[lane] / 4;
                if !starts[..count].contains(&start) {
                    starts[count] = start;
                    count += 1;
                    (start..start + words).for_each(|word| banks[(word % BANKS) as usize] += 1);
                }
            }
            self.passes += u64::from(banks.into_iter().max().unwrap_or(0));
            self.ideal_passes += (count as u64 * words).div_ceil(BANKS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registers::ALL;

    #[test]
    fn sectors_are_counted_once_for_a_warp() {
        let count = |stride: u64, lanes: Lanes, bytes: u64| {
            let (mut count, addresses) = (Count::default(), std::array::from_fn(|lane| stride * lane as u64));
            count.global(&addresses, lanes, bytes);
            (count.bytes, count.sectors)
        };
        assert_eq!(count(4, ALL, 4), (128, 4));
        assert_eq!(count(256, ALL, 4), (128, 32));
        assert_eq!(count(8, ALL, 4), (128, 8), "every other word");
        assert_eq!(count(0, 0b101, 16), (32, 1), "one address");
    }

    #[test]
    fn copies_of_lanes_that_take_no_part_count_nothing() {
        // 5 of 8 lanes copy a row of 80 bytes to a line; the addresses of the others lead nowhere.
        let lanes: Lanes = 0x1f1f_1f1f;
        let from = std::array::from_fn(|lane| if lane % 8 < 5 { lane as u64 * 16 } else { u64::MAX - lane as u64 });
        let mut count = Count::default();
        count.copied(&from, &from, lanes, lanes);
        assert_eq!((count.bytes, count.sectors, count.passes), (2 * 20 * 16, 12, 4));
    }

    #[test]
    fn copies_that_divide_sectors_count_twice() {
        // A warp copies two rows of 256 bytes, or four of 128. The sectors and passes are those of an H100, means over eight rows.
        let counts = |row: u64, place: fn(u64, u64) -> u64| {
            let mut count = Count::default();
            for first in (0..8 * row).step_by(512) {
                let from = std::array::from_fn(|lane| first + 16 * lane as u64);
                let to = from.map(|at| place(at / row, at % row / 16) * 16);
                count.copied(&from, &to, ALL, ALL);
            }
            let warps = (8 * row / 512) as f64;
            [count.sectors, count.passes, count.ideal_passes].map(|sum| sum as f64 / warps)
        };
        assert_eq!(counts(256, |row, chunk| row * 17 + chunk), [24.0, 10.5, 4.0], "rows of 272 bytes");
        assert_eq!(counts(128, |row, chunk| row * 9 + chunk), [24.0, 10.5, 4.0], "rows of 144 bytes");
        assert_eq!(counts(128, |row, chunk| row * 8 + (chunk ^ row)), [16.0, 4.0, 4.0], "chunks that change places");
    }

    #[test]
    fn a_pass_copies_from_one_line() {
        // 32 lanes copy 16 bytes each of as many lines, to four neighbouring ones.
        let (from, to) = (std::array::from_fn(|lane| 128 * lane as u64), std::array::from_fn(|lane| 16 * lane as u64));
        let mut count = Count::default();
        count.copied(&from, &to, ALL, ALL);
        assert_eq!((count.sectors, count.passes, count.ideal_passes), (32, 32, 32));
    }

    #[test]
    fn lanes_in_one_bank_take_turns() {
        let passes = |stride: u64, bytes: u64| {
            let mut count = Count::default();
            count.shared(&std::array::from_fn(|lane| stride * lane as u64), ALL, bytes);
            (count.passes, count.ideal_passes)
        };
        assert_eq!(passes(4, 4), (1, 1));
        assert_eq!(passes(8, 4), (2, 1), "two lanes to a bank");
        assert_eq!(passes(128, 4), (32, 1));
        assert_eq!(passes(0, 4), (1, 1), "one word for all");
        assert_eq!(passes(16, 16), (4, 4));
        assert_eq!(passes(2, 2), (1, 1));
    }
}
