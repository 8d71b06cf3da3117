//! MPI in this process: initialised once, finalised with the last communicator.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::mpi::Threading;
use ::mpi::environment::{Universe, initialize_with_threading};
use ::mpi::traits::Communicator as _;

use super::message::{Link, Message, lock};
use super::patience::Patience;
use crate::error::CommunicationError;

/// The number of the first group.
pub(super) const WORLD: c_int = 1;

/// Tag of the last message of a process.
const GOODBYE: c_int = 0;

/// How long a process that failed stays, so that the others can report it before the launcher ends them.
const LINGER: Duration = Duration::from_secs(1);

/// Whether MPI was initialised; it can be only once in a process.
static BEGUN: AtomicBool = AtomicBool::new(false);

/// This process among all that were started together.
#[derive(Debug)]
pub(super) struct Process {
    pub link: Link,
    pub rank: c_int,
    pub size: c_int,
    pub limit: Duration,
    /// Whether a group of this process has failed.
    pub failed: AtomicBool,
    /// The largest number of a group so far; the next gets a larger one.
    pub youngest: Mutex<c_int>,
    /// To the thread that initialised MPI, which must also finalise it.
    end: Sender<()>,
    ended: Mutex<Receiver<()>>,
}

impl Process {
    /// Initialises MPI, which waits for all processes.
    pub fn begin(limit: Duration) -> Result<Self, CommunicationError> {
        if BEGUN.swap(true, Ordering::Relaxed) {
            return Err(unavailable("it was initialised in this process before; share or `split` that communicator"));
        }
        let (tell, begun) = channel();
        let (end, asked_to_end) = channel();
        let (tell_ended, ended) = channel();
        let work = move || match initialize() {
            Err(error) => drop(tell.send(Err(error))),
            Ok((universe, threading)) => {
                let world = universe.world();
                let joined = match threading >= Threading::Serialized {
                    true => Link::new(&world).map(|link| (link, world.rank(), world.size())),
                    false => Err(unavailable(format!(
                        "it was built for threads as in {threading:?}, and needs `Serialized`"
                    ))),
                };
                if tell.send(joined).is_ok() && asked_to_end.recv().is_ok() {
                    let _lock = lock();
                    drop(universe);
                    let _ = tell_ended.send(());
                } else {
                    std::mem::forget(universe); // finalising would wait for processes that will not come
                }
            }
        };
        std::thread::Builder::new().name("mpi".into()).spawn(work).map_err(|error| unavailable(error.to_string()))?;
        let (link, rank, size) = begun.recv_timeout(limit).map_err(|_| nobody_came(limit))??;
        let (failed, youngest, ended) = (AtomicBool::new(false), Mutex::new(WORLD), Mutex::new(ended));
        Ok(Self { link, rank, size, limit, failed, youngest, end, ended })
    }

    /// Whether every process ended within the limit, and none of them failed.
    fn all_ended_well(&self, failed: bool, limit: Duration) -> Result<bool, CommunicationError> {
        let others = || (0..self.size).filter(|&rank| rank != self.rank);
        let goodbye = Arc::new(vec![u32::from(failed)]);
        let sent = others().map(|rank| Message::send(self.link, goodbye.clone(), rank, GOODBYE));
        let mut sent = sent.collect::<Result<Vec<_>, _>>()?;
        let received = others().map(|rank| Message::receive(self.link, vec![0], rank, GOODBYE));
        let mut received = received.collect::<Result<Vec<_>, _>>()?;
        let mut patience = Patience::new(limit);
        for message in &mut received {
            while !message.is_done()? {
                if !patience.pause() {
                    return Ok(false);
                }
            }
        }
        let through = sent.iter_mut().all(Message::is_done_soon);
        Ok(through && !failed && received.into_iter().all(|message| message.into_buffer() == Some(vec![0])))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let failed = self.failed.load(Ordering::Relaxed);
        let limit = if failed { self.limit.min(LINGER) } else { self.limit };
        // Finalising MPI waits for all processes without a limit, so it is done only if all of them will.
        if matches!(self.all_ended_well(failed, limit), Ok(true)) && self.end.send(()).is_ok() {
            let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
            let _ = ended.recv_timeout(limit);
        }
    }
}

fn initialize() -> Result<(Universe, Threading), CommunicationError> {
    initialize_with_threading(Threading::Serialized)
        .ok_or_else(|| unavailable("this process began it by other means; leave that to `MpiCommunicator::world`"))
}

fn unavailable(cause: impl Into<String>) -> CommunicationError {
    CommunicationError::Unavailable { engine: "MPI", cause: cause.into() }
}

/// Before MPI is initialised, only the environment of the launcher tells the other ranks.
fn nobody_came(limit: Duration) -> CommunicationError {
    let number = |names: [&str; 2]| names.iter().find_map(|name| std::env::var(name).ok()?.parse::<usize>().ok());
    let ranks = number(["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"]).unwrap_or(1);
    let own = number(["OMPI_COMM_WORLD_RANK", "PMI_RANK"]);
    CommunicationError::TimedOut { missing: (0..ranks).filter(|&rank| Some(rank) != own).collect(), ranks, limit }
}
