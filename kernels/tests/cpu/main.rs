//! Every CPU kernel against plain loops, on sizes that no tile divides.
#![allow(clippy::unwrap_used)]

mod activation;
mod allocations;
mod bf16;
mod blocks;
mod contract;
mod decode;
mod flash;
mod flash_bf16;
mod gate;
mod norm;
mod parts;
mod problem;
mod product;
#[path = "../refused/mod.rs"]
mod refused;
mod scatter;

use burn_deepspeed_oracle as oracle;
