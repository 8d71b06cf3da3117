//! The instruction that a mutant changed, next to what it was.

use std::sync::atomic::{AtomicBool, Ordering};

use super::instruction::{Action, Instruction};
use crate::block::Block;
use crate::registers::{ALL, Bank, Lanes, Register, Registers, WARP, each};
use crate::warp::Warp;

/// The instruction that a mutant changed.
pub struct Changed {
    /// Its index.
    pub at: usize,
    original: Instruction,
    /// Whether only the lanes that execute it are others.
    only_guard: bool,
    effect: AtomicBool,
}

impl Changed {
    pub fn new(at: usize, original: Instruction, only_guard: bool) -> Self {
        Self { at, original, only_guard, effect: AtomicBool::new(false) }
    }

    /// Whether in some execution the change made a difference: to what registers held afterwards, to which lanes took a branch, or to memory.
    pub fn had_effect(&self) -> bool {
        self.effect.load(Ordering::Relaxed)
    }

    /// Compares what the instruction is about to do in `lanes`, of `all` that are here, with what the original would do.
    pub fn note(&self, mutant: &Instruction, warp: &mut Warp, block: &mut Block<'_>, all: Lanes, lanes: Lanes) {
        if self.had_effect() {
            return;
        }
        let before = self.original.condition.map_or(all, |condition| all & warp.registers.condition(condition));
        let differs = if self.only_guard {
            before != lanes
        } else if before | lanes == 0 {
            false
        } else {
            let mut writes = self.original.writes.clone();
            writes.extend(&mutant.writes);
            let one = results(&self.original.action, &writes, warp, block, before);
            let other = results(&mutant.action, &writes, warp, block, lanes);
            // What is not computed in registers alone is an effect wherever it was executed.
            if one.is_some() && other.is_some() { one != other } else { before != 0 }
        };
        self.effect.fetch_or(differs, Ordering::Relaxed);
    }
}

/// What registers hold after an action, which is then undone; `None` if it does more than compute, or fails.
fn results(
    action: &Action,
    writes: &[Register],
    warp: &mut Warp,
    block: &mut Block<'_>,
    lanes: Lanes,
) -> Option<Vec<[u64; WARP]>> {
    let held = |registers: &Registers| -> Vec<[u64; WARP]> {
        writes.iter().map(|register| registers.get::<u64>(*register)).collect()
    };
    let saved = held(&warp.registers);
    let done = match action {
        Action::Compute(compute) => {
            compute(&mut warp.registers, lanes);
            true
        }
        // Without registers it has another effect, which cannot be undone: a barrier of a warp.
        Action::Together(_, execute) if lanes == warp.alive && !writes.is_empty() => {
            execute(warp, block, lanes).is_ok()
        }
        _ => false,
    };
    let results = done.then(|| held(&warp.registers));
    for (register, values) in writes.iter().zip(&saved) {
        match register.bank {
            Bank::Predicate => {
                let lanes = each(ALL).fold(0, |lanes, lane| lanes | (values[lane] as u32) << lane);
                warp.registers.set_predicate(register.index, lanes, ALL);
            }
            _ => warp.registers.set(*register, values, ALL),
        }
    }
    results
}
