//! A block: what its warps share.

use crate::asynchronous::Flights;
use crate::barrier::Barriers;
use crate::count::Count;
use crate::error::Misuse;
use crate::memory::{
    Accessor, Allocation, Bytes, INSIDE, LOCAL_WINDOW, PARAMETER_WINDOW, SHARED_WINDOW, Shared, Snapshot, Warps,
};
use crate::ptx::Space;
use crate::shape::Launch;
use crate::traffic::Traffic;
use crate::warp::Warp;

/// What a block shares, and what it counts.
#[derive(Debug)]
pub struct Block<'l> {
    pub shared: Shared,
    pub clocks: Warps,
    pub barriers: Barriers,
    pub flights: Flights,
    /// What was counted, for each instruction.
    pub counts: Vec<Count>,
    /// The sectors that were touched, if the launch asks for them.
    pub traffic: Option<Traffic>,
    parameters: &'l [u8],
    global: &'l Snapshot,
    lenient: bool,
    /// Its number in the grid.
    number: u32,
    /// The allocation that was found last.
    last: usize,
}

/// A misuse by one lane, or by a warp.
#[derive(Debug)]
pub struct Trap {
    pub misuse: Misuse,
    pub lane: Option<usize>,
}

/// What an instruction returns.
pub type Outcome = Result<(), Box<Trap>>;

/// Names the lane of a misuse.
pub fn of_lane<T>(lane: usize, result: Result<T, Misuse>) -> Result<T, Box<Trap>> {
    result.map_err(|misuse| Box::new(Trap { misuse, lane: Some(lane) }))
}

/// A misuse by the whole warp.
pub fn of_warp<T>(result: Result<T, Misuse>) -> Result<T, Box<Trap>> {
    result.map_err(|misuse| Box::new(Trap { misuse, lane: None }))
}

/// An access: `count` elements of `each` bytes at an aligned address, at most 16 bytes.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    pub address: u64,
    pub each: u64,
    pub count: usize,
}

impl Access {
    fn bytes(self) -> u64 {
        self.each * self.count as u64
    }

    /// The space that it touches, and itself with an address in that space.
    pub fn resolve(self, space: Space) -> (Space, Self) {
        if space != Space::Generic {
            return (space, self);
        }
        let inside = Self { address: self.address & INSIDE, ..self };
        match self.address & !INSIDE {
            SHARED_WINDOW => (Space::Shared, inside),
            LOCAL_WINDOW => (Space::Local, inside),
            PARAMETER_WINDOW => (Space::Parameter, inside),
            _ => (Space::Global, self),
        }
    }
}

impl<'l> Block<'l> {
    /// Memory for the blocks of a launch that run one after the other.
    pub fn new(
        shared: Shared,
        launch: &Launch,
        instructions: usize,
        parameters: &'l [u8],
        global: &'l Snapshot,
    ) -> Self {
        let warps = launch.warps();
        Self {
            shared,
            lenient: launch.lenient,
            clocks: Warps::new(warps),
            barriers: Barriers::default(),
            flights: Flights::new(warps),
            counts: vec![Count::default(); instructions],
            traffic: launch.sample.map(|_| Traffic::default()),
            parameters,
            global,
            number: 0,
            last: 0,
        }
    }

    /// Begins with a block.
    pub fn begin(&mut self, number: u32) {
        self.number = number;
        self.clocks.join_all();
        self.shared.next_block();
        self.barriers.clear();
        self.flights.clear();
    }

    /// Reads for a lane.
    pub fn load(&mut self, warp: &Warp, space: Space, access: Access, lane: usize) -> Result<Bytes, Misuse> {
        let (space, access) = access.resolve(space);
        let (address, bytes) = (access.address, access.bytes());
        match space {
            Space::Shared => self.shared.load(address, bytes, warp.thread(lane), &self.clocks),
            Space::Local => warp.load_local(address, bytes, lane),
            Space::Parameter => self.parameter(address, bytes),
            _ => self.load_global(access, false),
        }
    }

    /// Reads for a lane from global memory; with `read_only` by `ld.global.nc`.
    pub fn load_global(&mut self, access: Access, read_only: bool) -> Result<Bytes, Misuse> {
        let Access { address, each, count } = access;
        let (allocation, accessor) = self.aligned(address, access.bytes())?;
        if !self.lenient {
            allocation.check_written(address, access.bytes())?;
        }
        allocation.load(address, each, count, accessor.map(|accessor| Accessor { read_only, ..accessor }))
    }

    /// Writes for a lane.
    pub fn store(
        &mut self,
        warp: &mut Warp,
        space: Space,
        access: Access,
        value: &Bytes,
        lane: usize,
    ) -> Result<(), Misuse> {
        let (space, access) = access.resolve(space);
        let Access { address, each, count } = access;
        let bytes = access.bytes();
        match space {
            Space::Shared => self.shared.store(address, bytes, value, warp.thread(lane), &self.clocks),
            Space::Local => warp.store_local(address, bytes, value, lane),
            Space::Parameter => Err(Misuse::Invalid("writes to an argument of the kernel".into())),
            _ => {
                let allocation = self.aligned(address, bytes)?;
                allocation.0.store(address, each, count, value, allocation.1)
            }
        }
    }

    /// Replaces an element of shared or global memory by a function of it; returns the element before.
    pub fn update(
        &mut self,
        warp: &Warp,
        space: Space,
        access: Access,
        lane: usize,
        change: impl Fn(u64) -> u64,
    ) -> Result<u64, Misuse> {
        let (space, access) = access.resolve(space);
        let Access { address, each, .. } = access;
        match space {
            Space::Shared => self.shared.update(address, each, warp.thread(lane), &self.clocks, change),
            Space::Local | Space::Parameter => Err(Misuse::Invalid("an atomic update of memory of one thread".into())),
            _ => {
                let allocation = self.aligned(address, each)?;
                allocation.0.update(address, each, allocation.1, change)
            }
        }
    }

    fn parameter(&self, address: u64, bytes: u64) -> Result<Bytes, Misuse> {
        let end = address.checked_add(bytes).map(|end| end as usize);
        let Some(found) = end.and_then(|end| self.parameters.get(address as usize..end)) else {
            let limit = format!("the {} bytes of arguments", self.parameters.len());
            return Err(Misuse::OutOfBounds { space: "parameter", address, bytes, limit });
        };
        let mut value = [0; 16];
        value[..found.len()].copy_from_slice(found);
        Ok(value)
    }

    /// The allocation of an aligned access, and who accesses it; nobody if the kernel is lenient.
    fn aligned(&mut self, address: u64, bytes: u64) -> Result<(&'l Allocation, Option<Accessor>), Misuse> {
        if !address.is_multiple_of(bytes) {
            return Err(Misuse::Misaligned { address, bytes });
        }
        let accessor = Accessor { epoch: self.global.epoch, block: self.number, read_only: false };
        Ok((self.global.find(address, bytes, &mut self.last)?, (!self.lenient).then_some(accessor)))
    }
}
