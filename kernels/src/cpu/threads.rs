//! The threads that the kernels run on.

use std::num::NonZeroUsize;
use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuilder};

/// The threads of the CPU kernels. Their results are bitwise the same on any number of threads.
///
/// ```
/// use std::num::NonZeroUsize;
/// use burn_deepspeed_kernels::cpu::threads::Parallelism;
///
/// let two = Parallelism::threads(NonZeroUsize::new(2).unwrap())?; // keep it: each call starts new threads
/// let sum = two.run(|| 1 + 2); // kernels in here have two threads
/// assert_eq!((sum, two.count()), (3, 2));
/// # Ok::<_, burn_deepspeed_kernels::cpu::threads::ThreadsError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Parallelism {
    pool: Option<Arc<ThreadPool>>,
}

/// Threads that could not be started.
#[derive(Debug, thiserror::Error)]
#[error("{count} threads could not be started: {cause}; ask for fewer")]
pub struct ThreadsError {
    count: usize,
    cause: rayon::ThreadPoolBuildError,
}

impl Parallelism {
    /// The `rayon` pool that the caller runs in, else the global one, which has a thread for each core. The default.
    pub fn current() -> Self {
        Self::default()
    }

    /// A separate pool with this number of threads.
    ///
    /// # Errors
    /// [`ThreadsError`] if the system cannot start them.
    pub fn threads(count: NonZeroUsize) -> Result<Self, ThreadsError> {
        let count = count.get();
        let pool = ThreadPoolBuilder::new().num_threads(count).build();
        Ok(Self { pool: Some(Arc::new(pool.map_err(|cause| ThreadsError { count, cause })?)) })
    }

    /// The number of threads.
    pub fn count(&self) -> usize {
        self.pool.as_ref().map_or_else(rayon::current_num_threads, |pool| pool.current_num_threads())
    }

    /// Runs `work` on one of these threads; the kernels in it run on all of them.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }
}
