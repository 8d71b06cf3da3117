//! Memory: that of the device, of a block, and of a thread, with a record of what was written and who may race.

mod allocation;
mod clocks;
mod device;
mod race;
mod shared;

pub use allocation::Allocation;
pub use clocks::{Clock, Thread, Warps, raise};
pub use device::{Device, Snapshot};
pub use race::{Accessor, MOST_BLOCKS};
pub use shared::Shared;

/// Where generic addresses of shared memory begin. Addresses of the device are those of the host, which are lower.
pub const SHARED_WINDOW: u64 = 0x4000_0000_0000_0000;
/// Where generic addresses of a thread's own memory begin.
pub const LOCAL_WINDOW: u64 = 0x5000_0000_0000_0000;
/// Where generic addresses of the arguments begin.
pub const PARAMETER_WINDOW: u64 = 0x6000_0000_0000_0000;
/// The bits of an address inside a window.
pub const INSIDE: u64 = 0x0fff_ffff_ffff_ffff;

/// The bytes of one access of a lane, at most 16, in the order of memory.
pub type Bytes = [u8; 16];
