//! Times calls for `measure.py`: those of burn-deepspeed, of Burn, and of engines that a program adds. Each line of standard input is a
//! request in JSON, and each line of standard output its answer: `{"error": …}` if it failed. `rayon`'s settings give the number of threads.

mod burn_attention;
mod call;
mod limits;
mod ours;
mod workload;

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::time::Instant;

use burn_deepspeed::weight::BlockFormat;
use burn_deepspeed::{ActivationRounding, DataType, InputBits, KvCacheType, Parallelism};
use burn_flex::Flex;
use burn_ndarray::NdArray;
use serde::Deserialize;
use serde_json::{Value, json};

use call::{caught, peak_memory, time};
use ours::{Matrices, Types};

pub use call::{Call, Failure, Output};
pub use workload::{Dense, Heads, Layer, Workload};

/// A call that takes this many seconds or more is not repeated during preparation.
const SLOW: f64 = 1.0;

/// An engine that a program adds.
pub struct Engine {
    /// What `measure.py` asks for. Its implementations are this name with a suffix, as in `candle-flash`.
    pub name: &'static str,
    /// The call of an implementation, whose whole name is given, for a problem.
    pub prepare: fn(&str, &Workload) -> Result<Call, Failure>,
}

/// A request of `measure.py`.
#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "lowercase")]
enum Request {
    /// Whether this program has an engine.
    About { engine: String },
    /// Builds the call, runs it, and returns some rows of its result and its time. If the first run was fast, a second one is timed.
    Prepare {
        implementation: String,
        /// The name of the call in later requests.
        key: String,
        workload: Workload,
        rows: Vec<usize>,
        /// Elements of a row.
        width: usize,
    },
    /// Times calls. With `warm`, one more runs first and is not timed.
    Time { implementation: String, calls: usize, warm: bool },
    /// Measures the memory of one call. A smaller call runs first, so that one-time setup is not counted.
    Memory { implementation: String, small: Workload, workload: Workload },
    /// Drops every call.
    Forget,
}

/// Answers requests until standard input ends.
pub fn serve(engines: &[Engine]) -> ExitCode {
    // On a thread of the pool, so that there is none besides.
    Parallelism::current().run(|| answer_all(engines))
}

fn answer_all(engines: &[Engine]) -> ExitCode {
    // A panic is an answer.
    std::panic::set_hook(Box::new(|_| {}));
    let mut calls = HashMap::new();
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let answer =
            caught(|| answer(engines, &mut calls, &line)).unwrap_or_else(|error| json!({ "error": error.to_string() }));
        let mut out = std::io::stdout().lock();
        if writeln!(out, "{answer}").and_then(|()| out.flush()).is_err() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn answer(engines: &[Engine], calls: &mut HashMap<String, Call>, line: &str) -> Result<Value, Failure> {
    match serde_json::from_str(line)? {
        Request::About { engine } => {
            // Its version is in the lock file.
            let known = engines.iter().any(|known| known.name == engine);
            if known { Ok(json!({ "versions": {} })) } else { Err("the program was built without it".into()) }
        }
        Request::Prepare { implementation, key, workload, rows, width } => {
            let mut call = prepare(engines, &implementation, &workload)?;
            let start = Instant::now();
            let result = call()?;
            let mut seconds = vec![start.elapsed().as_secs_f64()];
            if seconds[0] < SLOW {
                seconds.extend(time(&mut call, 1)?);
            }
            let result = result()?;
            let row = |row: usize| result.get(row * width..(row + 1) * width).ok_or("the result has fewer rows");
            let rows = rows.into_iter().map(row).collect::<Result<Vec<_>, _>>()?;
            calls.insert(key, call);
            Ok(json!({ "rows": rows, "seconds": seconds }))
        }
        Request::Time { implementation, calls: count, warm } => {
            let call = calls.get_mut(&implementation).ok_or("it was not prepared")?;
            time(call, usize::from(warm))?;
            Ok(json!({ "seconds": time(call, count)? }))
        }
        Request::Memory { implementation, small, workload } => {
            time(&mut prepare(engines, &implementation, &small)?, 2)?;
            Ok(json!({ "bytes": peak_memory(&mut prepare(engines, &implementation, &workload)?)? }))
        }
        Request::Forget => {
            calls.clear();
            Ok(json!({}))
        }
    }
}

fn int8(workload: &Workload, cache: KvCacheType, rounding: impl Into<ActivationRounding>) -> Result<Call, Failure> {
    let (matrices, rounding) = (Matrices::Int8, rounding.into());
    ours::prepare_types::<NdArray>(workload, &Types { matrices, cache, rounding, ..Types::default() })
}

/// Matrices and cache of 16 bits next to activations in f32.
fn halves(
    workload: &Workload,
    matrices: BlockFormat,
    cache: DataType,
    rounding: ActivationRounding,
) -> Result<Call, Failure> {
    let (matrices, cache) = (Matrices::Blocks(matrices), cache.into());
    ours::prepare_types::<NdArray>(workload, &Types { matrices, cache, rounding, ..Types::default() })
}

fn prepare(engines: &[Engine], implementation: &str, workload: &Workload) -> Result<Call, Failure> {
    match implementation {
        "ours-ndarray" => ours::prepare::<NdArray>(workload),
        "ours-flex" => ours::prepare::<Flex>(workload),
        "ours-f16" => halves(workload, BlockFormat::F16, DataType::Fp16, ActivationRounding::Never),
        "ours-bf16" => halves(workload, BlockFormat::BF16, DataType::Bf16, ActivationRounding::Never),
        "ours-bf16-rounded" => halves(workload, BlockFormat::BF16, DataType::Bf16, ActivationRounding::Bf16),
        "ours-bf16-flex" => ours::prepare_types::<Flex>(workload, &Types { dtype: DataType::Bf16, ..Types::default() }),
        "ours-int8" => int8(workload, KvCacheType::default(), false),
        "ours-int8-cache" => int8(workload, KvCacheType::INT8, false),
        "ours-int8-rounded" => int8(workload, KvCacheType::INT8, InputBits::Fourteen),
        "ours-int8-rounded-8" => int8(workload, KvCacheType::INT8, InputBits::Eight),
        "ours-blocks-16" => ours::prepare_rounded::<NdArray>(workload, InputBits::Fourteen),
        "ours-blocks-8" => ours::prepare_rounded::<NdArray>(workload, InputBits::Eight),
        "burn-ndarray" => burn_attention::prepare::<NdArray>(workload),
        "burn-flex" => burn_attention::prepare::<Flex>(workload),
        "multiply-add" => limits::peak(workload),
        "gemm" => limits::matmul(workload),
        "read" => limits::read::<1>(workload),
        "read-4" => limits::read::<4>(workload),
        _ => match engines.iter().find(|engine| implementation.split('-').next() == Some(engine.name)) {
            Some(engine) => (engine.prepare)(implementation, workload),
            None => Err("no such implementation".into()),
        },
    }
}
