//! One rank of a group of processes: its group, its exchanges, and how it gives up.

use std::ffi::c_int;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::message::Message;
use super::process::{Process, WORLD};
use crate::element::ElementType;
use crate::error::CommunicationError;
use crate::parallel::agreement::{AgreedSettings, Agreement};
use crate::parallel::communicator::{Communicator, DEFAULT_TIME_LIMIT};

/// Words before the values: the agreement, and the number of values.
pub(super) const HEADER: usize = 2 * Agreement::WORDS + 2;

/// Words of a reason to give up, of four bytes each.
const REASON: usize = 256;

/// Words of the notice that a rank gave up: the number of exchanges that it completed (two words), the length of the reason in
/// bytes, and the reason.
const NOTICE: usize = 3 + REASON;

/// One rank of a group of processes; see [the module](super).
///
/// Sums are taken in the order of ranks, in f32, so they have the same bits on each of them and from run to run. The last
/// communicator of a process that is dropped ends MPI.
#[derive(Debug)]
pub struct MpiCommunicator {
    pub(super) process: Arc<Process>,
    /// The processes of the group, in the order of ranks.
    pub(super) members: Vec<c_int>,
    pub(super) rank: usize,
    /// The number of this group. No process is in two groups of the same number.
    number: c_int,
    /// Exchanges that this rank has completed.
    completed: AtomicU64,
    pub(super) limit: Duration,
    failure: OnceLock<CommunicationError>,
    state: Mutex<ExchangeState>,
}

/// State that one exchange leaves for the next.
#[derive(Debug, Default)]
pub(super) struct ExchangeState {
    /// The error of a rank that gave up, and the number of exchanges it had completed.
    gave_up: Option<(u64, CommunicationError)>,
    /// Memory of the blocks that ranks send each other.
    pub(super) blocks: Vec<Vec<u32>>,
    /// Memory for parts of long sums.
    pub(super) parts: Vec<Vec<u32>>,
}

impl MpiCommunicator {
    /// All processes that were started together. Initialises MPI.
    ///
    /// # Errors
    /// Those of [`world_with_time_limit`](Self::world_with_time_limit).
    pub fn world() -> Result<Self, CommunicationError> {
        Self::world_with_time_limit(DEFAULT_TIME_LIMIT)
    }

    /// All processes that were started together. They wait for each other at most `limit`: here, in every sum, and at the end.
    ///
    /// # Errors
    /// - [`CommunicationError::Unavailable`] if MPI was initialised in this process before, or was built for one thread
    /// - [`CommunicationError::TimedOut`] if not every process calls this. Which are missing is not known that early, so all
    ///   others are named.
    pub fn world_with_time_limit(limit: Duration) -> Result<Self, CommunicationError> {
        let process = Process::begin(limit)?;
        let (members, rank) = ((0..process.size).collect(), process.rank as usize);
        let world = Self::group(Arc::new(process), members, rank, WORLD);
        world.barrier(&Agreement::barrier())?; // so that all are connected
        Ok(world)
    }

    /// Waits for the other ranks of this group at most `limit`, which may differ from rank to rank.
    pub fn with_time_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The ranks that give the same `group`, in their order. Every rank must call this, as for a sum. A group that fails does not
    /// affect the others.
    ///
    /// # Errors
    /// A [`CommunicationError`].
    pub fn split(&self, group: u32) -> Result<Self, CommunicationError> {
        let what =
            Agreement::sum(&[2], ElementType::F32, &AgreedSettings::new([("what splits ranks into groups", &"split")]));
        let mut youngest = self.process.youngest.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = self.exchange(|state| {
            let blocks = self.show(state, &what, &[group, *youngest as u32].map(f32::from_bits))?;
            Ok(blocks.iter().map(|block| (block[HEADER], block[HEADER + 1] as c_int)).collect::<Vec<_>>())
        })?;
        *youngest = 1 + shown.iter().fold(*youngest, |youngest, shown| youngest.max(shown.1));
        let ranks = || (0..self.size()).filter(|&rank| shown[rank].0 == group);
        let members = ranks().map(|rank| self.members[rank]).collect();
        Ok(Self::group(self.process.clone(), members, ranks().take_while(|&rank| rank < self.rank).count(), *youngest))
    }

    fn group(process: Arc<Process>, members: Vec<c_int>, rank: usize, number: c_int) -> Self {
        let (completed, failure, state) = Default::default();
        let limit = process.limit;
        Self { process, members, rank, number, completed, limit, failure, state }
    }

    /// Tag of blocks and parts of sums.
    pub(super) fn values_tag(&self) -> c_int {
        2 * self.number
    }

    /// Tag of the notice that a rank gave up.
    fn notice_tag(&self) -> c_int {
        2 * self.number + 1
    }

    pub(super) fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let own = self.rank;
        (0..self.members.len()).filter(move |&rank| rank != own)
    }

    /// One exchange of all ranks. If it fails, so does the group.
    fn exchange<T>(
        &self,
        work: impl FnOnce(&mut ExchangeState) -> Result<T, CommunicationError>,
    ) -> Result<T, CommunicationError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = self.check(&state).and_then(|()| work(&mut state)).and_then(|result| {
            // A late rank receives first what the others had sent before they gave up, then the notice that they did.
            self.receive_notices(&mut state)?;
            Ok(result)
        });
        match result {
            Ok(result) => {
                self.completed.fetch_add(1, Ordering::Release);
                Ok(result)
            }
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Receives the notices of ranks that gave up.
    pub(super) fn receive_notices(&self, state: &mut ExchangeState) -> Result<(), CommunicationError> {
        while let Some(process) = self.process.link.sender(self.notice_tag())? {
            let mut message = Message::receive(self.process.link, vec![0; NOTICE], process, self.notice_tag())?;
            message.is_done_soon();
            let notice = message.into_buffer().unwrap_or_else(|| vec![0; NOTICE]);
            let completed = u64::from(notice[0]) | u64::from(notice[1]) << 32;
            let text: Vec<u8> =
                notice[3..].iter().flat_map(|word| word.to_le_bytes()).take(notice[2] as usize).collect();
            let rank = self.members.iter().take_while(|&&member| member != process).count();
            let error = CommunicationError::Aborted { rank, reason: String::from_utf8_lossy(&text).into_owned() };
            if state.gave_up.as_ref().is_none_or(|(earlier, _)| completed < *earlier) {
                state.gave_up = Some((completed, error));
            }
        }
        self.check(state)
    }

    /// The error of the group, as far as this rank knows.
    fn check(&self, state: &ExchangeState) -> Result<(), CommunicationError> {
        match (self.failure.get(), &state.gave_up) {
            (Some(failure), _) => Err(failure.clone()),
            // The contributions of a rank to exchanges that it completed still count.
            (None, Some((completed, error))) if *completed <= self.completed.load(Ordering::Acquire) => {
                Err(error.clone())
            }
            _ => Ok(()),
        }
    }

    /// Ends the group with its first error, and notifies the others unless they know it already.
    fn fail(&self, error: CommunicationError) -> CommunicationError {
        let known = matches!(error, CommunicationError::Differ { .. } | CommunicationError::Aborted { .. });
        let fact = error.fact();
        self.end(error, (!known).then_some(&fact))
    }

    fn end(&self, error: CommunicationError, reason: Option<&str>) -> CommunicationError {
        if self.failure.set(error.clone()).is_ok() {
            self.process.failed.store(true, Ordering::Relaxed);
            if let Some(reason) = reason {
                self.tell(reason);
            }
        }
        self.failure.get().cloned().unwrap_or(error)
    }

    /// Sends every rank a reason to give up. It is short enough that MPI does not wait for the receiver.
    fn tell(&self, reason: &str) {
        let reason = &reason.as_bytes()[..reason.floor_char_boundary(4 * REASON)];
        let completed = self.completed.load(Ordering::Acquire);
        let mut notice = vec![completed as u32, (completed >> 32) as u32, reason.len() as u32];
        notice.extend(reason.chunks(4).map(|bytes| {
            let mut word = [0; 4];
            word[..bytes.len()].copy_from_slice(bytes);
            u32::from_le_bytes(word)
        }));
        let notice = Arc::new(notice);
        let send =
            |rank: usize| Message::send(self.process.link, notice.clone(), self.members[rank], self.notice_tag()).ok();
        let sent: Vec<_> = self.others().filter_map(send).collect();
        for mut message in sent {
            message.is_done_soon();
        }
    }
}

impl Communicator for MpiCommunicator {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.members.len()
    }

    fn all_reduce(&self, agreement: &Agreement, values: &mut [f32]) -> Result<(), CommunicationError> {
        self.exchange(|state| self.sum(state, agreement, values))
    }

    fn barrier(&self, agreement: &Agreement) -> Result<(), CommunicationError> {
        self.exchange(|state| {
            state.blocks = self.show(state, agreement, &[])?;
            Ok(())
        })
    }

    fn abort(&self, reason: &str) {
        self.end(CommunicationError::Aborted { rank: self.rank, reason: reason.into() }, Some(reason));
    }
}

impl Drop for MpiCommunicator {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.abort("its thread panicked");
        }
    }
}
