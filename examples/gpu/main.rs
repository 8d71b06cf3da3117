//! What a machine with a CUDA device runs of this crate, in one program, since each alone would carry all of Burn:
//!
//! ```text
//! gpu conformance --backend cuda --path fast cases     # as the example `conformance`
//! gpu layer                                            # times a layer's decoding step, and Burn's attention
//! ```

#[path = "../backend/mod.rs"]
mod backend;
#[path = "../conformance/case.rs"]
mod case;
#[path = "../conformance/run.rs"]
mod conformance;
mod layer;
#[path = "../ranks/mod.rs"]
mod ranks;

use std::process::ExitCode;

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
