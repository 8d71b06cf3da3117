//! The execution of a block: which warp runs, which of its lanes, and where they wait. PTX ISA, "PTX Machine Model: A Set of SIMT
//! Multiprocessors" and "Independent Thread Scheduling".

use crate::block::{Block, Trap, of_lane, of_warp};
use crate::compile::{Action, Instruction, Kernel};
use crate::error::Misuse;
use crate::registers::{ALL, Bank, Lanes, Register, each};
use crate::warp::{Group, Tested, Warp};

/// Rounds in which every warp tests in vain and nothing lands, before that is a deadlock. A warp may count its tests and go on.
const MOST_VAIN_ROUNDS: usize = 10_000;

/// Why a warp stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Ended,
    Barrier,
    /// A test found that it has to wait.
    Waits,
}

/// Runs a block to its end; the warp that failed, and how. Barriers are the only order between warps: between two of them each runs
/// as far as it can, in an order that `seed` gives.
pub fn run_block(
    kernel: &Kernel,
    warps: &mut [Warp],
    block: &mut Block<'_>,
    seed: u64,
) -> Result<(), (usize, Box<Trap>)> {
    let mut order: Vec<usize> = (0..warps.len()).collect();
    let mut random = seed;
    let mut vain = 0;
    loop {
        shuffle(&mut order, &mut random);
        let (mut ran, mut waits) = (false, None);
        for &index in &order {
            let warp = &mut warps[index];
            if warp.alive == 0 || warp.barrier.is_some() {
                continue;
            }
            match run_warp(kernel, warp, block).map_err(|trap| (index, trap))? {
                Stop::Waits => waits = Some(index),
                Stop::Ended | Stop::Barrier => ran = true,
            }
        }
        if warps.iter().all(|warp| warp.alive == 0) {
            return Ok(());
        }
        if warps.iter().all(|warp| warp.alive == 0 || warp.barrier.is_some()) {
            pass_barrier(kernel, warps, block)?;
            continue;
        }
        if ran {
            vain = 0;
        } else if let Some(index) = waits {
            // Every warp that could run tests in vain, so what flies must land now.
            let landed = block.land_oldest(warps).map_err(|misuse| (index, Box::new(Trap { misuse, lane: None })))?;
            vain = if landed { 0 } else { vain + 1 };
            if vain > MOST_VAIN_ROUNDS {
                return Err((index, deadlock("a test on an mbarrier never succeeds".into())));
            }
        }
    }
}

/// Every thread is at a barrier: all go on from it, if it is the same one. PTX ISA, "Parallel Synchronization and Communication
/// Instructions: bar, barrier".
fn pass_barrier(kernel: &Kernel, warps: &mut [Warp], block: &mut Block<'_>) -> Result<(), (usize, Box<Trap>)> {
    let number = warps.iter().find_map(|warp| warp.barrier);
    if let Some(other) = warps.iter().find(|warp| warp.alive != 0 && warp.barrier != number) {
        let why = format!("at barrier {:?}, while other warps wait at {number:?}", other.barrier);
        return Err((other.index, deadlock(why)));
    }
    block.clocks.join_all();
    for warp in warps.iter_mut().filter(|warp| warp.alive != 0) {
        warp.barrier = None;
        for group in &mut warp.groups {
            debug_assert!(matches!(kernel.instructions[group.at].action, Action::Barrier(_)));
            group.at += 1;
            group.waits = false;
        }
    }
    Ok(())
}

/// SplitMix64 and a Fisher-Yates shuffle.
fn shuffle(order: &mut [usize], random: &mut u64) {
    for last in (1..order.len()).rev() {
        *random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = *random;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        order.swap(last, ((bits ^ bits >> 31) % (last as u64 + 1)) as usize);
    }
}

/// Runs a warp until it ends or has to wait.
fn run_warp(kernel: &Kernel, warp: &mut Warp, block: &mut Block<'_>) -> Result<Stop, Box<Trap>> {
    loop {
        // The lowest instruction first, so that lanes that took different branches meet again where the branches do.
        let next = warp.groups.iter().enumerate().filter(|(_, group)| !group.waits).min_by_key(|(_, group)| group.at);
        match next.map(|(index, _)| index) {
            Some(index) => {
                if let Some(stop) = run_group(kernel, warp, block, index)? {
                    return Ok(stop);
                }
            }
            None if warp.groups.is_empty() => {
                warp.alive = 0;
                return Ok(Stop::Ended);
            }
            None => return Err(deadlock(apart(kernel, warp))),
        }
    }
}

/// Where the lanes of a warp wait for each other.
fn apart(kernel: &Kernel, warp: &Warp) -> String {
    let at = |group: &Group| format!("{} at `{}`", lanes_text(group.lanes), kernel.instructions[group.at].text);
    warp.groups.iter().map(at).collect::<Vec<_>>().join(", ")
}

/// Runs the lanes of a group until they part, meet others, or wait; a stop if that stops the warp.
fn run_group(kernel: &Kernel, warp: &mut Warp, block: &mut Block<'_>, index: usize) -> Result<Option<Stop>, Box<Trap>> {
    let Group { mut at, lanes: all, .. } = warp.groups[index];
    // Where it meets the next group. Those that wait before it stay there.
    let others = warp.groups.iter().enumerate().filter(|(other, group)| *other != index && group.at >= at);
    let nearest = others.map(|(_, group)| group.at).min().unwrap_or(usize::MAX);
    let watched = kernel.changed.as_ref().map_or(usize::MAX, |changed| changed.at);
    loop {
        if at >= nearest {
            warp.groups[index].at = at;
            merge(warp, index);
            return Ok(None);
        }
        let instruction = &kernel.instructions[at];
        warp.at = at;
        // PTX ISA, "Predicated Execution".
        let lanes = match instruction.condition {
            None => all,
            Some(condition) => {
                let register = Register { bank: Bank::Predicate, index: condition.index };
                check_written(warp, register, all, instruction)?;
                all & warp.registers.condition(condition)
            }
        };
        if at == watched
            && let Some(changed) = &kernel.changed
        {
            changed.note(instruction, warp, block, all, lanes);
        }
        let count = &mut block.counts[at];
        count.warps += 1;
        count.lanes += u64::from(lanes.count_ones());
        match &instruction.action {
            Action::Branch(to) => {
                if lanes == all {
                    at = *to;
                    // A jump may pass other groups.
                    if warp.groups.len() > 1 {
                        warp.groups[index].at = at;
                        merge(warp, index);
                        return Ok(None);
                    }
                } else if lanes == 0 {
                    at += 1;
                } else {
                    warp.groups[index] = Group { at: at + 1, lanes: all & !lanes, waits: false };
                    warp.groups.push(Group { at: *to, lanes, waits: false });
                    let last = warp.groups.len() - 1;
                    merge(warp, last);
                    return Ok(None);
                }
            }
            // PTX ISA, "Control Flow Instructions: exit": barriers do not wait for lanes that ended.
            Action::Exit => {
                warp.alive &= !lanes;
                // Others that wait for these lanes need not any more.
                warp.groups.iter_mut().for_each(|group| group.waits = false);
                if lanes == all {
                    warp.groups.swap_remove(index);
                } else {
                    warp.groups[index] = Group { at: at + 1, lanes: all & !lanes, waits: false };
                }
                return Ok(None);
            }
            Action::Barrier(number) => {
                // Under a condition, lanes for which it does not hold never arrive.
                if lanes != all {
                    return Err(deadlock(format!("{} do not reach the barrier", lanes_text(all & !lanes))));
                }
                warp.groups[index].at = at;
                if lanes == warp.alive {
                    warp.barrier = Some(*number);
                    return Ok(Some(Stop::Barrier));
                }
                warp.groups[index].waits = true;
                return Ok(None);
            }
            // PTX ISA, "Data Movement and Conversion Instructions: shfl.sync": waits for the lanes of the mask that have not ended. Without
            // a mask, "Warp-level Matrix Instructions": all lanes execute it.
            Action::Together(members, execute) => {
                let needed = match members {
                    None => warp.alive,
                    Some(members) => {
                        check_written(warp, *members, lanes, instruction)?;
                        let named = warp.registers.get::<u32>(*members);
                        if let Some(lane) = each(lanes).find(|lane| named[*lane] >> lane & 1 == 0) {
                            let fact = "is not among the lanes that the instruction names".into();
                            return of_lane(lane, Err(Misuse::Invalid(fact)));
                        }
                        named.get(lanes.trailing_zeros() as usize).copied().unwrap_or(0) & warp.alive
                    }
                };
                if lanes & needed != needed {
                    warp.groups[index].at = at;
                    warp.groups[index].waits = true;
                    return Ok(None);
                }
                if lanes != 0 {
                    check_reads(warp, lanes, instruction)?;
                    execute(warp, block, lanes)?;
                    mark_writes(warp, lanes, instruction);
                }
                at += 1;
            }
            Action::Test(execute) => {
                check_reads(warp, lanes, instruction)?;
                execute(warp, block, lanes)?;
                mark_writes(warp, lanes, instruction);
                match warp.tested {
                    Tested::Complete => at += 1,
                    Tested::Pending(_) => {
                        warp.groups[index].at = at + 1;
                        return Ok(Some(Stop::Waits));
                    }
                    Tested::Sleeps => {
                        // It is executed again, and counts once.
                        let count = &mut block.counts[at];
                        count.warps -= 1;
                        count.lanes -= u64::from(lanes.count_ones());
                        warp.groups[index].at = at;
                        return Ok(Some(Stop::Waits));
                    }
                }
            }
            Action::Compute(compute) => {
                if lanes != 0 {
                    check_reads(warp, lanes, instruction)?;
                    compute(&mut warp.registers, lanes);
                    mark_writes(warp, lanes, instruction);
                }
                at += 1;
            }
            Action::Execute(execute) => {
                if lanes != 0 {
                    check_reads(warp, lanes, instruction)?;
                    execute(warp, block, lanes)?;
                    mark_writes(warp, lanes, instruction);
                }
                at += 1;
            }
            // PTX ISA, "Miscellaneous Instructions: trap".
            Action::Trap if lanes == 0 => at += 1,
            Action::Trap => return of_warp(Err(Misuse::Invalid("the kernel stops itself: `trap`".into()))),
        }
    }
}

/// Joins a group with another that is at the same instruction.
fn merge(warp: &mut Warp, index: usize) {
    let Group { at, lanes, .. } = warp.groups[index];
    let other = warp.groups.iter().enumerate().position(|(other, group)| other != index && group.at == at);
    if let Some(other) = other {
        warp.groups[other].lanes |= lanes;
        warp.groups[other].waits = false;
        warp.groups.swap_remove(index);
    }
}

#[inline(always)]
fn check_reads(warp: &Warp, lanes: Lanes, instruction: &Instruction) -> Result<(), Box<Trap>> {
    for register in &instruction.reads {
        check_written(warp, *register, lanes, instruction)?;
    }
    Ok(())
}

#[inline(always)]
fn check_written(warp: &Warp, register: Register, lanes: Lanes, instruction: &Instruction) -> Result<(), Box<Trap>> {
    let missing = lanes & !warp.registers.written(register);
    if missing == 0 { Ok(()) } else { Err(unwritten(missing, instruction)) }
}

#[cold]
fn unwritten(missing: Lanes, instruction: &Instruction) -> Box<Trap> {
    let what = format!("a register of `{}`", instruction.text);
    Box::new(Trap { misuse: Misuse::Uninitialised { what }, lane: Some(missing.trailing_zeros() as usize) })
}

#[inline(always)]
fn mark_writes(warp: &mut Warp, lanes: Lanes, instruction: &Instruction) {
    for register in &instruction.writes {
        warp.registers.mark(*register, lanes);
    }
}

/// The deadlock of a warp.
fn deadlock(why: String) -> Box<Trap> {
    Box::new(Trap { misuse: Misuse::Deadlock { why }, lane: None })
}

/// Lanes of a set as text.
fn lanes_text(lanes: Lanes) -> String {
    if lanes == ALL { "all lanes".into() } else { format!("lanes {lanes:#010x}") }
}
