//! Which sectors of global memory a launch touched, each counted once: what must move if no cache is too small.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// The slice of the grid that touched a sector, or several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    One(u64),
    Several,
}

/// The sectors that were read and those that were written.
#[derive(Debug, Default)]
pub struct Traffic {
    read: HashMap<u64, By>,
    written: HashMap<u64, By>,
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
    /// Notes an access by a block of a slice.
    pub fn touch(&mut self, sectors: &[u64], writes: bool, slice: u64) {
        let map = if writes { &mut self.written } else { &mut self.read };
        sectors.iter().for_each(|sector| note(map, *sector, By::One(slice)));
    }

    /// Adds what other blocks touched.
    pub fn merge(&mut self, other: Self) {
        other.read.into_iter().for_each(|(sector, by)| note(&mut self.read, sector, by));
        other.written.into_iter().for_each(|(sector, by)| note(&mut self.written, sector, by));
    }

    /// How many sectors were read, and how many were written.
    pub fn distinct(&self) -> [Distinct; 2] {
        [&self.read, &self.written].map(|map| {
            let shared = map.values().filter(|by| **by == By::Several).count() as u64;
            Distinct { private: map.len() as u64 - shared, shared }
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
        all.touch(&[1, 2], false, 0);
        all.touch(&[2, 3], false, 0);
        all.touch(&[3], true, 0);
        other.touch(&[3, 4], false, 1);
        all.merge(other);
        assert_eq!(all.distinct(), [Distinct { private: 3, shared: 1 }, Distinct { private: 1, shared: 0 }]);
    }
}
