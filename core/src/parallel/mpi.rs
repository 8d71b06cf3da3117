//! Ranks that are processes, on any number of hosts: MPI, the Message Passing Interface.
//!
//! The Cargo feature `mpi` builds against the MPI of the machine, through the crate `mpi`. On Debian and Ubuntu that needs
//!
//! ```text
//! apt install libopenmpi-dev openmpi-bin libclang-dev
//! ```
//!
//! and `openmpi-bin` on every host that runs it. The tests run with Open MPI 4.1.
//!
//! Every process begins with [`MpiCommunicator::world`], and gives the communicator to its attention:
//!
//! ```no_run
//! use burn_deepspeed_core::config::DeepSpeedInferenceConfig;
//! use burn_deepspeed_core::parallel::{Communicator, mpi::MpiCommunicator};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let world = MpiCommunicator::world()?;
//! println!("rank {} of {}", world.rank(), world.size());
//! let config = DeepSpeedInferenceConfig::new(64, 4).for_rank_of(&world);
//! // build the attention of this configuration, and give it the communicator: `with_communicator(Arc::new(world))`
//! # Ok(()) }
//! ```
//!
//! `mpirun` starts as many processes as the group has ranks:
//!
//! ```text
//! mpirun -n 4 target/release/serve                          # on this host
//! mpirun -n 4 --host a:2,b:2 target/release/serve           # two on each of two hosts, which it reaches by ssh
//! mpirun -n 4 --bind-to socket target/release/serve         # with the cores of a socket each
//! ```
//!
//! Open MPI binds each of two processes to one core unless told otherwise, where all threads of a rank then run: `--bind-to
//! none` or `--bind-to socket` gives them more. It does not start more processes than there are cores without
//! `--oversubscribe`, nor as root without `--allow-run-as-root`. The program must be at the same path on every host, and all
//! hosts must have the same byte order. On hosts with several networks, `--mca btl_tcp_if_include 10.0.0.0/24` names the one to
//! use. Without `mpirun` the process is a group of one.
//!
//! Where a job holds several tensor-parallel groups, [`split`](MpiCommunicator::split) makes them out of the world.
//!
//! # Sums
//!
//! All ranks first show each other what they are about to do. Few values (64 Ki with two ranks, 21 Ki with four) travel with
//! that and every rank adds them up; of more, every rank adds up a part and hands it round. Both are messages between two
//! ranks, and values are added in the order of ranks: the bits of a sum do not depend on the MPI, its choice of algorithms, or
//! the network, and are those of the engine `local`.
//!
//! # Waiting
//!
//! MPI works only while it is asked, so a rank that waits keeps its core for 2 ms, the last 1.8 of which others may have, and
//! then sleeps up to 1 ms at a time. Every wait has a limit, 30 s unless
//! [`world_with_time_limit`](MpiCommunicator::world_with_time_limit) or [`with_time_limit`](MpiCommunicator::with_time_limit)
//! says otherwise. It must exceed what one rank may compute, load or compile longer than another between two sums. A long sum
//! waits twice.
//!
//! # What ends how
//!
//! | what happens | the other ranks get |
//! | --- | --- |
//! | a process never calls `world` | `TimedOut` from `world`; Open MPI ends the job if that process ends |
//! | a rank does not come to a sum | `TimedOut` with its number, or `Aborted` by the first that gave up; so does the late rank |
//! | ranks do different things | `Differ`, all of them |
//! | [`abort`](Communicator::abort), or a panic that drops the communicator | `Aborted` with the reason, at once |
//! | MPI reports an error | `Engine` with its text on that rank, `Aborted` on the others |
//! | a process is killed | Open MPI ends the job; with `mpirun --enable-recovery`, `TimedOut` (or `Engine`) |
//!
//! From its first error on, a communicator gives that error to every call; groups of the same process do not share it. A panic
//! drops the communicator only if the thread that panics owns it.
//!
//! With `--enable-recovery`, also `--continuous` or `-mca orte_enable_recovery 1`, those that survive a killed process go on,
//! with shared memory (`--mca btl vader,self`) as well as over TCP (`--mca btl tcp,self`). MPI itself cannot go on: report the
//! error and start the job again. Errors of MPI's own beginning (no common network, say) end the process with a message of MPI.
//!
//! # The end
//!
//! The last communicator of a process that is dropped ends MPI, where all processes meet: one that is early waits for the
//! others, up to the time limit. Where a group failed, or not everybody comes, MPI is left as it is, after a second in which
//! the others can report what they know. `mpirun` takes a process that leaves MPI as it is for a failure: it ends all others
//! (unless `--enable-recovery` is given) and returns an error. So drop the communicators before `main` ends, keep none in a
//! `static`, and do not call [`std::process::exit`] while there are any.
//!
//! Buffers of operations that did not finish are never freed, since MPI may still write to them: a failed group leaks as much
//! memory as its last sum needed.

mod message;
mod patience;
mod process;

use std::ffi::c_int;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use self::message::Message;
use self::patience::Patience;
use self::process::Process;
use super::agreement::{Agreement, Settings};
use super::communicator::{Communicator, DEFAULT_TIME_LIMIT};
use crate::element::ElementType;
use crate::error::CommunicationError;

/// Values from all others together that travel with their agreements, to be added up by every rank. With more, adding up a part
/// and handing it round costs less.
const ADDED_BY_EACH: usize = 64 * 1024;

/// Values of a long sum that are added at a time: they stay in the cache.
const STRETCH: usize = 2048;

/// The number of the first group.
const WORLD: c_int = 1;

/// Words in front of the values: the agreement, and the number of values.
const HEADER: usize = 2 * Agreement::WORDS + 2;

/// Words of a reason to give up, of four bytes each.
const REASON: usize = 256;

/// Words of a message that a rank gave up: how many meetings it had finished, and the length of the reason in bytes, go before.
const NOTICE: usize = 3 + REASON;

type Sent = Message<Arc<Vec<u32>>>;
type Received = Message<Vec<u32>>;

/// One rank of a group of processes; see [the module](self).
///
/// Sums are taken in the order of ranks, in f32, so they have the same bits on each of them and from run to run. The last
/// communicator of a process that is dropped ends MPI.
#[derive(Debug)]
pub struct MpiCommunicator {
    process: Arc<Process>,
    /// The processes of the group, in the order of ranks.
    members: Vec<c_int>,
    rank: usize,
    /// The number of this group, which no process has for two.
    number: c_int,
    /// Meetings that this rank has finished.
    met: AtomicU64,
    limit: Duration,
    failure: OnceLock<CommunicationError>,
    meeting: Mutex<Meeting>,
}

/// What one meeting leaves for the next.
#[derive(Debug, Default)]
struct Meeting {
    /// Who gave up, and how many meetings that rank had finished.
    gave_up: Option<(u64, CommunicationError)>,
    /// Memory of the length that is shown to others.
    blocks: Vec<Vec<u32>>,
    /// Memory for parts of long sums.
    parts: Vec<Vec<u32>>,
}

impl MpiCommunicator {
    /// All processes that were started together; begins MPI.
    ///
    /// # Errors
    /// Those of [`world_with_time_limit`](Self::world_with_time_limit).
    pub fn world() -> Result<Self, CommunicationError> {
        Self::world_with_time_limit(DEFAULT_TIME_LIMIT)
    }

    /// All processes that were started together, which wait for each other no longer than `limit`: now, in every sum, and at
    /// the end.
    ///
    /// # Errors
    /// - [`CommunicationError::Unavailable`] if MPI has begun in this process before, or is built for one thread
    /// - [`CommunicationError::TimedOut`] if not every process comes here. Who is missing is not known that early: all others
    ///   are named.
    pub fn world_with_time_limit(limit: Duration) -> Result<Self, CommunicationError> {
        let process = Process::begin(limit)?;
        let (members, rank) = ((0..process.size).collect(), process.rank as usize);
        let world = Self::group(Arc::new(process), members, rank, WORLD);
        world.barrier(&Agreement::barrier())?; // so that all are connected
        Ok(world)
    }

    /// Waits for the other ranks of this group no longer than `limit`, which may differ from rank to rank.
    pub fn with_time_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The ranks that name the same `group`, in their order. Every rank calls this, like a sum; groups fail one by one.
    ///
    /// # Errors
    /// A [`CommunicationError`].
    pub fn split(&self, group: u32) -> Result<Self, CommunicationError> {
        let what =
            Agreement::sum(&[2], ElementType::F32, &Settings::new([("what splits ranks into groups", &"split")]));
        let mut youngest = self.process.youngest.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = self.meet(|meeting| {
            let blocks = self.show(meeting, &what, &[group, *youngest as u32].map(f32::from_bits))?;
            Ok(blocks.iter().map(|block| (block[HEADER], block[HEADER + 1] as c_int)).collect::<Vec<_>>())
        })?;
        *youngest = 1 + shown.iter().fold(*youngest, |youngest, shown| youngest.max(shown.1));
        let ranks = || (0..self.size()).filter(|&rank| shown[rank].0 == group);
        let members = ranks().map(|rank| self.members[rank]).collect();
        Ok(Self::group(self.process.clone(), members, ranks().take_while(|&rank| rank < self.rank).count(), *youngest))
    }

    fn group(process: Arc<Process>, members: Vec<c_int>, rank: usize, number: c_int) -> Self {
        let (met, failure, meeting) = Default::default();
        let limit = process.limit;
        Self { process, members, rank, number, met, limit, failure, meeting }
    }

    /// Tag of what ranks show and add up.
    fn values(&self) -> c_int {
        2 * self.number
    }

    /// Tag of the message that a rank gave up.
    fn notice(&self) -> c_int {
        2 * self.number + 1
    }

    /// The most values that travel with the agreement; nothing travels from a rank that is alone.
    fn few(&self) -> usize {
        ADDED_BY_EACH.checked_div(self.size() - 1).unwrap_or(usize::MAX)
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let own = self.rank;
        (0..self.members.len()).filter(move |&rank| rank != own)
    }

    fn send(&self, buffer: Arc<Vec<u32>>, rank: usize) -> Result<(usize, Sent), CommunicationError> {
        Ok((rank, Message::send(self.process.link, buffer, self.members[rank], self.values())?))
    }

    fn receive(&self, buffer: Vec<u32>, rank: usize) -> Result<(usize, Received), CommunicationError> {
        Ok((rank, Message::receive(self.process.link, buffer, self.members[rank], self.values())?))
    }

    /// One meeting of all ranks: it ends well, or the group does not go on.
    fn meet<T>(
        &self,
        work: impl FnOnce(&mut Meeting) -> Result<T, CommunicationError>,
    ) -> Result<T, CommunicationError> {
        let mut meeting = self.meeting.lock().unwrap_or_else(PoisonError::into_inner);
        let met = self.check(&meeting).and_then(|()| work(&mut meeting)).and_then(|result| {
            // A rank that comes late meets what the others had sent before they gave up, and behind it that they did.
            self.look(&mut meeting)?;
            Ok(result)
        });
        match met {
            Ok(result) => {
                self.met.fetch_add(1, Ordering::Release);
                Ok(result)
            }
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Shows all ranks what this one is about to do, with `values` where they are few, and returns what each of them shows.
    fn show(
        &self,
        meeting: &mut Meeting,
        agreement: &Agreement,
        values: &[f32],
    ) -> Result<Vec<Vec<u32>>, CommunicationError> {
        let mut spare = std::mem::take(&mut meeting.blocks);
        let mut own = if spare.is_empty() { Vec::new() } else { spare.remove(self.rank) };
        let mut spare = spare.into_iter();
        own.clear();
        own.extend(
            agreement
                .words()
                .iter()
                .chain([&(values.len() as u64)])
                .flat_map(|&word| [word as u32, (word >> 32) as u32]),
        );
        if values.len() <= self.few() {
            own.extend(values.iter().map(|value| value.to_bits()));
        }
        let arriving = self.others().map(|rank| {
            let mut block = spare.next().unwrap_or_default();
            block.resize(HEADER + self.few(), 0);
            self.receive(block, rank)
        });
        let arriving = arriving.collect::<Result<_, _>>()?;
        let own = Arc::new(own);
        let leaving = self.others().map(|rank| self.send(own.clone(), rank)).collect::<Result<_, _>>()?;
        let mut blocks = self.complete(meeting, arriving)?;
        drop(self.complete(meeting, leaving)?);
        blocks.insert(self.rank, Arc::unwrap_or_clone(own));

        let number = |block: &[u32], at: usize| u64::from(block[2 * at]) | u64::from(block[2 * at + 1]) << 32;
        let words: Vec<_> = blocks.iter().map(|block| std::array::from_fn(|at| number(block, at))).collect();
        agreement.check(&words)?;
        Agreement::check_counts(blocks.iter().map(|block| number(block, Agreement::WORDS) as usize))?;
        Ok(blocks)
    }

    /// Every rank adds up a part, and hands it round.
    fn add_by_parts(&self, meeting: &mut Meeting, values: &mut [f32]) -> Result<(), CommunicationError> {
        let start = |rank: usize| values.len() * rank / self.size();
        let part = |rank: usize| start(rank)..start(rank + 1);
        let parts: Vec<Range<usize>> = (0..self.size()).map(part).collect();
        let own = parts[self.rank].clone();

        let arriving =
            self.others().map(|rank| self.receive(meeting.part(own.len()), rank)).collect::<Result<_, _>>()?;
        let leaving = self.others().map(|rank| {
            let mut part = meeting.part(0);
            part.extend(values[parts[rank].clone()].iter().map(|value| value.to_bits()));
            self.send(Arc::new(part), rank)
        });
        let leaving = leaving.collect::<Result<_, _>>()?;
        let arrived = self.complete(meeting, arriving)?;
        let (mut sum, mut kept) = (meeting.part(0), Vec::with_capacity(STRETCH));
        for start in own.clone().step_by(STRETCH) {
            let stretch = start..own.end.min(start + STRETCH);
            let place = start - own.start..stretch.end - own.start;
            let values = &mut values[stretch];
            kept.clear();
            kept.extend(values.iter().map(|value| value.to_bits()));
            let mut others = arrived.iter().map(|part| &part[place.clone()]);
            let parts =
                (0..self.size()).filter_map(|rank| if rank == self.rank { Some(&kept[..]) } else { others.next() });
            add(parts, values);
            sum.extend(values.iter().map(|value| value.to_bits()));
        }
        meeting.parts.extend(arrived);

        let sum = Arc::new(sum);
        let arriving = self.others().map(|rank| self.receive(meeting.part(parts[rank].len()), rank));
        let arriving = arriving.collect::<Result<_, _>>()?;
        let handed = self.others().map(|rank| self.send(sum.clone(), rank)).collect::<Result<_, _>>()?;
        for (rank, sum) in self.others().zip(self.complete(meeting, arriving)?) {
            for (value, bits) in values[parts[rank].clone()].iter_mut().zip(&sum) {
                *value = f32::from_bits(*bits);
            }
            meeting.parts.push(sum);
        }
        let left = self.complete(meeting, leaving)?;
        meeting.parts.extend(left.into_iter().map(Arc::unwrap_or_clone));
        drop(self.complete(meeting, handed)?);
        meeting.parts.push(Arc::unwrap_or_clone(sum));
        Ok(())
    }

    /// Waits until all messages are through, and returns their buffers.
    fn complete<B>(
        &self,
        meeting: &mut Meeting,
        mut messages: Vec<(usize, Message<B>)>,
    ) -> Result<Vec<B>, CommunicationError> {
        let mut patience = Patience::new(self.limit);
        for at in 0..messages.len() {
            while !messages[at].1.is_done()? {
                self.look(meeting)?;
                if !patience.pause() {
                    let missing =
                        messages.iter_mut().filter_map(|(rank, message)| (!message.is_done().ok()?).then_some(*rank));
                    let (missing, ranks, limit) = (missing.collect(), self.size(), self.limit);
                    return Err(CommunicationError::TimedOut { missing, ranks, limit });
                }
            }
        }
        Ok(messages.into_iter().filter_map(|(_, message)| message.into_buffer()).collect())
    }

    /// Takes the messages of ranks that gave up.
    fn look(&self, meeting: &mut Meeting) -> Result<(), CommunicationError> {
        while let Some(process) = self.process.link.sender(self.notice())? {
            let mut message = Message::receive(self.process.link, vec![0; NOTICE], process, self.notice())?;
            message.is_done_soon();
            let notice = message.into_buffer().unwrap_or_else(|| vec![0; NOTICE]);
            let met = u64::from(notice[0]) | u64::from(notice[1]) << 32;
            let text: Vec<u8> =
                notice[3..].iter().flat_map(|word| word.to_le_bytes()).take(notice[2] as usize).collect();
            let rank = self.members.iter().take_while(|&&member| member != process).count();
            let error = CommunicationError::Aborted { rank, reason: String::from_utf8_lossy(&text).into_owned() };
            if meeting.gave_up.as_ref().is_none_or(|(earlier, _)| met < *earlier) {
                meeting.gave_up = Some((met, error));
            }
        }
        self.check(meeting)
    }

    /// Whether the group goes on, as far as this rank knows.
    fn check(&self, meeting: &Meeting) -> Result<(), CommunicationError> {
        match (self.failure.get(), &meeting.gave_up) {
            (Some(failure), _) => Err(failure.clone()),
            // What a rank brought to the meetings that it finished still counts.
            (None, Some((met, error))) if *met <= self.met.load(Ordering::Acquire) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Ends the group with its first error, which the others hear of if they cannot know it.
    fn fail(&self, error: CommunicationError) -> CommunicationError {
        let known = matches!(error, CommunicationError::Differ { .. } | CommunicationError::Aborted { .. });
        let text = error.to_string();
        let fact = text.split(';').next().unwrap_or_default();
        self.end(error, (!known).then_some(fact))
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

    /// Sends every rank a reason to give up. It is short enough for MPI not to wait for the receiver.
    fn tell(&self, reason: &str) {
        let reason = &reason.as_bytes()[..reason.floor_char_boundary(4 * REASON)];
        let met = self.met.load(Ordering::Acquire);
        let mut notice = vec![met as u32, (met >> 32) as u32, reason.len() as u32];
        notice.extend(reason.chunks(4).map(|bytes| {
            let mut word = [0; 4];
            word[..bytes.len()].copy_from_slice(bytes);
            u32::from_le_bytes(word)
        }));
        let notice = Arc::new(notice);
        let send =
            |rank: usize| Message::send(self.process.link, notice.clone(), self.members[rank], self.notice()).ok();
        let sent: Vec<_> = self.others().filter_map(send).collect();
        for mut message in sent {
            message.is_done_soon();
        }
    }
}

impl Meeting {
    /// Memory for so many values of a part.
    fn part(&mut self, values: usize) -> Vec<u32> {
        let mut part = self.parts.pop().unwrap_or_default();
        part.resize(values, 0);
        part
    }
}

/// The sum of parts, in the order of ranks.
fn add<'a>(mut parts: impl Iterator<Item = &'a [u32]>, sum: &mut [f32]) {
    for (sum, bits) in sum.iter_mut().zip(parts.next().unwrap_or_default()) {
        *sum = f32::from_bits(*bits);
    }
    for part in parts {
        for (sum, bits) in sum.iter_mut().zip(part) {
            *sum += f32::from_bits(*bits);
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
        self.meet(|meeting| {
            let blocks = self.show(meeting, agreement, values)?;
            let end = HEADER + values.len();
            if values.len() <= self.few() {
                add(blocks.iter().map(|block| &block[HEADER..end]), values);
            } else {
                self.add_by_parts(meeting, values)?;
            }
            meeting.blocks = blocks;
            Ok(())
        })
    }

    fn barrier(&self, agreement: &Agreement) -> Result<(), CommunicationError> {
        self.meet(|meeting| {
            meeting.blocks = self.show(meeting, agreement, &[])?;
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
