//! The memory of a device: its allocations by address.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::allocation::Allocation;
use super::race::EPOCHS;
use crate::error::Misuse;
use crate::numbers::little_endian;

/// The allocations of all devices. They share one address space, as CUDA's do.
#[derive(Debug, Default)]
pub struct Device {
    allocations: RwLock<BTreeMap<u64, Arc<Allocation>>>,
}

impl Device {
    /// No memory.
    pub const fn new() -> Self {
        Self { allocations: RwLock::new(BTreeMap::new()) }
    }

    /// Allocates memory; `None` if the host has no more.
    pub fn allocate(&self, bytes: usize) -> Option<u64> {
        let allocation = Allocation::new(bytes)?;
        let start = allocation.start();
        self.allocations.write().unwrap_or_else(PoisonError::into_inner).insert(start, Arc::new(allocation));
        Some(start)
    }

    /// Frees memory; whether there was any at this address.
    pub fn free(&self, start: u64) -> bool {
        self.allocations.write().unwrap_or_else(PoisonError::into_inner).remove(&start).is_some()
    }

    /// Writes bytes from the host; whether all of them are in one allocation. Aligned words that are one of `canaries` count as
    /// unwritten: kernels may not read them.
    pub fn write(&self, address: u64, bytes: &[u8], canaries: &[u32]) -> bool {
        let Some(allocation) = self.find(address, bytes.len()) else { return false };
        allocation.write(address, bytes);
        if !canaries.is_empty() {
            let first = address.next_multiple_of(4);
            let words = bytes.get((first - address) as usize..).unwrap_or_default().chunks_exact(4);
            for (at, word) in (first..).step_by(4).zip(words) {
                if canaries.contains(&(little_endian(word) as u32)) {
                    allocation.mark_unwritten(at);
                }
            }
        }
        true
    }

    /// Reads bytes for the host, whether or not they were written; `None` if they are not all in one allocation.
    pub fn read(&self, address: u64, bytes: usize) -> Option<Vec<u8>> {
        self.find(address, bytes).map(|allocation| allocation.read(address, bytes))
    }

    /// The allocation that holds these bytes.
    fn find(&self, address: u64, bytes: usize) -> Option<Arc<Allocation>> {
        let allocations = self.allocations.read().unwrap_or_else(PoisonError::into_inner);
        let (_, below) = allocations.range(..=address).next_back()?;
        below.holds(address, bytes as u64).then(|| below.clone())
    }

    /// The allocations as a launch sees them. `epoch` counts launches.
    pub fn snapshot(&self, launch: u64) -> Snapshot {
        let allocations: Vec<_> =
            self.allocations.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let epoch = (launch % u64::from(EPOCHS)) as u32 + 1;
        if epoch == 1 {
            allocations.iter().for_each(|allocation| allocation.forget_accesses());
        }
        Snapshot { allocations, epoch }
    }
}

/// The allocations that exist while a kernel runs.
#[derive(Debug, Clone)]
pub struct Snapshot {
    allocations: Vec<Arc<Allocation>>,
    /// The epoch of the launch in records of accesses.
    pub epoch: u32,
}

impl Snapshot {
    /// The allocation that holds these bytes. `last` is where the one before was found.
    pub fn find(&self, address: u64, bytes: u64, last: &mut usize) -> Result<&Allocation, Misuse> {
        if let Some(allocation) = self.allocations.get(*last)
            && allocation.holds(address, bytes)
        {
            return Ok(allocation);
        }
        let before = self.allocations.partition_point(|allocation| allocation.start() <= address);
        match before.checked_sub(1).map(|index| (index, &self.allocations[index])) {
            Some((index, allocation)) if allocation.holds(address, bytes) => {
                *last = index;
                Ok(allocation)
            }
            nearest => {
                let limit = nearest.map_or("every allocation".into(), |(_, allocation)| {
                    format!("every allocation; the one below is {:#x} to {:#x}", allocation.start(), allocation.end())
                });
                Err(Misuse::OutOfBounds { space: "global", address, bytes, limit })
            }
        }
    }
}
