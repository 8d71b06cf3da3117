//! Runs conformance cases: a line for each, and a non-zero exit if one fails.
//!
//! A case is a folder with `case.json` and `tensors.safetensors`, written from a program that is not this one; see
//! `tests/golden/FORMAT.md`. Write such folders from your own model and run them on the backend that you will use:
//!
//! ```text
//! cargo run --release --example conformance -- tests/golden/cases
//! cargo run --release --features flex --example conformance -- --backend flex --dtype fp16 my_case another_case
//! cargo run --release --features vulkan --example conformance -- --backend wgpu --dtype fp16 tests/golden/cases
//! ```

#[path = "../backend/mod.rs"]
mod backend;
mod case;

use std::path::PathBuf;
use std::process::ExitCode;

use backend::{BackendName, Precision, on_backend};
use burn_deepspeed::{DataType, InferenceBackend};
use clap::{Parser, ValueEnum};

/// Runs conformance cases, a line for each: name, module, largest error, tolerance, ok or FAIL.
#[derive(Parser)]
struct Arguments {
    /// Backend to run on.
    #[arg(long, value_enum, default_value_t = BackendName::default())]
    backend: BackendName,
    /// Element type of weights and activations.
    #[arg(long, value_enum, default_value_t = Precision::Fp32)]
    dtype: Precision,
    /// `auto`: kernels where the backend has them; `reference`: tensor operations only; `fast`: the same as `auto`, and an error if it has none.
    #[arg(long, value_enum, default_value_t = ExecutionPath::Auto)]
    path: ExecutionPath,
    /// Folders of cases, or folders of such folders.
    #[arg(required = true)]
    cases: Vec<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum, PartialEq)]
enum ExecutionPath {
    Auto,
    Reference,
    Fast,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match on_backend!(arguments.backend, run, &arguments) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
    }
}

fn run<B: InferenceBackend>(arguments: &Arguments) -> Result<usize, String> {
    match arguments.path {
        ExecutionPath::Fast if B::fast_operations().is_empty() => Err(format!(
            "{} has no kernels of its own in this build; use `--path reference`",
            B::name(&Default::default())
        )),
        ExecutionPath::Auto | ExecutionPath::Fast => run_all::<B>(arguments),
        #[cfg(feature = "autodiff")]
        ExecutionPath::Reference => run_all::<burn_autodiff::Autodiff<B>>(arguments),
        #[cfg(not(feature = "autodiff"))]
        ExecutionPath::Reference if B::fast_operations().is_empty() => run_all::<B>(arguments),
        #[cfg(not(feature = "autodiff"))]
        ExecutionPath::Reference => Err("`--path reference` needs `--features autodiff` beside kernels".into()),
    }
}

/// Prints a line for each case and returns how many failed.
fn run_all<B: InferenceBackend>(arguments: &Arguments) -> Result<usize, String> {
    let dtype = DataType::from(arguments.dtype);
    let device = Default::default();
    dtype.of_backend::<B>(&device).map_err(|error| error.to_string())?;
    let folders = case::find(&arguments.cases).map_err(|error| error.to_string())?;
    let mut failed = 0;
    for folder in &folders {
        let name = folder.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let result = case::run::<B>(folder, dtype, &device);
        // A device reports a kernel that it dropped here, and nowhere else.
        B::sync(&device).map_err(|error| format!("{name}: the device failed: {error:?}"))?;
        match result {
            Ok(result) => {
                let verdict = if result.passed() { "ok" } else { "FAIL" };
                println!(
                    "{:<28} {:<28} {:9.2e} {:9.2e} {verdict}",
                    result.name, result.module, result.error, result.tolerance
                );
                failed += usize::from(!result.passed());
            }
            Err(error) => {
                println!("{name:<28} {:<28} {:>9} {:>9} FAIL", "-", "-", "-");
                eprintln!("  {name}: {error}");
                failed += 1;
            }
        }
    }
    println!("{} passed, {failed} failed", folders.len() - failed);
    Ok(failed)
}
