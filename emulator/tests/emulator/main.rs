//! Instructions against scalar Rust, fragments against the tables of the PTX ISA, and what the checks find.
#![allow(clippy::unwrap_used)]

mod asynchronous;
mod control;
mod conversions;
mod floats;
mod integers;
mod lab;
mod loading;
mod matrices;
mod misuse;
mod races;
mod tensor_cores;
mod warps;
mod whole_matrices;
