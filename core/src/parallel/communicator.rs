//! What an engine provides: a rank, a sum, a barrier, and an abort.

use std::fmt::Debug;
use std::time::Duration;

use super::agreement::Agreement;
use crate::error::CommunicationError;

/// Default time that a rank waits for the others: 30 s.
pub const DEFAULT_TIME_LIMIT: Duration = Duration::from_secs(30);

/// One rank's end of an engine that connects the ranks of a tensor-parallel group.
///
/// Every rank makes the same calls in the same order. If one of them dies, never arrives or does something else, all ranks get
/// an error within the engine's time limit, and every later call returns that error. No rank is left waiting, and none gets an
/// incomplete sum.
///
/// A rank that fails by itself and will not join the next sum calls [`abort`](Self::abort), so that the others do not wait for
/// the time limit.
pub trait Communicator: Debug + Send + Sync {
    /// This rank in its group, counted from 0.
    fn rank(&self) -> usize;

    /// Ranks of the group.
    fn size(&self) -> usize;

    /// Replaces `values` by their sum over all ranks, which has the same bits on each of them.
    ///
    /// # Errors
    /// A [`CommunicationError`]; the contents of `values` are then unspecified.
    fn all_reduce(&self, agreement: &Agreement, values: &mut [f32]) -> Result<(), CommunicationError>;

    /// Waits until every rank has arrived with an equal agreement.
    ///
    /// # Errors
    /// A [`CommunicationError`].
    fn barrier(&self, agreement: &Agreement) -> Result<(), CommunicationError>;

    /// Ends the group: the pending call and all later calls of the other ranks return [`CommunicationError::Aborted`] with this
    /// reason.
    fn abort(&self, reason: &str);

    /// The devices of all ranks in order, if tensors are added between devices without the host.
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
