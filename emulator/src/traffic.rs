//! Which sectors of global memory a launch touched, each counted once: what must move if no cache is too small.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::count::SECTOR;
use crate::registers::{Lanes, WARP, each};

/// The slice of the grid that touched a sector, or several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    One(u64),
    Several,
}

/// The part of a sector that an instruction asked for.
#[derive(Debug, Clone, Copy)]
struct Asked {
    sector: u64,
    bytes: u32,
}

/// The sectors that were read and those that were written.
#[derive(Debug, Default)]
pub struct Traffic {
    /// The bytes that the block that runs touches of each sector, a bit each.
    block: [HashMap<u64, u32>; 2],
    /// What each of its instructions asked for, one after the other.
    asked: [Vec<Asked>; 2],
    /// Where each of them ends among these.
    ends: [Vec<usize>; 2],
    /// Sectors that blocks touched, each once for each block.
    by_blocks: u64,
    /// See [`least`](Self::least).
    least: u64,
    all: [HashMap<u64, By>; 2],
}

/// Sectors, each counted once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Distinct {
    /// Those that one slice of the grid touched.
    pub private: u64,
    /// Those that several touched.
    pub shared: u64,
}

/// What a sum of fractions may be off by.
const ROUNDING: f64 = 1e-6;

impl Traffic {
    /// Notes aligned accesses of at most 16 bytes by lanes of the block that runs.
    pub fn touch(&mut self, addresses: &[u64; WARP], lanes: Lanes, bytes: u64, writes: bool) {
        let (mut sectors, mut masks, mut count) = ([0; WARP], [0u32; WARP], 0);
        for lane in each(lanes) {
            let (sector, first) = (addresses[lane] / SECTOR, addresses[lane] % SECTOR);
            // Lanes mostly follow each other, so the last sectors are the likely ones.
            let at = (0..count).rev().find(|at| sectors[*at] == sector).unwrap_or_else(|| {
                sectors[count] = sector;
                count += 1;
                count - 1
            });
            masks[at] |= ((1 << bytes) - 1) << first;
        }
        let side = usize::from(writes);
        for (sector, mask) in sectors.iter().zip(masks).take(count) {
            *self.block[side].entry(*sector).or_default() |= mask;
            self.asked[side].push(Asked { sector: *sector, bytes: mask.count_ones() });
        }
        self.ends[side].push(self.asked[side].len());
    }

    /// Ends a block of a slice.
    pub fn end_block(&mut self, slice: u64) {
        for side in 0..2 {
            let (block, asked) = (&mut self.block[side], &mut self.asked[side]);
            let mut begin = 0;
            for end in self.ends[side].drain(..) {
                let part = |asked: &Asked| f64::from(asked.bytes) / f64::from(block[&asked.sector].count_ones());
                let full: f64 = asked[begin..end].iter().map(part).sum();
                self.least += (full - ROUNDING).ceil() as u64;
                begin = end;
            }
            asked.clear();
            self.by_blocks += block.len() as u64;
            block.drain().for_each(|(sector, _)| note(&mut self.all[side], sector, By::One(slice)));
        }
    }

    /// Adds what other blocks touched.
    pub fn merge(&mut self, other: Self) {
        self.by_blocks += other.by_blocks;
        self.least += other.least;
        for (all, other) in self.all.iter_mut().zip(other.all) {
            other.into_iter().for_each(|(sector, by)| note(all, sector, by));
        }
    }

    /// Sectors that blocks touched, each once for each block: what moves if a block finds in its cache what it touched before.
    pub fn by_blocks(&self) -> u64 {
        self.by_blocks
    }

    /// The sectors that instructions would move if each of these had all bytes that its block needs of it. A block that needs half of a
    /// sector, since the rest is between two rows, cannot do better than move all of it; instructions that ask for one half each could.
    pub fn least(&self) -> u64 {
        self.least
    }

    /// How many sectors were read, and how many were written.
    pub fn distinct(&self) -> [Distinct; 2] {
        self.all.each_ref().map(|all| {
            let shared = all.values().filter(|by| **by == By::Several).count() as u64;
            Distinct { private: all.len() as u64 - shared, shared }
        })
    }
}

fn note(map: &mut HashMap<u64, By>, sector: u64, by: By) {
    match map.entry(sector) {
        Entry::Vacant(place) => {
            place.insert(by);
        }
        Entry::Occupied(mut place) if *place.get() != by => {
            place.insert(By::Several);
        }
        Entry::Occupied(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The addresses of lanes that read a sector each, and these lanes.
    fn sectors<const N: usize>(numbers: [u64; N]) -> ([u64; WARP], Lanes) {
        (std::array::from_fn(|lane| numbers.get(lane).map_or(0, |number| number * SECTOR)), (1 << N) - 1)
    }

    #[test]
    fn a_sector_counts_once() {
        let (mut all, mut other) = (Traffic::default(), Traffic::default());
        let touch = |traffic: &mut Traffic, (addresses, lanes): ([u64; WARP], Lanes), writes| {
            traffic.touch(&addresses, lanes, 16, writes);
        };
        touch(&mut all, sectors([1, 2]), false);
        touch(&mut all, sectors([2, 3]), false);
        touch(&mut all, sectors([3]), true);
        all.end_block(0);
        touch(&mut all, sectors([1]), false);
        all.end_block(0);
        touch(&mut other, sectors([3, 4]), false);
        other.end_block(1);
        all.merge(other);
        assert_eq!(all.distinct(), [Distinct { private: 3, shared: 1 }, Distinct { private: 1, shared: 0 }]);
        assert_eq!(all.by_blocks(), 4 + 1 + 2);
    }

    #[test]
    fn the_least_is_what_full_sectors_would_be() {
        // Lanes read 16 bytes each, at multiples of a stride; two instructions, the second of which begins later.
        let least = |stride: u64, second: Option<u64>| {
            let mut traffic = Traffic::default();
            for first in [Some(0), second].into_iter().flatten() {
                traffic.touch(&std::array::from_fn(|lane| first + stride * lane as u64), Lanes::MAX, 16, false);
            }
            traffic.end_block(0);
            traffic.least()
        };
        assert_eq!(least(16, None), 16, "whole sectors");
        assert_eq!(least(128, None), 32, "rows of 16 bytes");
        assert_eq!(least(128, Some(16)), 32, "each instruction reads half of what is read of a sector");
        assert_eq!(least(16, Some(0)), 32, "twice the same");
        assert_eq!(least(0, Some(16)), 2, "one address");
    }
}
