//! A launch: the blocks of a grid over the threads of the host.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::block::{Block, Trap};
use crate::compile::Kernel;
use crate::count::Count;
use crate::error::Fault;
use crate::memory::{Shared, Snapshot};
use crate::registers::{ALL, Register, Registers, Value, WARP};
use crate::run::run_block;
use crate::sample::Sample;
use crate::shape::Launch;
use crate::traffic::{Distinct, Traffic};
use crate::warp::Warp;

/// Runs a kernel; what it did.
///
/// # Errors
/// The fault of the first block, in the order of the grid, that has one.
pub fn launch(
    kernel: &Kernel,
    launch: &Launch,
    arguments: &[u8],
    global: &Snapshot,
    threads: usize,
) -> Result<Counts, Box<Fault>> {
    let sample = Sample::new(launch);
    let next = AtomicU64::new(0);
    let first_fault: Mutex<Option<(u64, Box<Fault>)>> = Mutex::new(None);
    let blocks = sample.count();
    let work = || {
        let mut machine = Machine::new(kernel, launch, arguments, global);
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= blocks {
                return (machine.block.counts, machine.block.traffic);
            }
            let (number, slice) = sample.block(at);
            let ended = machine.run(number);
            if let Some(traffic) = &mut machine.block.traffic {
                traffic.end_block(slice);
            }
            if let Err(fault) = ended {
                let mut first = first_fault.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if first.as_ref().is_none_or(|(other, _)| number < *other) {
                    *first = Some((number, fault));
                }
                // Blocks with lower numbers have begun and may still find a fault; later ones need not start.
                next.store(blocks, Ordering::Relaxed);
            }
        }
    };
    let threads = threads.clamp(1, blocks.min(64) as usize);
    let mut counts = vec![Count::default(); kernel.instructions.len()];
    let mut traffic = Traffic::default();
    let mut add = |(more, touched): (Vec<Count>, Option<Traffic>)| {
        counts.iter_mut().zip(more).for_each(|(count, more)| *count += more);
        traffic.merge(touched.unwrap_or_default());
    };
    if threads == 1 {
        add(work());
    } else {
        std::thread::scope(|scope| {
            let started: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            for thread in started {
                match thread.join() {
                    Ok(counts) => add(counts),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        });
    }
    match first_fault.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some((_, fault)) => Err(fault),
        None => {
            let distinct = (launch.sample.is_some() && sample.has_whole_slices()).then(|| traffic.distinct());
            let (sectors_by_blocks, least_sectors) = (traffic.by_blocks(), traffic.least());
            Ok(Counts { instructions: counts, blocks, sectors_by_blocks, least_sectors, distinct })
        }
    }
}

/// What a launch did.
#[derive(Debug)]
pub struct Counts {
    /// What each instruction did.
    pub instructions: Vec<Count>,
    /// Blocks that ran.
    pub blocks: u64,
    /// Sectors of global memory, each once for each block that touches it; 0 for a launch without a sample.
    pub sectors_by_blocks: u64,
    /// The sectors that instructions would move if each of these had all bytes that its block needs of it; 0 for a launch without a
    /// sample.
    pub least_sectors: u64,
    /// Sectors of global memory that were read and that were written, for a launch with a sample of whole slices.
    pub distinct: Option<[Distinct; 2]>,
}

/// What runs one block after the other.
struct Machine<'l> {
    kernel: &'l Kernel,
    launch: &'l Launch,
    warps: Vec<Warp>,
    block: Block<'l>,
}

impl<'l> Machine<'l> {
    fn new(kernel: &'l Kernel, launch: &'l Launch, arguments: &'l [u8], global: &'l Snapshot) -> Self {
        let warps = launch.warps();
        let shared =
            Shared::new(kernel.shared_bytes + kernel.dynamic_shared(launch.dynamic_shared), warps, launch.lenient);
        let block = Block::new(shared, launch, kernel.instructions.len(), arguments, global);
        let warp = |index| Warp::new(index, Registers::new(kernel.sizes), kernel.local_bytes);
        Self { kernel, launch, warps: (0..warps).map(warp).collect(), block }
    }

    fn run(&mut self, number: u64) -> Result<(), Box<Fault>> {
        let Self { kernel, launch, warps, block } = self;
        let position = launch.position(number);
        block.begin(number as u32);
        for warp in warps.iter_mut() {
            let threads = (launch.threads() as usize - warp.index * WARP).min(WARP);
            warp.begin(if threads == WARP { ALL } else { (1 << threads) - 1 });
            warp.registers.clear();
            for (register, value) in &kernel.constants {
                fill(&mut warp.registers, *register, |_| *value);
            }
            let index = warp.index;
            for (register, special) in &kernel.specials {
                fill(&mut warp.registers, *register, |lane| special.value(launch, position, index, lane).into());
            }
        }
        run_block(kernel, warps, block, launch.seed ^ number).map_err(|(warp, trap)| {
            let Trap { misuse, lane } = *trap;
            let instruction = warps[warp].at;
            let instruction = &kernel.instructions[instruction];
            let (kernel, statement) = (kernel.name.clone(), instruction.text.clone());
            Box::new(Fault { misuse, kernel, statement, line: instruction.line, block: position, warp, lane })
        })
    }
}

fn fill(registers: &mut Registers, register: Register, value: impl Fn(usize) -> u64) {
    let values: [u64; WARP] = std::array::from_fn(value);
    u64::set(registers, register, &values, ALL);
    registers.mark(register, ALL);
}
