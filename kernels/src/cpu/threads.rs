//! The threads that the kernels run on.

use std::cell::Cell;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rayon::{ThreadPool, ThreadPoolBuilder, Yield};

use super::scratch::Disjoint;

/// How long a thread that has helped stays awake. To wake a thread takes tens of microseconds, as long as a whole kernel of a small model,
/// and the next kernel of a step follows within this time.
const AWAKE: Duration = Duration::from_micros(500);

/// Turns of a waiting loop, a microsecond or so, after which other threads may run.
const SPINS: u32 = 64;

/// The threads of the CPU kernels. Their results are bitwise the same on any number of threads.
///
/// A thread that has helped with a kernel waits for the next one for half a millisecond before it sleeps, and lets other threads run
/// meanwhile.
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

    /// Runs `work` on one of these threads; the kernels in it run on all of them. A kernel that is called from another thread has this one beside the
    /// threads of the pool, so that one more wants a core.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            Some(pool) => pool.install(work),
            // It waits for a thread of the pool, unless it is one.
            None => rayon::scope(|_| work()),
        }
    }
}

/// Runs `work` on each of `tasks`, on the threads of the current pool, of which the caller is one. Tasks start in their order.
pub(super) fn each(tasks: usize, work: impl Fn(usize) + Sync) {
    let threads = rayon::current_num_threads().min(tasks);
    if threads <= 1 {
        return (0..tasks).for_each(work);
    }
    let (next, helpers) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let take = || {
        loop {
            match next.fetch_add(1, Ordering::Relaxed) {
                task if task < tasks => work(task),
                _ => return,
            }
        }
    };
    let _waits = Waits::new();
    rayon::in_place_scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|_| {
                let _helps = Helps::new(&helpers);
                take();
                // While the caller still waits for this helper, so that it does not take the job.
                if !STAYS_AWAKE.get() {
                    rayon::spawn(stay_awake);
                }
            });
        }
        take();
        // Not asleep, as the scope would wait: the last tasks are short. A helper that comes later finds none.
        let mut turns = 0;
        while helpers.load(Ordering::Acquire) > 0 {
            turns += 1;
            if turns % SPINS == 0 {
                // The helper may need this core.
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    });
}

/// The same for parts of a slice, of `size` elements but for the last; they are counted.
pub(super) fn each_part<E: Send>(slice: &mut [E], size: usize, work: impl Fn(usize, &mut [E]) + Sync) {
    let len = slice.len();
    let slice = Disjoint::new(slice);
    each(len.div_ceil(size), |part| {
        // SAFETY: parts do not overlap.
        work(part, unsafe { slice.part(part * size, size.min(len - part * size)) });
    });
}

/// A helper that is counted while it works, even if it panics.
struct Helps<'a>(&'a AtomicUsize);

impl<'a> Helps<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Helps<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

thread_local! {
    static STAYS_AWAKE: Cell<bool> = const { Cell::new(false) };
    /// Calls of [`each`] that are on this thread.
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

/// A call of [`each`].
struct Waits;

impl Waits {
    fn new() -> Self {
        CALLS.set(CALLS.get() + 1);
        Self
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        CALLS.set(CALLS.get() - 1);
    }
}

/// Takes work of the pool until none has come for some time. A caller, which must return when its tasks are done, does not.
fn stay_awake() {
    if CALLS.get() > 0 || STAYS_AWAKE.replace(true) {
        return;
    }
    let mut end = Instant::now() + AWAKE;
    loop {
        match rayon::yield_now() {
            Some(Yield::Executed) => end = Instant::now() + AWAKE,
            Some(Yield::Idle) if Instant::now() < end => std::thread::yield_now(),
            Some(Yield::Idle) | None => break,
        }
    }
    STAYS_AWAKE.set(false);
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    fn counts(tasks: usize) -> Vec<usize> {
        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        each(tasks, |task| _ = counts[task].fetch_add(1, Ordering::Relaxed));
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_task_runs_once_on_any_threads() {
        for threads in [1, 2, 5] {
            let threads = Parallelism::threads(NonZeroUsize::new(threads).expect("not zero")).expect("threads");
            for tasks in [0, 1, 2, 3, 100] {
                assert_eq!(threads.run(|| counts(tasks)), vec![1; tasks]);
            }
        }
        // Outside of a pool.
        assert_eq!(counts(100), [1; 100]);
    }

    #[test]
    fn tasks_may_have_tasks() {
        let threads = Parallelism::threads(NonZeroUsize::new(3).expect("not zero")).expect("threads");
        let total = AtomicUsize::new(0);
        threads.run(|| each(7, |_| _ = total.fetch_add(counts(5).len(), Ordering::Relaxed)));
        assert_eq!(total.into_inner(), 35);
    }

    #[test]
    fn parts_are_a_slice_cut_up() {
        let mut slice = [0; 10];
        each_part(&mut slice, 4, |part, own| own.fill(10 * part + own.len()));
        assert_eq!(slice, [4, 4, 4, 4, 14, 14, 14, 14, 22, 22]);
        each_part(&mut [0; 0], 4, |_, _| panic!("no part"));
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        let threads = Parallelism::threads(NonZeroUsize::new(2).expect("not zero")).expect("threads");
        for bad in [0, 63] {
            let task = |task| assert!(task != bad, "task {task}");
            assert!(catch_unwind(AssertUnwindSafe(|| threads.run(|| each(64, task)))).is_err());
        }
        assert_eq!(threads.run(|| counts(9)), [1; 9]);
    }
}
