//! How a rank waits for another: MPI must be polled, so it polls often at first and rarely later.

use std::time::{Duration, Instant};

/// A message between two processes that both have a core arrives within this time.
const SPINS: Duration = Duration::from_micros(200);

/// Until then the rank yields its core instead of sleeping.
const YIELDS: Duration = Duration::from_millis(2);

/// The longest sleep, and so the longest delay of a long wait.
const SLEEP: Duration = Duration::from_millis(1);

/// One wait.
#[derive(Debug)]
pub(super) struct Patience {
    start: Instant,
    limit: Duration,
}

impl Patience {
    pub fn new(limit: Duration) -> Self {
        Self { start: Instant::now(), limit }
    }

    /// Pauses, and returns whether time is left.
    pub fn pause(&mut self) -> bool {
        let waited = self.start.elapsed();
        if waited < SPINS {
            std::hint::spin_loop();
        } else if waited < YIELDS {
            std::thread::yield_now();
        } else {
            std::thread::sleep((waited / 20).min(SLEEP));
        }
        waited < self.limit
    }
}
