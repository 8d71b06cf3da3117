//! mbarriers: objects in shared memory on which threads arrive and wait. PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier".
//!
//! The 8 bytes of an mbarrier are opaque to a kernel. Here the lower 20 bits count pending arrivals, the next 20 those of each
//! phase, and the highest bit changes with each phase.

use std::collections::HashMap;

use crate::error::Misuse;
use crate::memory::{Clock, Shared, Thread, Warps, raise};

const COUNT: u64 = 0xf_ffff;

/// What the mbarriers of a block pass on between warps.
#[derive(Debug, Default)]
pub struct Barriers {
    phases: HashMap<u64, Phase>,
}

#[derive(Debug, Default)]
struct Phase {
    /// What those that arrived in this phase know.
    arrived: Clock,
    /// What a warp learns that sees the phase before as complete.
    completed: Clock,
}

impl Barriers {
    /// Forgets every mbarrier.
    pub fn clear(&mut self) {
        self.phases.clear();
    }

    /// `mbarrier.init`; the 8 bytes were stored already, so that races on them were checked.
    pub fn initialise(&mut self, shared: &mut Shared, address: u64, count: u64) -> Result<(), Misuse> {
        if count == 0 || count > COUNT {
            return Err(Misuse::Invalid(format!("an mbarrier for {count} arrivals; 1 to {COUNT} are possible")));
        }
        self.phases.insert(address, Phase::default());
        shared.set_barrier(address, count | count << 20)
    }

    /// `mbarrier.inval`; the 8 bytes were stored already.
    pub fn invalidate(&mut self, address: u64) {
        self.phases.remove(&address);
    }

    /// The state of an mbarrier, on which a thread may operate only after its initialisation.
    pub fn state(&self, shared: &mut Shared, clocks: &Warps, address: u64, by: Thread) -> Result<u64, Misuse> {
        let state = shared.barrier(address, by, clocks)?;
        match self.phases.contains_key(&address) {
            true => Ok(state),
            false => Err(Misuse::Invalid(format!("there is no mbarrier at {address:#x}"))),
        }
    }

    /// `count` arrivals by a thread; the state before them.
    pub fn arrive(
        &mut self,
        shared: &mut Shared,
        clocks: &mut Warps,
        address: u64,
        count: u64,
        by: Thread,
    ) -> Result<u64, Misuse> {
        let state = self.state(shared, clocks, address, by)?;
        let (pending, expected, phase) = (state & COUNT, state >> 20 & COUNT, state >> 63);
        let Some(left) = pending.checked_sub(count) else {
            let fact =
                format!("{count} arrivals at the mbarrier at {address:#x}, which waits for {pending} of {expected}");
            return Err(Misuse::Invalid(fact));
        };
        let known = clocks.release(by.warp);
        let record = self.phases.entry(address).or_default();
        record.arrived.resize(known.len(), 0);
        raise(&mut record.arrived, &known);
        if left > 0 {
            shared.set_barrier(address, left | expected << 20 | phase << 63)?;
        } else {
            record.completed = std::mem::take(&mut record.arrived);
            shared.set_barrier(address, expected | expected << 20 | (phase ^ 1) << 63)?;
        }
        Ok(state)
    }

    /// One more arrival is pending: `cp.async.mbarrier.arrive` without `.noinc`.
    pub fn expect_one(&self, shared: &mut Shared, clocks: &Warps, address: u64, by: Thread) -> Result<(), Misuse> {
        let state = self.state(shared, clocks, address, by)?;
        shared.set_barrier(address, state + 1)
    }

    /// Whether the phase of this parity is complete. A warp that sees it learns what those that arrived know.
    pub fn is_complete(
        &self,
        shared: &mut Shared,
        clocks: &mut Warps,
        address: u64,
        parity: u64,
        by: Thread,
    ) -> Result<bool, Misuse> {
        let complete = self.state(shared, clocks, address, by)? >> 63 != parity;
        if complete && let Some(phase) = self.phases.get(&address) {
            clocks.learn(by.warp, &phase.completed);
        }
        Ok(complete)
    }
}
