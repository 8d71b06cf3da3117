//! Asynchronous copies. PTX ISA, "Data Movement and Conversion Instructions: Asynchronous copy".

use super::builder::Builder;
use super::instruction::Action;
use super::memory::{Transfer, tally};
use crate::block::{of_lane, of_warp};
use crate::memory::INSIDE;
use crate::ptx::{Operand, Space};
use crate::registers::{WARP, each};

pub fn compile(b: &mut Builder<'_>) -> Result<Action, String> {
    if !b.flag("async") {
        return Err("only `cp.async` is supported".into());
    }
    if b.flag("commit_group") {
        return Ok(Action::Execute(Box::new(|warp, block, lanes| {
            block.flights.commit(warp.index, lanes);
            Ok(())
        })));
    }
    if b.flag("wait_all") {
        return Ok(wait(None));
    }
    if b.flag("wait_group") {
        let Operand::Number(groups) = b.operand(0)? else {
            return Err("the number of groups must be a constant".into());
        };
        return Ok(wait(Some(*groups as u32)));
    }
    if b.flag("mbarrier") {
        return arrive(b);
    }
    copy(b)
}

fn wait(groups: Option<u32>) -> Action {
    Action::Execute(Box::new(move |warp, block, lanes| of_warp(block.wait_for_copies(warp, lanes, groups))))
}

/// `cp.async.mbarrier.arrive`: without `.noinc` it first adds an arrival to those that are pending.
fn arrive(b: &mut Builder<'_>) -> Result<Action, String> {
    let noinc = b.flag("noinc");
    if !b.flag("arrive") {
        return Err("only `arrive` is supported".into());
    }
    b.space();
    b.type_()?;
    let (base, _) = b.address(0)?;
    Ok(Action::Execute(Box::new(move |warp, block, lanes| {
        let addresses = base.in_shared(&warp.registers);
        for lane in each(lanes) {
            of_lane(lane, block.arrive_after_copies(warp, lane, addresses[lane], !noinc))?;
        }
        Ok(())
    })))
}

fn copy(b: &mut Builder<'_>) -> Result<Action, String> {
    b.one_of(&["ca", "cg"]).ok_or("the cache operator is missing")?;
    while b.starting("L2::").is_some() {}
    if (b.space(), b.space()) != (Space::Shared, Space::Global) {
        return Err("only copies from global to shared memory are supported".into());
    }
    let ((to, _), (from, _)) = (b.address(0)?, b.address(1)?);
    let bytes = match b.operand(2)? {
        Operand::Number(bytes @ (4 | 8 | 16)) => *bytes,
        _ => return Err("a copy has 4, 8 or 16 bytes".into()),
    };
    let read = if b.operands().len() > 3 { Some(b.source(3, 32)?) } else { None };
    Ok(Action::Execute(Box::new(move |warp, block, lanes| {
        let to = to.in_shared(&warp.registers);
        let from = from.addresses(&warp.registers);
        let read = read.map_or([bytes; WARP], |read| warp.registers.get::<u64>(read));
        let mut some = 0;
        for lane in each(lanes) {
            of_lane(lane, block.begin_copy(warp, lane, [from[lane], to[lane]], bytes, read[lane]))?;
            some |= u32::from(read[lane] > 0) << lane;
        }
        if bytes == 16 {
            block.counts[warp.at].copied(&from, &to.map(|address| address & INSIDE), lanes, some);
            if let Some(traffic) = &mut block.traffic {
                traffic.touch(&from, some, bytes, false);
            }
        } else {
            tally(block, warp.at, Space::Global, &from, some, Transfer { bytes, writes: false });
            tally(block, warp.at, Space::Shared, &to, lanes, Transfer { bytes, writes: true });
        }
        Ok(())
    })))
}
