//! The memory of a device: its allocations by address.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::allocation::Allocation;
use super::race::EPOCHS;
use crate::error::Misuse;

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

    /// Notes that the host wrote bytes. Addresses outside of every allocation are memory of the host.
    pub fn mark_written(&self, address: u64, bytes: usize) {
        let allocations = self.allocations.read().unwrap_or_else(PoisonError::into_inner);
        let Some((_, allocation)) = allocations.range(..=address).next_back() else { return };
        if address < allocation.end() {
            allocation.mark_written(address, bytes.min((allocation.end() - address) as usize));
        }
    }

    /// Writes bytes from the host; whether all of them are in one allocation.
    pub fn write(&self, address: u64, bytes: &[u8]) -> bool {
        let allocations = self.allocations.read().unwrap_or_else(PoisonError::into_inner);
        let found = allocations.range(..=address).next_back();
        let inside = |allocation: &Allocation| {
            address.checked_add(bytes.len() as u64).is_some_and(|end| end <= allocation.end())
        };
        let Some((_, allocation)) = found.filter(|(_, allocation)| inside(allocation)) else { return false };
        allocation.write(address, bytes);
        true
    }

    /// Reads bytes for the host, whether or not they were written; `None` if they are not all in one allocation.
    pub fn read(&self, address: u64, bytes: usize) -> Option<Vec<u8>> {
        let allocations = self.allocations.read().unwrap_or_else(PoisonError::into_inner);
        let (_, allocation) = allocations.range(..=address).next_back()?;
        let inside = address.checked_add(bytes as u64).is_some_and(|end| end <= allocation.end());
        inside.then(|| allocation.read(address, bytes))
    }

    /// Whether all these bytes are in one allocation.
    pub fn holds(&self, address: u64, bytes: usize) -> bool {
        let allocations = self.allocations.read().unwrap_or_else(PoisonError::into_inner);
        let found = allocations.range(..=address).next_back();
        found.is_some_and(|(_, allocation)| address + bytes as u64 <= allocation.end())
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
        let inside = |allocation: &Allocation| {
            allocation.start() <= address && address.checked_add(bytes).is_some_and(|end| end <= allocation.end())
        };
        if let Some(allocation) = self.allocations.get(*last)
            && inside(allocation)
        {
            return Ok(allocation);
        }
        let before = self.allocations.partition_point(|allocation| allocation.start() <= address);
        match before.checked_sub(1).map(|index| (index, &self.allocations[index])) {
            Some((index, allocation)) if inside(allocation) => {
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
