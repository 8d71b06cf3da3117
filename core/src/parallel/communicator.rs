//! What an engine gives: a rank, a sum, a barrier, and a way out.

use std::fmt::Debug;
use std::time::Duration;

use super::agreement::Agreement;
use crate::error::CommunicationError;

/// How long a rank waits for the others, unless the engine is told otherwise: 30 s.
pub const DEFAULT_TIME_LIMIT: Duration = Duration::from_secs(30);

/// One rank's end of an engine that connects the ranks of a tensor-parallel group.
///
/// Every rank makes the same calls in the same order. Whatever goes wrong on one of them (it dies, it never comes, it is about
/// to do something else) is an error on all of them, within the engine's time limit; from then on every call is that error.
/// No rank is left waiting, and none gets a sum to which another did not add.
///
/// A rank that fails by itself and will not come to the next sum calls [`abort`](Self::abort), so that the others need not
/// wait for their limit.
pub trait Communicator: Debug + Send + Sync {
    /// This rank in its group, counted from 0.
    fn rank(&self) -> usize;

    /// Ranks of the group.
    fn size(&self) -> usize;

    /// Replaces `values` by their sum over all ranks, which has the same bits on each of them.
    ///
    /// # Errors
    /// A [`CommunicationError`]; what `values` hold then is not said.
    fn all_reduce(&self, agreement: &Agreement, values: &mut [f32]) -> Result<(), CommunicationError>;

    /// Waits until every rank is here, about to do the same.
    ///
    /// # Errors
    /// A [`CommunicationError`].
    fn barrier(&self, agreement: &Agreement) -> Result<(), CommunicationError>;

    /// Ends the group: what the other ranks wait for, and whatever they call from now on, is
    /// [`CommunicationError::Aborted`] with this reason.
    fn abort(&self, reason: &str);

    /// The devices of all ranks in order, if tensors are added between these without passing through the host.
    fn devices(&self) -> Option<&[DeviceNumber]> {
        None
    }
}

/// A device, as the framework numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    /// The kind of device.
    pub kind: u16,
    /// The index of the device among those of its kind.
    pub index: u16,
}
