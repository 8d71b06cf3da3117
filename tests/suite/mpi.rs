//! Ranks that are processes: what they add up, and how all of them end if something happens to one.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use burn_deepspeed::parallel::mpi::MpiCommunicator;
use burn_deepspeed::parallel::{AgreedSettings, Agreement, Communicator};
use burn_deepspeed::{CommunicationError, ElementType, InferenceBackend, Operations};

use crate::common::{AnyBackend, seeded, values};

/// The scenarios that the processes of a job run.
const SCENARIO: &str = "BURN_DEEPSPEED_MPI_SCENARIO";

const SHARED_MEMORY: &[&str] = &["--mca", "btl", "vader,self"];
const TCP: &[&str] = &["--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "lo"];
const SURVIVE: &[&str] = &["--enable-recovery"];

/// Long enough for processes to start on a busy machine.
const START: Duration = Duration::from_secs(20);

/// How long ranks wait for one that will not come.
const SHORT: Duration = Duration::from_secs(1);

/// No job takes so long.
const DEADLINE: Duration = Duration::from_secs(40);

/// One job at a time: the machine may have two cores.
static JOBS: Mutex<()> = Mutex::new(());

/// The result of a job.
struct Job {
    well: bool,
    took: Duration,
    output: String,
}

impl Job {
    /// Runs a scenario on several processes, and kills it if it does not end.
    #[track_caller]
    fn run(scenario: &str, ranks: usize, options: &[&[&str]]) -> Self {
        let _one = JOBS.lock().unwrap_or_else(PoisonError::into_inner);
        let start = Instant::now();
        let mut mpirun = Command::new("mpirun")
            .args(["--allow-run-as-root", "--oversubscribe", "-n", &ranks.to_string()])
            .args(options.concat())
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "mpi::as_a_rank", "--ignored", "--nocapture", "--test-threads=1"])
            .env(SCENARIO, scenario)
            .stdin(Stdio::null())
            .env("RUST_BACKTRACE", "0")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("`mpirun` does not start ({error}): install Open MPI (`apt install openmpi-bin`)")
            });
        let (stdout, stderr) = (all_of(mpirun.stdout.take().unwrap()), all_of(mpirun.stderr.take().unwrap()));
        let status = loop {
            if let Some(status) = mpirun.try_wait().unwrap() {
                break status;
            }
            if start.elapsed() > DEADLINE {
                mpirun.kill().unwrap();
                mpirun.wait().unwrap();
                let (output, errors) = (stdout.join().unwrap(), stderr.join().unwrap());
                panic!(
                    "{scenario} on {ranks} processes {options:?} has not ended after {DEADLINE:?}:\n{output}\n{errors}"
                );
            }
            sleep(Duration::from_millis(10));
        };
        let (took, output, errors) = (start.elapsed(), stdout.join().unwrap(), stderr.join().unwrap());
        println!("{scenario} on {ranks} processes {options:?} took {took:?}:\n{output}\n{errors}");
        Self { well: status.success(), took, output }
    }

    /// The lines of a rank, in order.
    fn said(&self, rank: usize) -> Vec<&str> {
        let mark = format!("@{rank} ");
        self.output.lines().filter_map(|line| Some(line.split_once(&mark)?.1)).collect()
    }
}

/// Reads a stream to its end, on a separate thread.
fn all_of(mut stream: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// A line for the test that started this process, in one piece.
fn say(rank: usize, what: impl std::fmt::Display) {
    println!("{}", format_args!("@{rank} {what}"));
}

fn sum(length: usize) -> Agreement {
    Agreement::sum(&[length], ElementType::F32, &AgreedSettings::NONE)
}

fn world() -> MpiCommunicator {
    MpiCommunicator::world_with_time_limit(START).unwrap()
}

#[test]
#[ignore = "one of the processes that the other tests start"]
fn as_a_rank() {
    match std::env::var(SCENARIO).as_deref() {
        Ok("sums") => sums(),
        Ok("groups") => groups(),
        Ok("failures") => failures(),
        Ok("absent") => absent(),
        Ok("killed") => killed(),
        Ok("panicked") => panicked(),
        _ => {}
    }
}

fn sums() {
    let world = world();
    let (rank, ranks) = (world.rank(), world.size());
    for length in [0, 1, 7, 4096, 40_000, 1_000_000] {
        let part = |rank: usize| (0..length).map(move |at| ((at * 37 + rank * 101) % 1009) as f32 / 1009.0 - 0.3);
        let mut values: Vec<f32> = part(rank).collect();
        world.all_reduce(&sum(length), &mut values).unwrap();
        let mut parts: Vec<_> = (0..ranks).map(part).collect();
        let mut bits = 0xcbf2_9ce4_8422_2325u64;
        for value in values {
            let expected: f64 = parts.iter_mut().map(|part| f64::from(part.next().unwrap())).sum();
            assert!((f64::from(value) - expected).abs() < 1e-6, "{value} and {expected}");
            bits = (bits ^ u64::from(value.to_bits())).wrapping_mul(0x0000_0100_0000_01b3);
        }
        say(rank, format_args!("{length} values: {bits:x}"));
    }
    // Many in a row: no rank takes the values of another sum.
    for round in 0..300 {
        let mut values = vec![(round * ranks + rank) as f32; if round % 50 == 0 { 40_000 } else { 3 }];
        world.all_reduce(&sum(values.len()), &mut values).unwrap();
        let expected = (ranks * ranks * round + ranks * (ranks - 1) / 2) as f32;
        assert!(values.iter().all(|&value| value == expected), "round {round}");
        if round % 7 == 0 {
            world.barrier(&Agreement::barrier()).unwrap();
        }
    }
    let part = |rank: usize| seeded::<AnyBackend, 2>([2, 65], 10 + rank as u64);
    let total =
        values(<AnyBackend as InferenceBackend>::Ops::all_reduce(part(rank), &world, &AgreedSettings::NONE).unwrap());
    let expected = (1..ranks).fold(part(0), |sum, rank| sum + part(rank));
    assert_eq!(total, values(expected));
    say(rank, "done");
}

#[track_caller]
fn sums_are_those_of_plain_addition(ranks: usize, transport: &[&str]) {
    let job = Job::run("sums", ranks, &[transport]);
    assert!(job.well, "MPI did not end");
    for rank in 0..ranks {
        assert_eq!(job.said(rank).last(), Some(&"done"));
        assert_eq!(job.said(rank), job.said(0), "rank {rank} has other bits");
    }
}

#[test]
fn two_processes_add_in_shared_memory() {
    sums_are_those_of_plain_addition(2, SHARED_MEMORY);
}

#[test]
fn three_processes_add_over_tcp() {
    sums_are_those_of_plain_addition(3, TCP);
}

#[test]
fn four_processes_add_in_shared_memory() {
    sums_are_those_of_plain_addition(4, SHARED_MEMORY);
}

#[test]
fn four_processes_add_over_tcp() {
    sums_are_those_of_plain_addition(4, TCP);
}

fn groups() {
    let world = world();
    let rank = world.rank();
    let group = world.split(rank as u32 % 2).unwrap();
    assert_eq!((group.rank(), group.size()), (rank / 2, 2));
    for round in 0..20 {
        let mut own = [(rank + round) as f32; 5];
        group.all_reduce(&sum(5), &mut own).unwrap();
        assert_eq!(own, [(2 * (rank % 2) + 2 + 2 * round) as f32; 5]); // 0 + 2, or 1 + 3
        let mut all = [rank as f32];
        world.all_reduce(&sum(1), &mut all).unwrap();
        assert_eq!(all, [6.0]);
    }
    // A group of one of the groups, and of all again: no rank takes the values of another group.
    let alone = if rank.is_multiple_of(2) { Some(group.split(rank as u32).unwrap()) } else { None };
    let regrouped = world.split(u32::from(rank == 3)).unwrap();
    let (mut all, mut own, mut one) = ([1.0], [1.0], [1.0]);
    regrouped.all_reduce(&sum(1), &mut all).unwrap();
    group.all_reduce(&sum(1), &mut own).unwrap();
    if let Some(alone) = &alone {
        alone.all_reduce(&sum(1), &mut one).unwrap();
    }
    assert_eq!((all, own, one), (if rank == 3 { [1.0] } else { [3.0] }, [2.0], [1.0]));
    say(rank, MpiCommunicator::world().unwrap_err());
}

#[test]
fn four_processes_are_two_groups() {
    let job = Job::run("groups", 4, &[SHARED_MEMORY]);
    assert!(job.well, "MPI did not end");
    for rank in 0..4 {
        let again = "MPI cannot be used: it was initialised in this process before; share or `split` that communicator";
        assert_eq!(job.said(rank), [again]);
    }
}

/// Everything that ends a group and leaves its processes alive, each in a separate group.
fn failures() {
    let world = world();
    let (rank, ranks) = (world.rank(), world.size());
    let last = ranks - 1;
    let group = || world.split(0).unwrap().with_time_limit(SHORT);
    let late = |yes: bool| {
        if yes {
            sleep(SHORT / 4)
        }
    };

    let settings = |layer: usize| AgreedSettings::new([("the layer", &layer)]);
    let adds = |shape: &[usize], dtype, settings: &AgreedSettings| Agreement::sum(shape, dtype, settings);
    let first = adds(&[1, 5, 8], ElementType::F32, &settings(3));
    for (other, length, difference) in [
        (
            adds(&[1, 4, 8], ElementType::F32, &settings(3)),
            32,
            "rank 0 adds [1, 5, 8] of F32, that rank adds [1, 4, 8] of F32",
        ),
        (
            adds(&[1, 5, 8], ElementType::BF16, &settings(3)),
            40,
            "rank 0 adds [1, 5, 8] of F32, that rank adds [1, 5, 8] of BF16",
        ),
        (adds(&[1, 5, 8], ElementType::F32, &settings(4)), 40, "the layer is not the same"),
        (first, 50_000, "rank 0 contributes 40 values, that rank 50000"),
    ] {
        let group = group();
        let (agreement, length) = if rank == last { (other, length) } else { (first, 40) };
        let error = group.all_reduce(&agreement, &mut vec![1.0; length]).unwrap_err();
        assert_eq!(error, CommunicationError::Differ { rank: last, difference: difference.into() });
        assert_eq!(group.barrier(&Agreement::barrier()).unwrap_err(), error); // it stays over
    }

    let mixed = group();
    let error = match rank == last {
        true => mixed.barrier(&Agreement::barrier()).unwrap_err(),
        false => mixed.all_reduce(&first, &mut [1.0; 40]).unwrap_err(),
    };
    let difference = "rank 0 adds [1, 5, 8] of F32, that rank waits at a barrier".into();
    assert_eq!(error, CommunicationError::Differ { rank: last, difference });

    for early in [false, true] {
        let group = group();
        late((rank == 1) != early);
        if rank == 1 {
            group.abort("the disk is full");
        }
        let error = group.all_reduce(&sum(3), &mut [1.0; 3]).unwrap_err();
        assert_eq!(error, CommunicationError::Aborted { rank: 1, reason: "the disk is full".into() });
        assert_eq!(group.barrier(&Agreement::barrier()).unwrap_err(), error);
    }

    // The contributions of a rank to the sums that it completed still count.
    let late_abort = group();
    late(rank == 0);
    let mut values = [1.0];
    late_abort.all_reduce(&sum(1), &mut values).unwrap();
    assert_eq!(values, [ranks as f32]);
    if rank == 1 {
        late_abort.abort(&"long ".repeat(1000));
    }
    late(rank != 1);
    let error = late_abort.all_reduce(&sum(1), &mut values).unwrap_err().to_string();
    assert!(error.starts_with("rank 1 gave up: long long ") && (rank == 1 || error.len() < 1200), "{error}");

    for length in [3, 40_000] {
        let waits = group();
        world.barrier(&Agreement::barrier()).unwrap();
        let start = Instant::now();
        if rank == 1 {
            sleep(2 * SHORT);
        }
        let error = waits.all_reduce(&sum(length), &mut vec![1.0; length]).unwrap_err();
        assert!(start.elapsed() < 3 * SHORT, "{:?}", start.elapsed());
        assert_eq!(waits.barrier(&Agreement::barrier()).unwrap_err(), error);
        let missing = CommunicationError::TimedOut { missing: vec![1], ranks, limit: SHORT };
        let told = |rank: usize| CommunicationError::Aborted {
            rank,
            reason: format!("rank 1 of {ranks} did not arrive within 1s"),
        };
        assert!(
            error == missing && rank != 1 || (0..ranks).any(|other| other != rank && error == told(other)),
            "{error}"
        );
    }
    world.barrier(&Agreement::barrier()).unwrap(); // none of this affects the world
    say(rank, "done");
    sleep(SHORT); // the launcher ends the job with the first process that leaves
}

#[test]
fn whatever_ends_a_group_is_an_error_on_every_process() {
    for (ranks, transport) in [(2, SHARED_MEMORY), (3, TCP)] {
        let job = Job::run("failures", ranks, &[transport]);
        for rank in 0..ranks {
            assert_eq!(job.said(rank), ["done"]);
        }
    }
}

fn absent() {
    let rank = std::env::var("OMPI_COMM_WORLD_RANK").unwrap();
    if rank == "1" {
        sleep(4 * SHORT);
    } else {
        let start = Instant::now();
        say(0, MpiCommunicator::world_with_time_limit(SHORT).unwrap_err());
        say(0, start.elapsed() < 2 * SHORT);
    }
}

#[test]
fn a_process_that_never_begins_is_not_waited_for() {
    let job = Job::run("absent", 2, &[TCP]);
    let missing = "rank 1 of 2 did not arrive within 1s; check what it is doing, or raise the time limit; this group can no longer be used";
    assert_eq!(job.said(0), [missing, "true"]);
    assert!(job.took < START);
}

fn killed() {
    let world = world().with_time_limit(SHORT);
    let rank = world.rank();
    let mut round = 0;
    let (start, error) = loop {
        let mut values = vec![1.0; if round % 2 == 0 { 500_000 } else { 100 }];
        let start = Instant::now();
        match world.all_reduce(&sum(values.len()), &mut values) {
            Ok(()) => assert!(values.iter().all(|&value| value == world.size() as f32)),
            Err(error) => break (start, error),
        }
        if rank == 1 && round == 9 {
            // It comes in the middle of one of the next sums.
            std::thread::spawn(|| Command::new("kill").args(["-9", &std::process::id().to_string()]).status().unwrap());
        }
        round += 1;
    };
    say(rank, error);
    say(rank, start.elapsed() < 3 * SHORT);
}

#[test]
fn a_killed_process_is_an_error_on_those_that_survive() {
    for (ranks, transport) in [(2, SHARED_MEMORY), (3, SHARED_MEMORY), (2, TCP), (3, TCP)] {
        let job = Job::run("killed", ranks, &[transport, SURVIVE]);
        // A rank may wait for another which waits for rank 1. At least one of them names rank 1.
        let late = format!(" of {ranks} did not arrive within 1s");
        let names_it = |missing: &str| missing.ends_with('1') || missing.contains("1, ");
        let mut named = false;
        for rank in (0..ranks).filter(|&rank| rank != 1) {
            let said = job.said(rank);
            let missing = said[0].split_once(&late).map(|(missing, _)| missing);
            assert!(said.len() == 2 && (missing.is_some() || said[0].starts_with("MPI failed: ")), "{said:?}");
            named |= missing.is_none_or(names_it);
            assert_eq!(said[1], "true");
        }
        assert!(named, "no rank names the one that was killed");
    }
}

#[test]
fn a_killed_process_ends_the_job_otherwise() {
    for transport in [SHARED_MEMORY, TCP] {
        let job = Job::run("killed", 2, &[transport]);
        assert!(!job.well && job.took < START);
    }
}

fn panicked() {
    let world = world();
    let rank = world.rank();
    let mut values = [1.0];
    world.all_reduce(&sum(1), &mut values).unwrap();
    assert_eq!(values, [world.size() as f32]);
    assert!(rank != 1, "rank 1 panics, as it should");
    let start = Instant::now();
    say(rank, world.all_reduce(&sum(1), &mut values).unwrap_err());
    say(rank, start.elapsed() < START / 2);
}

#[test]
fn a_process_that_panics_is_missed_at_once() {
    let job = Job::run("panicked", 3, &[SHARED_MEMORY]);
    assert!(!job.well);
    for rank in [0, 2] {
        let gone = "rank 1 gave up: its thread panicked; this group can no longer be used: build a new one";
        assert_eq!(job.said(rank), [gone, "true"]);
    }
}
