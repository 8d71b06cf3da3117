//! Runs conformance cases: a line for each, and a non-zero exit if one fails.
//!
//! A case is a folder with `case.json` and `tensors.safetensors`, written from a program that is not this one; see
//! `tests/golden/FORMAT.md`. Write such folders from your own model and run them on the backend that you will use:
//!
//! ```text
//! cargo run --release --example conformance -- tests/golden/cases
//! cargo run --release --features flex --example conformance -- --backend flex --dtype fp16 my_case another_case
//! cargo run --release --features vulkan --example conformance -- --backend wgpu --dtype fp16 tests/golden/cases
//! cargo run --release --example conformance -- --ranks 2 tests/golden/cases
//! mpirun -n 2 target/release/examples/conformance --engine mpi tests/golden/cases   # built with --features mpi
//! ```

#[path = "../backend/mod.rs"]
mod backend;
mod case;
#[path = "../ranks/mod.rs"]
mod ranks;
mod run;

use std::process::ExitCode;

use clap::Parser;

/// Runs conformance cases, a line for each: name, module, largest error, tolerance, ok or FAIL.
#[derive(Parser)]
struct Program {
    #[command(flatten)]
    arguments: run::Arguments,
}

fn main() -> ExitCode {
    run::conformance(&Program::parse().arguments)
}
