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

mod communicator;
mod message;
mod patience;
mod process;
mod sum;

pub use communicator::MpiCommunicator;
