//! Runs conformance cases: prints one line for each, and exits with an error if one fails.
//!
//! A case is a folder with `case.json` and `tensors.safetensors`, written by another program; see
//! `tests/golden/FORMAT.md`. Write such folders from your own model and run them on the backend that you use:
//!
//! ```text
//! cargo run --release --example conformance -- tests/golden/cases
//! cargo run --release --features flex --example conformance -- --backend flex --dtype fp16 my_case another_case
//! cargo run --release --features vulkan --example conformance -- --backend wgpu --dtype fp16 tests/golden/cases
//! cargo run --release --example conformance -- --ranks 2 tests/golden/cases
//! mpirun -n 2 target/release/examples/conformance --engine mpi tests/golden/cases   # built with --features mpi
//! ```

use std::process::ExitCode;

use burn_deepspeed_examples::conformance::{Arguments, conformance};
use clap::Parser;

/// Runs conformance cases, one line each: name, module, largest error, tolerance, ok or FAIL.
#[derive(Parser)]
struct Program {
    #[command(flatten)]
    arguments: Arguments,
}

fn main() -> ExitCode {
    conformance(&Program::parse().arguments)
}
