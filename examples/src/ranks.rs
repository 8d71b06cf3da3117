//! Ranks on the command line: their number, their engine, and how long they wait for each other.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use burn_deepspeed::CommunicationError;
use burn_deepspeed::parallel::{Agreement, Communicator};
use clap::{Args, ValueEnum};

use crate::Failure;

/// How ranks find each other.
#[derive(Debug, Args, Clone, Copy)]
pub struct Ranks {
    /// Threads of this process that share the heads, for the engine `local`. Default: 1; 2 in `tensor_parallel`.
    #[arg(long)]
    ranks: Option<NonZeroUsize>,
    /// What adds over ranks.
    #[arg(long, value_enum, default_value_t = Engine::Local)]
    engine: Engine,
    /// Seconds that a rank waits for the others.
    #[arg(long, default_value_t = 30.0)]
    time_limit: f64,
}

/// What adds over ranks.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
pub enum Engine {
    /// Threads of this process; `--ranks` gives their number.
    Local,
    /// The processes that `mpirun` started.
    Mpi,
}

/// The only rank: its sums are its own values.
#[derive(Debug)]
struct Alone;

impl Communicator for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_reduce(&self, _agreement: &Agreement, _values: &mut [f32]) -> Result<(), CommunicationError> {
        Ok(())
    }

    fn barrier(&self, _agreement: &Agreement) -> Result<(), CommunicationError> {
        Ok(())
    }

    fn abort(&self, _reason: &str) {}
}

impl Ranks {
    /// The same with this number of threads, if the command line gives none.
    pub fn or(self, ranks: NonZeroUsize) -> Self {
        Self { ranks: self.ranks.or(Some(ranks)), ..self }
    }

    /// The same with this number of threads, whatever the command line says.
    pub fn with(self, ranks: NonZeroUsize) -> Self {
        Self { ranks: Some(ranks), ..self }
    }

    /// The number of threads, if the command line gives one.
    pub fn count(self) -> Option<NonZeroUsize> {
        self.ranks
    }

    /// What adds over ranks.
    pub fn engine(self) -> Engine {
        self.engine
    }

    /// Runs `work` on each rank of this process and returns the results in the order of ranks: all of them with threads, one with
    /// MPI. If a rank fails, the result is the first error.
    pub fn run<T: Send>(
        &self,
        work: impl Fn(Arc<dyn Communicator>) -> Result<T, Failure> + Sync,
    ) -> Result<Vec<T>, Failure> {
        let limit = Duration::try_from_secs_f64(self.time_limit)
            .map_err(|cause| format!("--time-limit {}: {cause}", self.time_limit))?;
        match self.engine {
            Engine::Local if self.ranks.is_none_or(|ranks| ranks.get() == 1) => Ok(vec![work(Arc::new(Alone))?]),
            Engine::Local => self.threads(limit, work),
            Engine::Mpi => processes(limit, work),
        }
    }

    #[cfg(feature = "local")]
    fn threads<T: Send>(
        &self,
        limit: Duration,
        work: impl Fn(Arc<dyn Communicator>) -> Result<T, Failure> + Sync,
    ) -> Result<Vec<T>, Failure> {
        use burn_deepspeed::Parallelism;
        use burn_deepspeed::parallel::local::LocalCommunicator;

        let count = self.ranks.unwrap_or(NonZeroUsize::MIN);
        // Each rank has its own cores.
        let cores = NonZeroUsize::new(Parallelism::current().count() / count).unwrap_or(NonZeroUsize::MIN);
        std::thread::scope(|threads| {
            let mut ranks = Vec::new();
            for communicator in LocalCommunicator::group_with_time_limit(count.get(), limit) {
                let own = Parallelism::threads(cores)?;
                let work = &work;
                ranks.push(threads.spawn(move || own.run(move || work(Arc::new(communicator)))));
            }
            let ended = ranks.into_iter().map(|rank| rank.join().unwrap_or_else(|_| Err("a rank panicked".into())));
            ended.collect()
        })
    }

    #[cfg(not(feature = "local"))]
    fn threads<T: Send>(
        &self,
        _limit: Duration,
        _work: impl Fn(Arc<dyn Communicator>) -> Result<T, Failure> + Sync,
    ) -> Result<Vec<T>, Failure> {
        Err("the engine `local` is not part of the build; add `--features local`".into())
    }
}

#[cfg(feature = "mpi")]
fn processes<T: Send>(
    limit: Duration,
    work: impl Fn(Arc<dyn Communicator>) -> Result<T, Failure>,
) -> Result<Vec<T>, Failure> {
    use burn_deepspeed::parallel::mpi::MpiCommunicator;

    let communicator = Arc::new(MpiCommunicator::world_with_time_limit(limit)?);
    let result = work(communicator.clone());
    if let Err(error) = &result {
        communicator.abort(&error.to_string()); // so that the others do not wait for this one
    }
    Ok(vec![result?])
}

#[cfg(not(feature = "mpi"))]
fn processes<T: Send>(
    _limit: Duration,
    _work: impl Fn(Arc<dyn Communicator>) -> Result<T, Failure>,
) -> Result<Vec<T>, Failure> {
    Err("the engine `mpi` is not part of the build; install OpenMPI and libclang, and add `--features mpi`".into())
}
