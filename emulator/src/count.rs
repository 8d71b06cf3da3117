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
    /// The passes that as many bytes need without conflicts.
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
const SECTOR: u64 = 32;
/// Banks of shared memory, each of which gives 4 bytes in a pass.
const BANKS: u64 = 32;

impl Count {
    /// Counts an access to global memory: the sectors that the lanes touch together. An aligned access of at most 16 bytes is in
    /// one sector.
    pub fn global(&mut self, addresses: &[u64; WARP], lanes: Lanes, bytes: u64) {
        let (mut sectors, mut count) = ([0; WARP], 0);
        for lane in each(lanes) {
            let sector = addresses[lane] / SECTOR;
            // Lanes mostly follow each other, so the last sectors are the likely ones.
            if !sectors[..count].iter().rev().any(|other| *other == sector) {
                sectors[count] = sector;
                count += 1;
            }
        }
        self.bytes += bytes * u64::from(lanes.count_ones());
        self.sectors += count as u64;
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
        let mut count = Count::default();
        count.global(&std::array::from_fn(|lane| 4 * lane as u64), ALL, 4);
        assert_eq!((count.bytes, count.sectors), (128, 4));
        count.global(&std::array::from_fn(|lane| 256 * lane as u64), ALL, 4);
        assert_eq!(count.sectors, 4 + 32);
        count.global(&[64; WARP], 0b101, 16);
        assert_eq!(count.sectors, 4 + 32 + 1);
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
