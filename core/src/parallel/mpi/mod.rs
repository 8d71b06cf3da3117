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
//! Every process starts with [`MpiCommunicator::world`] and gives the communicator to its attention:
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
//! `mpirun` starts one process per rank:
//!
//! ```text
//! mpirun -n 4 target/release/serve                          # on this host
//! mpirun -n 4 --host a:2,b:2 target/release/serve           # two on each of two hosts, through ssh
//! mpirun -n 4 --bind-to socket target/release/serve         # each with the cores of one socket
//! ```
//!
//! By default Open MPI binds each of two processes to one core, which all threads of the rank then share; `--bind-to none` or
//! `--bind-to socket` gives them more. It needs `--oversubscribe` to start more processes than there are cores, and
//! `--allow-run-as-root` to run as root. The program must be at the same path on every host, and all
//! hosts must have the same byte order. On hosts with several networks, `--mca btl_tcp_if_include 10.0.0.0/24` selects
//! one. Without `mpirun` the process is a group of one.
//!
//! If a job has several tensor-parallel groups, [`split`](MpiCommunicator::split) makes them from the world.
//!
//! # Sums
//!
//! All ranks first tell each other what they are about to do. Few values (64 Ki with two ranks, 21 Ki with four) are sent along,
//! and every rank computes the whole sum. For more values every rank adds a part and sends it to the others. Both use messages
//! between two ranks, and values are added in the order of ranks. So the bits of a sum do not depend on the MPI, its algorithms
//! or the network, and equal those of the engine `local`.
//!
//! # Waiting
//!
//! MPI makes progress only when it is polled. A waiting rank polls for 0.2 ms, yields its core between polls up to 2 ms, and then
//! sleeps up to 1 ms at a time. Every wait has a limit, 30 s unless
//! [`world_with_time_limit`](MpiCommunicator::world_with_time_limit) or [`with_time_limit`](MpiCommunicator::with_time_limit)
//! sets another. It must exceed the time by which one rank may be slower than another between two sums, including loading and
//! compiling. A long sum waits twice.
//!
//! # Failures
//!
//! | what happens | the other ranks get |
//! | --- | --- |
//! | a process never calls `world` | `TimedOut` from `world`; Open MPI ends the job if that process ends |
//! | a rank does not join a sum | `TimedOut` with its number, or `Aborted` by the first that gave up; so does the late rank |
//! | ranks do different things | `Differ`, all of them |
//! | [`abort`](crate::parallel::Communicator::abort), or a panic that drops the communicator | `Aborted` with the reason, at once |
//! | MPI reports an error | `Engine` with its text on that rank, `Aborted` on the others |
//! | a process is killed | Open MPI ends the job; with `mpirun --enable-recovery`, `TimedOut` (or `Engine`) |
//!
//! After its first error a communicator returns that error from every call; other groups of the process are not affected. A panic
//! drops the communicator only if the panicking thread owns it.
//!
//! With `--enable-recovery`, also `--continuous` or `-mca orte_enable_recovery 1`, the survivors of a killed process continue,
//! with shared memory (`--mca btl vader,self`) as well as over TCP (`--mca btl tcp,self`). MPI itself cannot continue:
//! report the error and restart the job. If MPI cannot be initialised (for example without a common network), it ends the process
//! with its own message.
//!
//! # The end
//!
//! Dropping the last communicator of a process finalises MPI, which waits for all processes up to the time limit. If a group failed
//! or a process is missing, MPI is not finalised; the process stays for a second so that the others can report what they know.
//! `mpirun` treats a process that does not finalise MPI as failed: it ends all others (unless `--enable-recovery` is given) and
//! returns an error. So drop all communicators before `main` returns, keep none in a `static`, and do not call
//! [`std::process::exit`] while one exists.
//!
//! Buffers of unfinished operations are never freed, because MPI may still write to them: a failed group leaks the memory of its
//! last sum.

mod communicator;
mod message;
mod patience;
mod process;
mod sum;

pub use communicator::MpiCommunicator;
