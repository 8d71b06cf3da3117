//! Asynchronous copies from global to shared memory: `cp.async`. PTX ISA, "Data Movement and Conversion Instructions: Asynchronous copy".
//!
//! A copy lands as late as it may: when its thread waits for it, or, if it only counts at an mbarrier, when every warp waits.

use std::collections::VecDeque;

use crate::memory::Bytes;
use crate::registers::{Lanes, WARP, each};

/// Copies that have not landed, in the order in which they began, and arrivals that wait for them.
#[derive(Debug)]
pub struct Flights {
    pub flights: VecDeque<Flight>,
    /// The group to which the next copy of each thread belongs.
    pub open: Vec<[u32; WARP]>,
}

/// A copy, or an arrival.
#[derive(Debug, Clone, Copy)]
pub struct Flight {
    pub warp: usize,
    pub lane: usize,
    pub group: u32,
    pub what: What,
}

/// What flies.
#[derive(Debug, Clone, Copy)]
pub enum What {
    /// `read` bytes of global memory and zeros, `bytes` together, to shared memory. `value` is what they were when it began.
    Copy { from: u64, to: u64, bytes: u64, read: u64, value: Bytes },
    /// An arrival at an mbarrier, once the copies before it have landed.
    Arrival { address: u64 },
}

impl Flights {
    /// No copies, for this number of warps.
    pub fn new(warps: usize) -> Self {
        Self { flights: VecDeque::new(), open: vec![[0; WARP]; warps] }
    }

    /// Forgets all copies.
    pub fn clear(&mut self) {
        self.flights.clear();
        self.open.iter_mut().for_each(|open| open.fill(0));
    }

    /// `cp.async.commit_group`: copies from now on belong to the next group.
    pub fn commit(&mut self, warp: usize, lanes: Lanes) {
        each(lanes).for_each(|lane| self.open[warp][lane] += 1);
    }
}
