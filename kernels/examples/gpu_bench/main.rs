//! Times the kernels on a CUDA device, each launch by itself and as part of a full queue.
//!
//! ```text
//! gpu_bench                      every workload, a line of JSON each
//! gpu_bench --only decode        those whose name contains a word
//! gpu_bench --list               what there is, with bytes, operations and exponentials of each
//! gpu_bench --once               launches each engine of each workload once and announces it on standard error
//! gpu_bench --serve              reads `<workload> <engine> <f16|bf16> <cold|warm>` and answers with one measurement
//! ```
//!
//! `scripts/gpu_peers.py` uses `--list` and `--serve` to alternate with other programs on the same device, `scripts/counts.py`
//! `--once` with a driver that counts.

mod description;
mod launches;
mod tensors;
mod timing;
mod workloads;

use std::io::{BufRead, Write};
use std::process::ExitCode;

use burn_deepspeed_kernels::cube::Machine;
use clap::Parser;
use cubecl::cuda::{CudaDevice, CudaRuntime};
use cubecl::prelude::*;
use serde_json::{Value, json};

use launches::{Launch, Tensors, Use};
use timing::{Clock, Reading};
use workloads::{ELEMENTS, WORKLOADS, Workload};

/// Times the kernels on a CUDA device; prints a line of JSON for each measurement.
#[derive(Parser)]
struct Arguments {
    /// Prints the workloads and ends.
    #[arg(long)]
    list: bool,
    /// Answers requests on standard input until it ends.
    #[arg(long, conflicts_with = "list")]
    serve: bool,
    /// Only workloads whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Measurements of each, of which the median counts.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Small tensors and few launches: shows that everything runs.
    #[arg(long)]
    quick: bool,
    /// Launches each engine of each workload once, measures nothing, and announces it on standard error.
    #[arg(long, conflicts_with_all = ["list", "serve", "quick"])]
    once: bool,
}

/// One requested measurement.
#[derive(Clone, Copy)]
struct Request<'a> {
    workload: &'a str,
    engine: &'a str,
    dtype: &'a str,
    l2: &'a str,
}

/// The device and the tensors of the last request.
struct Bench {
    client: ComputeClient<CudaRuntime>,
    clock: Clock,
    quick: bool,
    prepared: Option<(String, Vec<Launch>)>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let chosen: Vec<&Workload> = WORKLOADS.iter().filter(|workload| workload.name.contains(&arguments.only)).collect();
    if arguments.list {
        chosen.iter().for_each(|workload| println!("{}", workload.describe()));
        return ExitCode::SUCCESS;
    }
    let client = CudaRuntime::client(&CudaDevice::default());
    if arguments.once {
        return match chosen.into_iter().try_for_each(|workload| launch_once(&client, workload)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let clock = match Clock::new(&client, arguments.quick) {
        Ok(clock) => clock,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut bench = Bench { client, clock, quick: arguments.quick, prepared: None };
    if arguments.serve {
        serve(&mut bench);
        return ExitCode::SUCCESS;
    }
    let mut failed = false;
    for workload in chosen {
        for (dtype, l2) in ELEMENTS.iter().flat_map(|dtype| ["cold", "warm"].map(|l2| (*dtype, l2))) {
            let mut solved = false;
            for engine in workload.engines() {
                let line = bench.rounds(Request { workload: workload.name, engine, dtype, l2 }, arguments.rounds);
                solved |= line.get("error").is_none();
                println!("{line}");
            }
            // Some engines may decline, but not all.
            failed |= !solved;
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Launches each engine once, with bf16: kernels for f16 differ in conversions alone.
fn launch_once(client: &ComputeClient<CudaRuntime>, workload: &Workload) -> Result<(), String> {
    let dtype = "bf16";
    client.memory_cleanup();
    let launches = Tensors::new(client, Machine::new(client), dtype, Use::Counting)?.prepare(workload);
    for (number, engine) in workload.counted_engines() {
        eprintln!("workload: {} {engine} {dtype}", workload.name);
        match launches[0](number) {
            Ok(()) => cubecl::future::block_on(client.sync()).map_err(|error| error.to_string())?,
            // Some engines may decline.
            Err(reason) => eprintln!("declined: {reason}"),
        }
    }
    Ok(())
}

/// One answer for each line, flushed at once: the other side waits for it.
fn serve(bench: &mut Bench) {
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let answer = match line.split_whitespace().collect::<Vec<_>>()[..] {
            [workload, engine, dtype, l2] => bench.rounds(Request { workload, engine, dtype, l2 }, 1),
            _ => json!({ "error": format!("expected workload, engine, dtype and cold or warm, not {line:?}") }),
        };
        println!("{answer}");
        if std::io::stdout().flush().is_err() {
            return;
        }
    }
}

impl Bench {
    /// Measures several times; the times are medians.
    fn rounds(&mut self, request: Request<'_>, rounds: usize) -> Value {
        let mut line = json!({
            "name": request.workload, "engine": request.engine, "dtype": request.dtype, "l2": request.l2,
        });
        match self.measure(request, rounds) {
            Ok((workload, readings)) => {
                let column = |of: fn(&Reading) -> f64| {
                    let mut times: Vec<f64> = readings.iter().map(of).collect();
                    times.sort_by(f64::total_cmp);
                    times
                };
                let device = column(|reading| reading.device_us);
                line["median_us"] = json!(device[device.len() / 2]);
                line["min_us"] = json!(device[0]);
                line["wall_us"] = json!(column(|reading| reading.wall_us)[readings.len() / 2]);
                line["latency_us"] = json!(column(|reading| reading.latency_us)[readings.len() / 2]);
                line["launches"] = json!(readings[0].launches);
                line["bytes"] = json!(workload.bytes());
                line["flops"] = json!(workload.flops());
            }
            Err(error) => line["error"] = json!(error),
        }
        line
    }

    fn measure(&mut self, request: Request<'_>, rounds: usize) -> Result<(&'static Workload, Vec<Reading>), String> {
        let Request { workload: name, engine, dtype, l2 } = request;
        let workload = WORKLOADS.iter().find(|workload| workload.name == name).ok_or("no such workload")?;
        let engine = workload.engines().position(|known| known == engine).ok_or("no such engine")?;
        let key = format!("{name} {dtype}");
        if self.prepared.as_ref().is_none_or(|(last, _)| *last != key) {
            self.prepared = None;
            self.client.memory_cleanup();
            let purpose = if self.quick { Use::Trial } else { Use::Timing };
            let tensors = Tensors::new(&self.client, Machine::new(&self.client), dtype, purpose)?;
            self.prepared = Some((key, tensors.prepare(workload)));
        }
        let sets = self.prepared.as_ref().map_or(&[][..], |(_, sets)| sets);
        let sets = if l2 == "warm" { &sets[..1] } else { sets };
        let readings: Result<_, _> =
            (0..rounds.max(1)).map(|_| self.clock.read(|at| sets[at % sets.len()](engine))).collect();
        Ok((workload, readings?))
    }
}
