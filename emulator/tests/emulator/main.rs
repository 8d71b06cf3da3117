//! Instructions against scalar Rust, fragments against the tables of the PTX ISA, and what the checks find.
#![allow(clippy::unwrap_used)]

mod asynchronous;
mod conversions;
mod floats;
mod integers;
mod lab;
mod loading;
mod misuse;
mod tensor_cores;
mod warps;
