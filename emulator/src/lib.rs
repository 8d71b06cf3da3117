//! A CUDA driver whose device is the CPU, for tests of CUDA kernels on machines without a GPU.
//!
//! The library is called `libcuda.so` and has the entry points of the driver API that CubeCL uses. A program that finds it first in
//! `LD_LIBRARY_PATH` loads the PTX that NVIDIA's compiler generates, and this crate executes it: warps with divergence and
//! reconvergence, barriers, shared memory, asynchronous copies, tensor cores. An instruction that it does not know is an error when
//! the module is loaded.
//!
//! Every access is checked: bounds and alignment, memory and registers that nothing has written, races between warps on shared
//! memory and between blocks on global memory, and lanes or warps that wait for each other without end. A [`Fault`](error::Fault)
//! names the kernel, the instruction, the block, the warp and the lane.
//!
//! It does not tell how fast a kernel is. It counts what a kernel does ([`count`]).
//!
//! | module | contents |
//! | --- | --- |
//! | `ptx` | PTX text to statements |
//! | `mutant` | kernels with one mistake, for tests of tests |
//! | `compile` | statements to closures over the lanes of a warp |
//! | [`launch`](launch()) | a grid over the threads of the host, and each block over its warps |
//! | `memory` | device, shared and local memory, and what is known of each byte |
//! | [`driver`] | the entry points, and the variables that set them up |
//!
//! Comments quote headings of the [PTX ISA](https://docs.nvidia.com/cuda/parallel-thread-execution/).

#![allow(clippy::needless_range_loop, reason = "a lane indexes several arrays")]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod asynchronous;
mod barrier;
mod block;
mod compile;
mod copies;
pub mod count;
pub mod driver;
pub mod error;
mod launch;
mod limits;
mod memory;
mod module;
mod mutant;
mod numbers;
mod ptx;
mod registers;
mod run;
mod sample;
mod shape;
mod traffic;
mod warp;

pub use compile::Kernel;
pub use launch::{Counts, launch};
pub use limits::Limits;
pub use memory::{Device, Snapshot};
pub use module::Module;
pub use shape::Launch;
pub use traffic::Distinct;
