//! Conformance cases: folders with inputs and outputs of another program; see `tests/golden/FORMAT.md`.

pub mod case;
mod types;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use burn_deepspeed::parallel::Communicator;
use burn_deepspeed::{ConfigError, DataType, InferenceBackend, KvCacheType, OfBackend, Operations};
use clap::{Args, ValueEnum};

use self::case::CaseResult;
pub use self::types::Types;
use crate::backend::{BackendName, Precision};
use crate::ranks::Ranks;
use crate::{Failure, on_backend};

/// Runs conformance cases, one line each: name, module, largest error, tolerance, ok or FAIL.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Backend to run on.
    #[arg(long, value_enum, default_value_t = BackendName::default())]
    backend: BackendName,
    /// Element type of weights and activations.
    #[arg(long, value_enum, default_value_t = Precision::Fp32)]
    dtype: Precision,
    /// Element type of cached keys and values. Default: that of the activations.
    #[arg(long, value_enum)]
    kv_cache: Option<Precision>,
    /// `auto`: kernels where the backend has them; `reference`: tensor operations only; `fast`: the same as `auto`, and an error if it has none.
    #[arg(long, value_enum, default_value_t = ExecutionPath::Auto)]
    path: ExecutionPath,
    #[command(flatten)]
    ranks: Ranks,
    /// Folders of cases, or folders of such folders.
    #[arg(required = true)]
    cases: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum, PartialEq)]
enum ExecutionPath {
    Auto,
    Reference,
    Fast,
}

/// Runs the cases; the exit status is 1 if one fails, and 2 if they could not be run.
// Compiled with the programs that call it, so that a build of another program does not wait for it.
#[inline]
pub fn conformance(arguments: &Arguments) -> ExitCode {
    let failed: Result<usize, String> = on_backend!(arguments.backend, run, arguments);
    match failed {
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
        ExecutionPath::Fast if B::Ops::fast_operations().is_empty() => {
            Err(format!("{} has no kernels in this build; use `--path reference`", B::name(&Default::default())))
        }
        ExecutionPath::Auto | ExecutionPath::Fast => run_all::<B>(arguments),
        #[cfg(feature = "autodiff")]
        ExecutionPath::Reference => run_all::<crate::backend::Autodiff<B>>(arguments),
        #[cfg(not(feature = "autodiff"))]
        ExecutionPath::Reference if B::Ops::fast_operations().is_empty() => run_all::<B>(arguments),
        #[cfg(not(feature = "autodiff"))]
        ExecutionPath::Reference => {
            Err("`--path reference` needs `--features autodiff` on a backend that has kernels".into())
        }
    }
}

/// Prints one line per case and returns the number of those that failed.
fn run_all<B: InferenceBackend>(arguments: &Arguments) -> Result<usize, String> {
    let folders = case::find(&arguments.cases).map_err(|error| error.to_string())?;
    // All ranks run each case together; it passes if it passes on every rank.
    let work = |communicator: Arc<dyn Communicator>| {
        let speaks = communicator.rank() == 0;
        let ranks = (communicator.size() > 1).then_some(communicator);
        let cases = folders.iter().map(|folder| run_one::<B>(arguments, folder, ranks.clone(), speaks));
        Ok((speaks, cases.collect::<Result<Vec<_>, _>>()?))
    };
    let ranks: Vec<(bool, Vec<bool>)> = arguments.ranks.run(work).map_err(|error| error.to_string())?;
    let failed = (0..folders.len()).filter(|&at| ranks.iter().any(|(_, passed)| !passed[at])).count();
    if ranks.iter().any(|(speaks, _)| *speaks) {
        println!("{} passed, {failed} failed", folders.len() - failed);
    }
    Ok(failed)
}

/// Whether a case passes on this rank; rank 0, and a rank on which it fails, print a line.
fn run_one<B: InferenceBackend>(
    arguments: &Arguments,
    folder: &Path,
    ranks: Option<Arc<dyn Communicator>>,
    speaks: bool,
) -> Result<bool, Failure> {
    let dtype = DataType::from(arguments.dtype);
    let cache = arguments.kv_cache.map_or_else(KvCacheType::default, |dtype| DataType::from(dtype).into());
    let types = Types { dtype, cache };
    let device = Default::default();
    dtype.of_backend::<B>(&device)?;
    let name = folder.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let result = match case::run::<B>(folder, types, ranks, &device) {
        Err(error) if matches!(error.downcast_ref(), Some(ConfigError::Ranks { .. })) => {
            eprintln!("  {name}: each rank runs the whole case: {error}");
            case::run::<B>(folder, types, None, &device)
        }
        result => result,
    };
    // Only here does a device report a kernel that it dropped.
    B::sync(&device).map_err(|error| format!("{name}: the device failed: {error:?}"))?;
    let passed = result.as_ref().is_ok_and(CaseResult::passed);
    match result {
        Ok(result) if speaks || !passed => {
            let verdict = if passed { "ok" } else { "FAIL" };
            println!(
                "{:<28} {:<28} {:9.2e} {:9.2e} {verdict}",
                result.name, result.module, result.error, result.tolerance
            );
        }
        Ok(_) => {}
        Err(error) => {
            println!("{name:<28} {:<28} {:>9} {:>9} FAIL", "-", "-", "-");
            eprintln!("  {name}: {error}");
        }
    }
    Ok(passed)
}
