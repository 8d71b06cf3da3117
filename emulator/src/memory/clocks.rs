//! What the warps of a block know of each other. PTX ISA, "Memory Consistency Model: Causality Order".
//!
//! Each warp has a vector clock: what it knows of the progress of every warp. A barrier joins the clocks of all warps; an mbarrier
//! passes on the clocks of those that arrived. An access that the clock of a warp does not know of is not ordered before it.
//!
//! The lanes of a warp are not in step either (CUDA C++ Programming Guide, "Independent Thread Scheduling"): exchanges between them
//! order no memory, and only a barrier does. A warp counts the barriers that it passed; accesses of two lanes with none between them
//! race.

/// What a warp knows of the progress of every warp.
pub type Clock = Vec<u32>;

/// The clocks of the warps of a block.
#[derive(Debug, Clone, Default)]
pub struct Warps {
    clocks: Vec<Clock>,
    /// Barriers that each warp passed.
    passed: Vec<u32>,
}

/// Who accesses shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thread {
    pub warp: usize,
    pub lane: usize,
}

impl Warps {
    /// Clocks of `warps` warps that know nothing of each other.
    pub fn new(warps: usize) -> Self {
        let clock = |warp| (0..warps).map(|other| u32::from(other == warp)).collect();
        Self { clocks: (0..warps).map(clock).collect(), passed: vec![1; warps] }
    }

    /// A barrier: what any warp did is before what any does next.
    pub fn join_all(&mut self) {
        let mut known = self.clocks[0].clone();
        self.clocks.iter().for_each(|clock| raise(&mut known, clock));
        for (warp, clock) in self.clocks.iter_mut().enumerate() {
            clock.clone_from(&known);
            clock[warp] += 1;
        }
        self.passed.iter_mut().for_each(|passed| *passed += 1);
    }

    /// A barrier of a warp: what any of its lanes did is before what any does next.
    pub fn join_lanes(&mut self, warp: usize) {
        self.passed[warp] += 1;
    }

    /// Barriers that a warp passed.
    pub fn passed(&self, warp: usize) -> u32 {
        self.passed[warp]
    }

    /// What a warp knows, for another to [`learn`](Self::learn). What it does next is not included.
    pub fn release(&mut self, warp: usize) -> Clock {
        let known = self.clocks[warp].clone();
        self.clocks[warp][warp] += 1;
        known
    }

    /// Puts the work of another before what this warp does next.
    pub fn learn(&mut self, warp: usize, known: &[u32]) {
        raise(&mut self.clocks[warp], known);
        self.join_lanes(warp);
    }

    /// What warp `warp` knows of warp `of`.
    pub fn knows(&self, warp: usize, of: usize) -> u32 {
        self.clocks[warp][of]
    }
}

/// Joins two clocks.
pub fn raise(clock: &mut [u32], other: &[u32]) {
    clock.iter_mut().zip(other).for_each(|(time, other)| *time = (*time).max(*other));
}
