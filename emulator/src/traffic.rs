//! Which sectors of global memory a launch touched, each counted once: what must move if no cache is too small.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

/// The slice of the grid that touched a sector, or several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    One(u64),
    Several,
}

/// The sectors that were read and those that were written.
#[derive(Debug, Default)]
pub struct Traffic {
    /// By the block that runs.
    block: [HashSet<u64>; 2],
    /// Sectors that blocks touched, each once for each block.
    by_blocks: u64,
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

impl Traffic {
    /// Notes an access by the block that runs.
    pub fn touch(&mut self, sectors: &[u64], writes: bool) {
        self.block[usize::from(writes)].extend(sectors);
    }

    /// Ends a block of a slice.
    pub fn end_block(&mut self, slice: u64) {
        for (block, all) in self.block.iter_mut().zip(&mut self.all) {
            self.by_blocks += block.len() as u64;
            block.drain().for_each(|sector| note(all, sector, By::One(slice)));
        }
    }

    /// Adds what other blocks touched.
    pub fn merge(&mut self, other: Self) {
        self.by_blocks += other.by_blocks;
        for (all, other) in self.all.iter_mut().zip(other.all) {
            other.into_iter().for_each(|(sector, by)| note(all, sector, by));
        }
    }

    /// Sectors that blocks touched, each once for each block: what moves if a block finds in its cache what it touched before.
    pub fn by_blocks(&self) -> u64 {
        self.by_blocks
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

    #[test]
    fn a_sector_counts_once() {
        let (mut all, mut other) = (Traffic::default(), Traffic::default());
        all.touch(&[1, 2], false);
        all.touch(&[2, 3], false);
        all.touch(&[3], true);
        all.end_block(0);
        all.touch(&[1], false);
        all.end_block(0);
        other.touch(&[3, 4], false);
        other.end_block(1);
        all.merge(other);
        assert_eq!(all.distinct(), [Distinct { private: 3, shared: 1 }, Distinct { private: 1, shared: 0 }]);
        assert_eq!(all.by_blocks(), 4 + 1 + 2);
    }
}
