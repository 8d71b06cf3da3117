//! The time of a launch: alone, on a busy host, and on the device.

use std::time::{Duration, Instant};

use burn_deepspeed_kernels::cube::Unsupported;
use cubecl::cuda::CudaRuntime;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Target for the total time of the launches of one measurement.
const SPAN: Duration = Duration::from_millis(10);
/// Most launches in the queue of the device, some of which are two kernels: it holds about 1000.
const MOST_QUEUED: usize = 256;
/// Launches above this keep the device busy by themselves.
const LONG_US: f64 = 200.0;

/// Times of one launch, in microseconds.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// On the device: the launches were in its queue before the first one began.
    pub device_us: f64,
    /// Of many launches in sequence, so that the slower of host and device counts.
    pub wall_us: f64,
    /// From the call on an idle device until the host knows that it is done.
    pub latency_us: f64,
    /// Number of launches in the mean.
    pub launches: usize,
}

/// Measures by the host's clock, since CubeCL hides CUDA's events. A kernel of known duration occupies the device while the host
/// fills the queue.
pub struct Clock {
    client: ComputeClient<CudaRuntime>,
    cell: Handle,
    /// Steps of [`delay`] in a microsecond.
    steps_per_us: f64,
    quick: bool,
}

/// Keeps one unit of the device busy.
#[cube(launch_unchecked)]
fn delay(cell: &mut Array<u32>, steps: u32) {
    let mut value = cell[0];
    for _ in 0..steps {
        value = value * 1664525u32 + 1013904223u32;
    }
    cell[0] = value;
}

impl Clock {
    pub fn new(client: &ComputeClient<CudaRuntime>, quick: bool) -> Result<Self, String> {
        let cell = client.create_from_slice(u32::as_bytes(&[1]));
        let mut clock = Self { client: client.clone(), cell, steps_per_us: 1.0, quick };
        clock.wait_for(1000)?;
        // Twice: the first time the clocks of an idle device rise.
        for _ in 0..2 {
            let steps = 4_000_000;
            clock.steps_per_us = f64::from(steps) / microseconds(clock.wait_for(steps)?).max(1.0);
        }
        Ok(clock)
    }

    fn sync(&self) -> Result<(), String> {
        cubecl::future::block_on(self.client.sync()).map_err(|error| error.to_string())
    }

    fn delay(&self, steps: u32) {
        // SAFETY: the buffer holds one element, and one unit runs.
        unsafe {
            let cell = ArrayArg::from_raw_parts(self.cell.clone(), 1);
            delay::launch_unchecked::<CudaRuntime>(
                &self.client,
                CubeCount::Static(1, 1, 1),
                CubeDim::new_1d(1),
                cell,
                steps,
            );
        }
    }

    fn wait_for(&self, steps: u32) -> Result<Duration, String> {
        let start = Instant::now();
        self.delay(steps);
        self.sync()?;
        Ok(start.elapsed())
    }

    /// One measurement of `launch`, which is told how often it was called before.
    pub fn read(&self, launch: impl Fn(usize) -> Result<(), Unsupported>) -> Result<Reading, String> {
        let mut calls = 0;
        let mut run = |delay: u32, count: usize| {
            let start = Instant::now();
            if delay > 0 {
                self.delay(delay);
            }
            for _ in 0..count {
                launch(calls).map_err(|reason| reason.to_string())?;
                calls += 1;
            }
            self.sync()?;
            Ok::<_, String>(start.elapsed())
        };
        run(0, 1)?; // compiles, if it is the first time
        let latency = run(0, 1)?;
        let latency_us = microseconds(latency);
        if latency > SPAN {
            return Ok(Reading { device_us: latency_us, wall_us: latency_us, latency_us, launches: 1 });
        }
        let few = if self.quick { 1 } else { 4 };
        let estimate = run(0, few)? / few as u32;
        let launches = if self.quick { 2 } else { SPAN.div_duration_f64(estimate).clamp(1.0, 2000.0) as usize };
        let wall_us = microseconds(run(0, launches)?) / launches as f64;
        let mut device_us = wall_us;
        if wall_us < LONG_US {
            let queued = launches.min(MOST_QUEUED);
            let steps = (1.3 * wall_us * queued as f64 * self.steps_per_us).clamp(1.0, f64::from(u32::MAX)) as u32;
            let alone = microseconds(self.wait_for(steps)?);
            let together = microseconds(run(steps, queued)?);
            let alone = (alone + microseconds(self.wait_for(steps)?)) / 2.0;
            // A queue that was not full in time measures the host again.
            device_us = ((together - alone) / queued as f64).clamp(0.0, wall_us);
        }
        Ok(Reading { device_us, wall_us, latency_us, launches })
    }
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
