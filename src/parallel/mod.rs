//! Tensor parallelism: which heads a rank holds, and how ranks add up what they computed.
//!
//! Attention is cut by heads. Each rank projects, rotates, caches and attends for its own, multiplies with its rows of the
//! output projection, and the partial results are added over all ranks, <https://arxiv.org/abs/1909.08053>; DeepSpeed's
//! `mp_size` and `mp_group`. [`TpPlan`] says who holds what, and a [`Communicator`] adds.
//!
//! | engine | ranks are | Cargo feature |
//! | --- | --- | --- |
//! | `local::LocalCommunicator` | threads of one process | `local` (default) |
//! | `mpi::MpiCommunicator` | processes on any number of hosts | `mpi` |
//! | `nccl::NcclCommunicator` | threads of one process with a GPU each | `nccl` |
//!
//! ```
//! # #[cfg(feature = "local")] fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use burn::tensor::Tensor;
//! use burn_deepspeed::parallel::{Communicator, local::LocalCommunicator};
//! use burn_deepspeed::{AttentionMask, DataType, DeepSpeedInferenceConfig};
//! use burn_ndarray::NdArray;
//!
//! let config = DeepSpeedInferenceConfig::new(64, 4).with_dtype(DataType::Fp32);
//! std::thread::scope(|threads| {
//!     for communicator in LocalCommunicator::group(2) {
//!         let config = config.clone().for_rank_of(&communicator);
//!         threads.spawn(move || {
//!             let attention = config.init_self_attention::<NdArray>(0, &Default::default())?;
//!             // a checkpoint is loaded here; each rank reads its part
//!             let attention = attention.with_communicator(Arc::new(communicator))?;
//!             let input = Tensor::ones([1, 5, 64], &Default::default()); // the same on every rank
//!             let output = attention.forward_uncached(input, AttentionMask::none(), None)?; // the sum
//!             assert_eq!(output.dims(), [1, 5, 64]);
//!             Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
//!         });
//!     }
//! });
//! # Ok(()) }
//! # #[cfg(not(feature = "local"))] fn main() {}
//! ```

mod agreement;
mod communicator;
#[cfg(feature = "local")]
pub mod local;
#[cfg(feature = "mpi")]
pub mod mpi;
#[cfg(feature = "nccl")]
pub mod nccl;
mod plan;

pub use agreement::{Agreement, Settings};
pub use communicator::{Communicator, DEFAULT_TIME_LIMIT};
pub use plan::{HeadShard, TpPlan};

use std::ops::Range;

use crate::error::ConfigError;

/// A rank and the size of its tensor-parallel group; DeepSpeed's `mp_group`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankGroup {
    rank: usize,
    ranks: usize,
}

impl RankGroup {
    /// Rank `rank` of `ranks`.
    ///
    /// # Errors
    /// [`ConfigError::RankOutOfRange`], or [`ConfigError::OutOfRange`] for a group of none.
    pub fn new(rank: usize, ranks: usize) -> Result<Self, ConfigError> {
        if ranks == 0 {
            return Err(ConfigError::OutOfRange { key: "mp_size", value: "0".into(), limit: "at least 1" });
        }
        if rank >= ranks {
            return Err(ConfigError::RankOutOfRange { rank, ranks });
        }
        Ok(Self { rank, ranks })
    }

    /// This rank, counted from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Ranks of the group.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// This rank's part of so many things that are cut one behind the other, such as the features of an MLP; the parts of the
    /// first ranks may be larger by one.
    ///
    /// ```
    /// # use burn_deepspeed::RankGroup;
    /// assert_eq!(RankGroup::new(1, 3)?.part(10), 4..7);
    /// # Ok::<_, burn_deepspeed::ConfigError>(())
    /// ```
    pub fn part(&self, count: usize) -> Range<usize> {
        plan::part(count, self.ranks, self.rank)
    }
}
