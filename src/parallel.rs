//! Tensor parallelism: which heads a rank holds, and how ranks add up what they computed.
//!
//! Attention is split by heads. Each rank projects, rotates, caches and attends for its own heads and multiplies with its
//! rows of the output projection; the partial results are summed over all ranks, <https://arxiv.org/abs/1909.08053>.
//! DeepSpeed's `mp_size` and `mp_group`. [`TpPlan`] assigns the heads, and a [`Communicator`] computes the sums.
//!
//! | engine | ranks are | Cargo feature |
//! | --- | --- | --- |
//! | `local::LocalCommunicator` | threads of one process | `local` (default) |
//! | `mpi::MpiCommunicator` | processes on any number of hosts | `mpi` |
//! | `burn_deepspeed::nccl::NcclCommunicator` | threads of one process with a GPU each | `nccl` |
//!
//! ```
//! # #[cfg(feature = "local")] fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use burn::tensor::Tensor;
//! use burn_deepspeed::parallel::{Communicator, local::LocalCommunicator};
//! use burn_deepspeed::{AttentionInit, AttentionMask, DeepSpeedInferenceConfig};
//! use burn_ndarray::NdArray;
//!
//! let config = DeepSpeedInferenceConfig::new(64, 4);
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

#[cfg(feature = "local")]
pub use burn_deepspeed_core::parallel::local;
#[cfg(feature = "mpi")]
pub use burn_deepspeed_core::parallel::mpi;
pub use burn_deepspeed_core::parallel::{
    AgreedSettings, Agreement, Communicator, DEFAULT_TIME_LIMIT, DeviceNumber, HeadShard, RankGroup, TpPlan,
};
