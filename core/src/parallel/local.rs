//! Ranks that are threads of one process: for tests, and for machines with several sockets.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::agreement::Agreement;
use super::communicator::{Communicator, DEFAULT_TIME_LIMIT};
use crate::error::CommunicationError;

/// Up to this number of values every rank computes the whole sum. A second exchange would cost more than it saves.
const ADDED_BY_EACH: usize = 16 * 1024;

/// How long a rank polls for the others before it sleeps.
const AWAKE: Duration = Duration::from_micros(50);

/// One rank of a group of threads.
///
/// Sums are taken in the order of ranks, in f32, so they have the same bits on each of them and from run to run. If a rank
/// is dropped (its thread ended or panicked), the others get an error at once.
///
/// Give each rank its own threads with `burn_deepspeed::Parallelism`; otherwise the CPU kernels of all ranks share one pool.
#[derive(Debug)]
pub struct LocalCommunicator {
    rank: usize,
    group: Arc<Group>,
}

#[derive(Debug)]
struct Group {
    ranks: usize,
    limit: Duration,
    /// Number of completed exchanges, which polling ranks read without the lock.
    ended: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Offers of the current exchange, by rank.
    arrived: Vec<Option<Offer>>,
    /// Offers of the last complete exchange.
    last: Arc<Vec<Offer>>,
    /// Why a rank has left, by rank.
    gone: Vec<Option<&'static str>>,
    failure: Option<CommunicationError>,
}

/// What a rank contributes to an exchange.
#[derive(Debug, Clone)]
struct Offer {
    agreement: Agreement,
    /// Number of values of the sum; `values` may be a part of them.
    count: usize,
    values: Arc<Vec<f32>>,
}

impl LocalCommunicator {
    /// A group of `ranks` ranks, in order; move each to its own thread.
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

    /// Contributes an offer to the next exchange and returns the offers of all ranks, in their order.
    fn exchange(
        &self,
        agreement: &Agreement,
        count: usize,
        values: Arc<Vec<f32>>,
    ) -> Result<Arc<Vec<Offer>>, CommunicationError> {
        let Group { ranks, limit, ended, changed, .. } = &*self.group;
        let mut state = self.group.lock();
        let exchange = ended.load(Ordering::Acquire);
        state.arrived[self.rank] = Some(Offer { agreement: *agreement, count, values });
        state.fail_if_a_rank_left();
        if let Some(offers) = state.complete() {
            let agreed = agreement.check(offers.iter().map(|offer| offer.agreement.words()));
            let counted = || Agreement::check_counts(offers.iter().map(|offer| offer.count));
            state.failure = agreed.and_then(|()| counted()).err();
            state.last = Arc::new(offers);
        } else if state.failure.is_none() {
            drop(state);
            let start = Instant::now();
            while ended.load(Ordering::Acquire) == exchange && start.elapsed() < AWAKE {
                std::thread::yield_now();
            }
            state = self.group.lock();
            while ended.load(Ordering::Acquire) == exchange && state.failure.is_none() {
                let left = limit.saturating_sub(start.elapsed());
                if left.is_zero() {
                    let missing = (0..*ranks).filter(|&rank| state.arrived[rank].is_none()).collect();
                    state.failure = Some(CommunicationError::TimedOut { missing, ranks: *ranks, limit: *limit });
                    break;
                }
                state = changed.wait_timeout(state, left).map_or_else(|poison| poison.into_inner().0, |woken| woken.0);
            }
            if ended.load(Ordering::Acquire) != exchange {
                // A rank that left or failed after this exchange does not withdraw its offer.
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
    /// A rank that panicked with the lock left no partial change.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The offers of all ranks, once the last has arrived and none has failed.
    fn complete(&mut self) -> Option<Vec<Offer>> {
        match self.failure.is_none() && self.arrived.iter().all(Option::is_some) {
            true => Some(self.arrived.iter_mut().filter_map(Option::take).collect()),
            false => None,
        }
    }

    /// Fails the exchange if a missing rank has left.
    fn fail_if_a_rank_left(&mut self) {
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
        let offers = self.exchange(agreement, values.len(), Arc::new(values.to_vec()))?;
        if values.len() <= ADDED_BY_EACH {
            values.copy_from_slice(&sum(&offers, 0..values.len()));
            return Ok(());
        }
        // Every rank adds a part; a second exchange distributes the parts.
        let ranks = self.size();
        let start = |rank: usize| values.len() * rank / ranks;
        let own = sum(&offers, start(self.rank)..start(self.rank + 1));
        drop(offers);
        let parts = self.exchange(agreement, values.len(), Arc::new(own))?;
        let mut rest = values;
        for part in parts.iter() {
            let (place, following) = rest.split_at_mut(part.values.len());
            place.copy_from_slice(&part.values);
            rest = following;
        }
        Ok(())
    }

    fn barrier(&self, agreement: &Agreement) -> Result<(), CommunicationError> {
        self.exchange(agreement, 0, Arc::default()).map(drop)
    }

    fn abort(&self, reason: &str) {
        let mut state = self.group.lock();
        let aborted = || CommunicationError::Aborted { rank: self.rank, reason: reason.into() };
        state.failure.get_or_insert_with(aborted);
        self.group.changed.notify_all();
    }
}

/// The sum of a range of the values of all ranks, in the order of ranks.
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
        state.fail_if_a_rank_left();
        self.group.changed.notify_all();
    }
}
