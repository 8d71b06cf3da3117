//! How a rank waits for another: MPI has to be asked, so it looks often at first and seldom later.

use std::time::{Duration, Instant};

/// A message between two processes that both have a core comes within this time.
const SPINS: Duration = Duration::from_micros(200);

/// Until then the rank stays awake and lets others have the core.
const YIELDS: Duration = Duration::from_millis(2);

/// The longest sleep, and so what a long wait may take in addition.
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

    /// Lets some time pass; whether there is time left.
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
