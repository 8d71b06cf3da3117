//! Instructions on mbarriers. PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier".

use super::builder::Builder;
use super::instruction::Action;
use crate::block::{Block, of_lane};
use crate::ptx::Operand;
use crate::registers::{WARP, each};
use crate::warp::Tested;

pub fn compile(b: &mut Builder<'_>) -> Result<Action, String> {
    for hint in ["relaxed", "acquire", "release", "cta", "b64"] {
        b.flag(hint);
    }
    b.space();
    let operation = b.one_of(&["init", "inval", "arrive", "try_wait", "test_wait"]);
    match operation.ok_or("the operation is not supported")? {
        "init" => initialise(b),
        "inval" => invalidate(b),
        "arrive" => arrive(b),
        "try_wait" => wait(b, true),
        _ => wait(b, false),
    }
}

fn initialise(b: &mut Builder<'_>) -> Result<Action, String> {
    let (base, _) = b.address(0)?;
    let count = b.source(1, 32)?;
    Ok(Action::Execute(Box::new(move |warp, block, lanes| {
        let addresses = base.in_shared(&warp.registers);
        let counts = warp.registers.get::<u64>(count);
        for lane in each(lanes) {
            let Block { shared, clocks, barriers, .. } = block;
            of_lane(lane, shared.store(addresses[lane], 8, &[0; 16], warp.thread(lane), clocks))?;
            of_lane(lane, barriers.initialise(shared, addresses[lane], counts[lane]))?;
        }
        Ok(())
    })))
}

fn invalidate(b: &mut Builder<'_>) -> Result<Action, String> {
    let (base, _) = b.address(0)?;
    Ok(Action::Execute(Box::new(move |warp, block, lanes| {
        let addresses = base.in_shared(&warp.registers);
        for lane in each(lanes) {
            let Block { shared, clocks, barriers, .. } = block;
            of_lane(lane, shared.store(addresses[lane], 8, &[0; 16], warp.thread(lane), clocks))?;
            barriers.invalidate(addresses[lane]);
        }
        Ok(())
    })))
}

fn arrive(b: &mut Builder<'_>) -> Result<Action, String> {
    let at = b.operands().iter().position(|operand| matches!(operand, Operand::Address(..)));
    let at = at.ok_or("an address is missing")?;
    let to = if at == 1 { Some(b.destination(0)?) } else { None };
    let (base, _) = b.address(at)?;
    let count = if b.operands().len() > at + 1 { Some(b.source(at + 1, 32)?) } else { None };
    Ok(Action::Execute(Box::new(move |warp, block, lanes| {
        let addresses = base.in_shared(&warp.registers);
        let counts = count.map_or([1; WARP], |count| warp.registers.get::<u64>(count));
        let mut states = [0u64; WARP];
        for lane in each(lanes) {
            let Block { shared, clocks, barriers, .. } = block;
            let arrived = barriers.arrive(shared, clocks, addresses[lane], counts[lane], warp.thread(lane));
            states[lane] = of_lane(lane, arrived)?;
        }
        if let Some(to) = to {
            warp.registers.set(to, &states, lanes);
        }
        Ok(())
    })))
}

/// `try_wait` and `test_wait`: whether the phase of a state, or of a parity, is complete.
///
/// `try_wait` may put the thread to sleep until then, or return before. Here it returns once, so that a kernel that does not try again
/// is noticed, and then sleeps. While instructions are counted it sleeps at once, as a device does.
fn wait(b: &mut Builder<'_>, sleeps: bool) -> Result<Action, String> {
    let by_parity = b.flag("parity");
    let operands = b.operands();
    let to = b.predicate(&operands[0])?;
    let (base, _) = b.address(1)?;
    let state = b.source(2, if by_parity { 32 } else { 64 })?;
    Ok(Action::Test(Box::new(move |warp, block, lanes| {
        let addresses = base.in_shared(&warp.registers);
        let states = warp.registers.get::<u64>(state);
        let mut complete = 0;
        // What the last two lanes asked for. Where both asked for the same, a third one would hear the same: checks and records tell one
        // lane of a warp from the others, and no more.
        let mut asked = [None; 2];
        let mut done = false;
        for lane in each(lanes) {
            let parity = if by_parity { states[lane] & 1 } else { states[lane] >> 63 };
            let own = Some((addresses[lane], parity));
            if asked != [own; 2] {
                let Block { shared, clocks, barriers, .. } = block;
                let answer = barriers.is_complete(shared, clocks, addresses[lane], parity, warp.thread(lane));
                done = of_lane(lane, answer)?;
                asked = [asked[1], own];
            }
            complete |= u32::from(done) << lane;
        }
        warp.registers.set_predicate(to, complete, lanes);
        warp.tested = match warp.tested {
            _ if complete == lanes => Tested::Complete,
            Tested::Complete | Tested::Pending(_) if !sleeps => Tested::Pending(warp.at),
            Tested::Complete if block.traffic.is_none() => Tested::Pending(warp.at),
            Tested::Pending(at) if at != warp.at => Tested::Pending(warp.at),
            _ => Tested::Sleeps,
        };
        Ok(())
    })))
}
