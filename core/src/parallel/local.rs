//! Ranks that are threads of one process: for tests, and for machines with several sockets.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::agreement::Agreement;
use super::communicator::{Communicator, DEFAULT_TIME_LIMIT};
use crate::error::CommunicationError;

/// Values of which every rank adds up all: below, a second meeting costs more than the sums that it saves.
const ADDED_BY_EACH: usize = 16 * 1024;

/// How long a rank looks for the others before it sleeps.
const AWAKE: Duration = Duration::from_micros(50);

/// One rank of a group of threads.
///
/// Sums are taken in the order of ranks, in f32, so they have the same bits on each of them and from run to run. A rank that is
/// dropped (its thread ended, or panicked) is gone, and the others hear of it at once.
///
/// Give each rank threads of its own with `burn_deepspeed::Parallelism`: the CPU kernels of all ranks share one pool
/// otherwise.
#[derive(Debug)]
pub struct LocalCommunicator {
    rank: usize,
    group: Arc<Group>,
}

#[derive(Debug)]
struct Group {
    ranks: usize,
    limit: Duration,
    /// Meetings that have ended, for ranks that are awake.
    ended: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Who is at the meeting that is going on.
    arrived: Vec<Option<Offer>>,
    /// What was brought to the last meeting.
    last: Arc<Vec<Offer>>,
    /// Who is gone, and why.
    gone: Vec<Option<&'static str>>,
    failure: Option<CommunicationError>,
}

/// What a rank brings to a meeting.
#[derive(Debug, Clone)]
struct Offer {
    agreement: Agreement,
    /// Values of the sum, of which `values` may be a part.
    count: usize,
    values: Arc<Vec<f32>>,
}

impl LocalCommunicator {
    /// A group of so many ranks, in order; each goes to a thread of its own.
    pub fn group(ranks: usize) -> Vec<Self> {
        Self::group_with_time_limit(ranks, DEFAULT_TIME_LIMIT)
    }

    /// A group whose ranks wait for each other no longer than `limit`.
    pub fn group_with_time_limit(ranks: usize, limit: Duration) -> Vec<Self> {
        let state = State { arrived: vec![None; ranks], last: Arc::default(), gone: vec![None; ranks], failure: None };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let group = Arc::new(Group { ranks, limit, ended: AtomicU64::new(0), state, changed });
        (0..ranks).map(|rank| Self { rank, group: group.clone() }).collect()
    }

    /// Brings an offer to the next meeting and returns what all ranks brought, in their order.
    fn meet(
        &self,
        agreement: &Agreement,
        count: usize,
        values: Arc<Vec<f32>>,
    ) -> Result<Arc<Vec<Offer>>, CommunicationError> {
        let Group { ranks, limit, ended, changed, .. } = &*self.group;
        let mut state = self.group.lock();
        let meeting = ended.load(Ordering::Acquire);
        state.arrived[self.rank] = Some(Offer { agreement: *agreement, count, values });
        state.look_for_the_gone();
        if let Some(offers) = state.complete() {
            let agreed = agreement.check(offers.iter().map(|offer| offer.agreement.words()));
            let counted = || Agreement::check_counts(offers.iter().map(|offer| offer.count));
            state.failure = agreed.and_then(|()| counted()).err();
            state.last = Arc::new(offers);
        } else if state.failure.is_none() {
            drop(state);
            let start = Instant::now();
            while ended.load(Ordering::Acquire) == meeting && start.elapsed() < AWAKE {
                std::thread::yield_now();
            }
            state = self.group.lock();
            while ended.load(Ordering::Acquire) == meeting && state.failure.is_none() {
                let left = limit.saturating_sub(start.elapsed());
                if left.is_zero() {
                    let missing = (0..*ranks).filter(|&rank| state.arrived[rank].is_none()).collect();
                    state.failure = Some(CommunicationError::TimedOut { missing, ranks: *ranks, limit: *limit });
                    break;
                }
                state = changed.wait_timeout(state, left).map_or_else(|poison| poison.into_inner().0, |woken| woken.0);
            }
            if ended.load(Ordering::Acquire) != meeting {
                // A rank that left or failed behind this meeting does not take back what it brought.
                return Ok(state.last.clone());
            }
        }
        match &state.failure {
            Some(failure) => {
                changed.notify_all();
                Err(failure.clone())
            }
            None => {
                ended.fetch_add(1, Ordering::Release);
                changed.notify_all();
                Ok(state.last.clone())
            }
        }
    }
}

impl Group {
    /// A rank that panicked inside left nothing half done.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What all ranks brought, once the last has come to a group that is whole.
    fn complete(&mut self) -> Option<Vec<Offer>> {
        match self.failure.is_none() && self.arrived.iter().all(Option::is_some) {
            true => Some(self.arrived.iter_mut().filter_map(Option::take).collect()),
            false => None,
        }
    }

    /// A meeting to which somebody will not come has failed.
    fn look_for_the_gone(&mut self) {
        let ranks = self.gone.len();
        let absent = |rank: &usize| self.arrived[*rank].is_none();
        let gone = (0..ranks).filter(absent).find_map(|rank| self.gone[rank].map(|cause| (rank, cause)));
        if let (None, Some((rank, cause)), true) = (&self.failure, gone, self.arrived.iter().any(Option::is_some)) {
            self.failure = Some(CommunicationError::Lost { rank, ranks, cause: cause.into() });
        }
    }
}

impl Communicator for LocalCommunicator {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.group.ranks
    }

    fn all_reduce(&self, agreement: &Agreement, values: &mut [f32]) -> Result<(), CommunicationError> {
        let offers = self.meet(agreement, values.len(), Arc::new(values.to_vec()))?;
        if values.len() <= ADDED_BY_EACH {
            values.copy_from_slice(&sum(&offers, 0..values.len()));
            return Ok(());
        }
        // Every rank adds up a part, and they meet again to hand it round.
        let ranks = self.size();
        let start = |rank: usize| values.len() * rank / ranks;
        let own = sum(&offers, start(self.rank)..start(self.rank + 1));
        drop(offers);
        let parts = self.meet(agreement, values.len(), Arc::new(own))?;
        let mut rest = values;
        for part in parts.iter() {
            let (place, behind) = rest.split_at_mut(part.values.len());
            place.copy_from_slice(&part.values);
            rest = behind;
        }
        Ok(())
    }

    fn barrier(&self, agreement: &Agreement) -> Result<(), CommunicationError> {
        self.meet(agreement, 0, Arc::default()).map(drop)
    }

    fn abort(&self, reason: &str) {
        let mut state = self.group.lock();
        let aborted = || CommunicationError::Aborted { rank: self.rank, reason: reason.into() };
        state.failure.get_or_insert_with(aborted);
        self.group.changed.notify_all();
    }
}

/// The sum of these values of what all ranks brought, in the order of ranks.
fn sum(offers: &[Offer], range: Range<usize>) -> Vec<f32> {
    let mut parts = offers.iter().map(|offer| &offer.values[range.clone()]);
    let mut sum = parts.next().map(<[f32]>::to_vec).unwrap_or_default();
    for part in parts {
        for (sum, value) in sum.iter_mut().zip(part) {
            *sum += value;
        }
    }
    sum
}

impl Drop for LocalCommunicator {
    fn drop(&mut self) {
        let mut state = self.group.lock();
        state.gone[self.rank] = Some(match std::thread::panicking() {
            true => "its thread panicked",
            false => "it was dropped",
        });
        state.look_for_the_gone();
        self.group.changed.notify_all();
    }
}
