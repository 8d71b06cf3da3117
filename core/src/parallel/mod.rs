//! Tensor parallelism: which heads a rank holds, and how ranks add up what they computed.
//!
//! Attention is split by heads. Each rank projects, rotates, caches and attends for its own heads and multiplies with its
//! rows of the output projection; the partial results are summed over all ranks, <https://arxiv.org/abs/1909.08053>.
//! DeepSpeed's `mp_size` and `mp_group`. [`TpPlan`] assigns the heads, and a [`Communicator`] computes the sums.
//!
//! | engine | ranks are | Cargo feature |
//! | --- | --- | --- |
//! | `local::LocalCommunicator` | threads of one process | `local` |
//! | `mpi::MpiCommunicator` | processes on any number of hosts | `mpi` |

mod agreement;
mod communicator;
#[cfg(feature = "local")]
pub mod local;
#[cfg(feature = "mpi")]
pub mod mpi;
mod plan;
mod rank;

pub use agreement::{AgreedSettings, Agreement};
pub use communicator::{Communicator, DEFAULT_TIME_LIMIT, DeviceNumber};
pub use plan::{HeadShard, TpPlan};
pub use rank::RankGroup;
