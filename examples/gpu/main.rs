//! Everything that checks and times the modules on a CUDA device, in one program, since each program contains all of Burn:
//!
//! ```text
//! gpu conformance --backend cuda --path fast cases     # as the example `conformance`
//! gpu layer                                            # times a layer's decoding step, and Burn's attention
//! ```

mod layer;

use std::process::ExitCode;

use burn_deepspeed_examples::conformance;
use clap::Parser;

/// Checks and times the modules on a device.
#[derive(Parser)]
enum Program {
    Conformance(conformance::Arguments),
    Layer(layer::Arguments),
}

fn main() -> ExitCode {
    match Program::parse() {
        Program::Conformance(arguments) => conformance::conformance(&arguments),
        Program::Layer(arguments) => layer::layer(&arguments),
    }
}
