//! How a block begins asynchronous copies, and how they land. PTX ISA, "Data Movement and Conversion Instructions: Asynchronous copy".

use crate::asynchronous::{Flight, What};
use crate::block::{Access, Block};
use crate::error::Misuse;
use crate::memory::Bytes;
use crate::ptx::Space;
use crate::registers::Lanes;
use crate::warp::Warp;

impl Block<'_> {
    /// `cp.async`: begins a copy of `bytes` bytes, of which `read` come from memory and the others are 0.
    pub fn begin_copy(
        &mut self,
        warp: &Warp,
        lane: usize,
        [from, to]: [u64; 2],
        bytes: u64,
        read: u64,
    ) -> Result<(), Misuse> {
        if read > bytes {
            return Err(Misuse::Invalid(format!("a copy of {bytes} bytes that reads {read}")));
        }
        if !from.is_multiple_of(bytes) {
            return Err(Misuse::Misaligned { address: from, bytes });
        }
        let value = self.source(warp, from, read, lane)?;
        self.shared.begin_copy(to, bytes, warp.thread(lane), &self.clocks)?;
        let group = self.flights.open[warp.index][lane];
        let what = What::Copy { from, to, bytes, read, value };
        self.flights.flights.push_back(Flight { warp: warp.index, lane, group, what });
        Ok(())
    }

    /// `cp.async.mbarrier.arrive`: arrives once all copies of the thread so far have landed. With `expect`, that arrival is added to
    /// those that are pending.
    pub fn arrive_after_copies(&mut self, warp: &Warp, lane: usize, address: u64, expect: bool) -> Result<(), Misuse> {
        let Self { barriers, shared, clocks, .. } = self;
        if expect {
            barriers.expect_one(shared, clocks, address, warp.thread(lane))?;
        } else {
            barriers.state(shared, clocks, address, warp.thread(lane))?;
        }
        let group = self.flights.open[warp.index][lane];
        let what = What::Arrival { address };
        self.flights.flights.push_back(Flight { warp: warp.index, lane, group, what });
        Ok(())
    }

    /// `cp.async.wait_group`: lands the copies of these lanes except for their last `groups` groups. `cp.async.wait_all`, with `None`: all
    /// of them, also those of no group.
    pub fn wait_for_copies(&mut self, warp: &Warp, lanes: Lanes, groups: Option<u32>) -> Result<(), Misuse> {
        let open = self.flights.open[warp.index];
        let lands = |flight: &Flight| {
            flight.warp == warp.index
                && lanes >> flight.lane & 1 == 1
                && groups.is_none_or(|groups| flight.group.saturating_add(groups) < open[flight.lane])
        };
        let (landing, staying): (Vec<Flight>, Vec<Flight>) = self.flights.flights.drain(..).partition(lands);
        self.flights.flights.extend(staying);
        landing.into_iter().try_for_each(|flight| self.land(warp, flight))
    }

    /// Lands the oldest copies up to the first arrival, because every warp waits. Whether there was anything to land.
    pub fn land_oldest(&mut self, warps: &[Warp]) -> Result<bool, Misuse> {
        let mut landed = false;
        while let Some(flight) = self.flights.flights.pop_front() {
            landed = true;
            self.land(&warps[flight.warp], flight)?;
            if matches!(flight.what, What::Arrival { .. }) {
                break;
            }
        }
        Ok(landed)
    }

    fn land(&mut self, warp: &Warp, flight: Flight) -> Result<(), Misuse> {
        match flight.what {
            What::Copy { from, to, bytes, read, value } => {
                // It may read its source at any time until now.
                if self.source(warp, from, read, flight.lane)? != value {
                    let other = "a write to the source of a copy that has not landed".into();
                    return Err(Misuse::Race { space: "global", address: from, other });
                }
                self.shared.end_copy(to, bytes, &value, warp.thread(flight.lane), &self.clocks);
                Ok(())
            }
            What::Arrival { address } => {
                let Self { barriers, shared, clocks, .. } = self;
                barriers.arrive(shared, clocks, address, 1, warp.thread(flight.lane)).map(|_| ())
            }
        }
    }

    /// The bytes that a copy reads, and zeros after them.
    fn source(&mut self, warp: &Warp, from: u64, read: u64, lane: usize) -> Result<Bytes, Misuse> {
        let mut value = [0; 16];
        // Powers of two, because accesses are aligned.
        let (mut done, mut piece) = (0, 16);
        while done < read {
            while piece > read - done {
                piece /= 2;
            }
            let access = Access { address: from + done, each: piece.min(8), count: piece.div_ceil(8) as usize };
            let found = self.load(warp, Space::Global, access, lane)?;
            value[done as usize..(done + piece) as usize].copy_from_slice(&found[..piece as usize]);
            done += piece;
        }
        Ok(value)
    }
}
