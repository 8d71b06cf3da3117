//! The call that a program repeats, and how its time and memory are measured.

use std::error::Error;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// Any error, which is then the answer.
pub type Failure = Box<dyn Error + Send + Sync>;

/// Reads the result of a call, row-major, outside the measured time.
pub type Output = Box<dyn FnOnce() -> Result<Vec<f32>, Failure>>;

/// One solution of a problem whose inputs are prepared.
pub type Call = Box<dyn FnMut() -> Result<Output, Failure>>;

/// Seconds that each of `calls` calls takes; results are dropped.
pub fn time(call: &mut Call, calls: usize) -> Result<Vec<f64>, Failure> {
    let once = |_| {
        let start = Instant::now();
        drop(call()?);
        Ok(start.elapsed().as_secs_f64())
    };
    (0..calls).map(once).collect()
}

/// Peak memory of one call in bytes, in addition to what is resident already; its result is included.
pub fn peak_memory(call: &mut Call) -> Result<u64, Failure> {
    // 5 sets the peak to what is resident now.
    fs::write("/proc/self/clear_refs", "5")?;
    let before = status("VmRSS")?;
    drop(call()?);
    Ok(status("VmHWM")?.saturating_sub(before))
}

/// A size in bytes of `/proc/self/status`.
fn status(field: &str) -> Result<u64, Failure> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()).ok_or("no such size in /proc/self/status")?;
    Ok(kilobytes.parse::<u64>()? * 1024)
}

/// Turns a panic into an error with its message.
pub fn caught<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Err(text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message").into())
    })
}
