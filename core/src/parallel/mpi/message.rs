//! A message between two processes, and who owns its memory until it is done.

use std::ffi::{CStr, c_char, c_int};
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::mpi::ffi;
use ::mpi::raw::AsRaw;
use ::mpi::topology::SimpleCommunicator;
use ::mpi::traits::Communicator as _;

use super::patience::Patience;
use crate::error::CommunicationError;

/// `MPI_THREAD_SERIALIZED`: one thread at a time calls MPI.
static MPI: Mutex<()> = Mutex::new(());

/// How long to wait for a message that was announced, or whose receiver may have left.
const BRIEFLY: Duration = Duration::from_millis(100);

pub(super) fn lock() -> MutexGuard<'static, ()> {
    MPI.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A communicator of MPI over all processes, used for nothing else. MPI frees it when it is finalised.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link(ffi::MPI_Comm);

// SAFETY: the handle never changes, and every call that passes it to MPI holds the lock.
unsafe impl Send for Link {}
// SAFETY: as above.
unsafe impl Sync for Link {}

impl Link {
    /// Made by all processes together.
    pub fn new(world: &SimpleCommunicator) -> Result<Self, CommunicationError> {
        let _lock = lock();
        let copy = world.duplicate();
        let link = Self(copy.as_raw());
        std::mem::forget(copy);
        // SAFETY: a communicator that was just made, and a constant of MPI.
        checked(unsafe { ffi::MPI_Comm_set_errhandler(link.0, ffi::RSMPI_ERRORS_RETURN) })?;
        Ok(link)
    }

    /// The sender of a message with this tag that has not been received yet.
    pub fn sender(self, tag: c_int) -> Result<Option<c_int>, CommunicationError> {
        let (mut found, mut status) = (0, MaybeUninit::<ffi::MPI_Status>::zeroed());
        let _lock = lock();
        // SAFETY: both outputs outlive the call.
        checked(unsafe { ffi::MPI_Iprobe(ffi::RSMPI_ANY_SOURCE, tag, self.0, &mut found, status.as_mut_ptr()) })?;
        // SAFETY: the status is a C struct of numbers, valid as zeros, and MPI wrote it where it found a message.
        Ok((found != 0).then(|| unsafe { status.assume_init() }.MPI_SOURCE))
    }
}

/// Words that MPI may read or write until the message is done. A message that is dropped earlier leaks its buffer, because
/// unfinished operations cannot be cancelled reliably.
#[derive(Debug)]
pub(super) struct Message<B> {
    request: ffi::MPI_Request,
    /// `None` only while the message is taken apart.
    buffer: Option<B>,
    done: bool,
}

impl Message<Arc<Vec<u32>>> {
    /// Sends a buffer, which cannot change while it is shared.
    pub fn send(link: Link, buffer: Arc<Vec<u32>>, to: c_int, tag: c_int) -> Result<Self, CommunicationError> {
        let (count, from, mut request) = (count(&buffer)?, buffer.as_ptr().cast(), MaybeUninit::uninit());
        let _lock = lock();
        // SAFETY: `from` starts `count` words on the heap that stay where they are, unchanged, while `buffer` is held: until
        // the message is done, or for ever.
        checked(unsafe { ffi::MPI_Isend(from, count, ffi::RSMPI_UINT32_T, to, tag, link.0, request.as_mut_ptr()) })?;
        // SAFETY: MPI wrote the request.
        Ok(Self { request: unsafe { request.assume_init() }, buffer: Some(buffer), done: false })
    }
}

impl Message<Vec<u32>> {
    /// Receives at most as many words as the buffer has.
    pub fn receive(link: Link, mut buffer: Vec<u32>, from: c_int, tag: c_int) -> Result<Self, CommunicationError> {
        let (count, to, mut request) = (count(&buffer)?, buffer.as_mut_ptr().cast(), MaybeUninit::uninit());
        let _lock = lock();
        // SAFETY: `to` starts `count` words on the heap that stay where they are while `buffer` is held, and `buffer` is not
        // looked at before the message is done.
        checked(unsafe { ffi::MPI_Irecv(to, count, ffi::RSMPI_UINT32_T, from, tag, link.0, request.as_mut_ptr()) })?;
        // SAFETY: MPI wrote the request.
        Ok(Self { request: unsafe { request.assume_init() }, buffer: Some(buffer), done: false })
    }
}

impl<B> Message<B> {
    /// Lets MPI make progress, and returns whether this message is done.
    pub fn is_done(&mut self) -> Result<bool, CommunicationError> {
        if !self.done {
            let mut done = 0;
            let _lock = lock();
            // SAFETY: the request is one that MPI made and that is not done.
            checked(unsafe { ffi::MPI_Test(&mut self.request, &mut done, ffi::RSMPI_STATUS_IGNORE) })?;
            self.done = done != 0;
        }
        Ok(self.done)
    }

    /// The buffer of a message that is done.
    pub fn into_buffer(mut self) -> Option<B> {
        if self.done { self.buffer.take() } else { None }
    }

    /// Waits briefly, for a message that should be done soon or may never be.
    pub fn is_done_soon(&mut self) -> bool {
        let mut patience = Patience::new(BRIEFLY);
        loop {
            match self.is_done() {
                Ok(false) if patience.pause() => {}
                done => return done.unwrap_or(false),
            }
        }
    }
}

impl<B> Drop for Message<B> {
    fn drop(&mut self) {
        if !self.done {
            std::mem::forget(self.buffer.take());
        }
    }
}

fn count(buffer: &[u32]) -> Result<c_int, CommunicationError> {
    c_int::try_from(buffer.len()).map_err(|_| CommunicationError::Engine {
        engine: "MPI",
        cause: format!("{} values for one rank, and a message holds {}; add smaller tensors", buffer.len(), c_int::MAX),
    })
}

fn checked(code: c_int) -> Result<(), CommunicationError> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let (mut text, mut length) = ([0 as c_char; ffi::MPI_MAX_ERROR_STRING as usize + 1], 0);
    // SAFETY: the text has as many places as MPI may write, and one more that stays 0. The caller holds the lock.
    let cause = match unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr(), &mut length) } {
        // SAFETY: it ends with a 0.
        0 => unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned(),
        _ => format!("error {code}"),
    };
    Err(CommunicationError::Engine { engine: "MPI", cause })
}
