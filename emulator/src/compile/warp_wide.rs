//! Exchanges between the lanes of a warp. PTX ISA, "Data Movement and Conversion Instructions: shfl.sync" and
//! "Parallel Synchronization and Communication Instructions: vote.sync, redux.sync, elect.sync".

use super::builder::Builder;
use super::instruction::Action;
use crate::block::{Trap, of_lane};
use crate::error::Misuse;
use crate::numbers::signed;
use crate::ptx::Operand;
use crate::registers::{ALL, Lanes, WARP, each};

pub fn compile(b: &mut Builder<'_>) -> Result<Action, String> {
    if b.opcode() == "activemask" {
        b.type_()?;
        let to = b.destination(0)?;
        return Ok(Action::Compute(Box::new(move |registers, lanes| registers.set(to, &[lanes; WARP], lanes))));
    }
    if !b.flag("sync") {
        return Err("the form without `.sync` is not supported".into());
    }
    match b.opcode() {
        "shfl" => shuffle(b),
        "vote" => vote(b),
        "redux" => reduce(b),
        _ => elect(b),
    }
}

fn shuffle(b: &mut Builder<'_>) -> Result<Action, String> {
    let mode = b.one_of(&["up", "down", "bfly", "idx"]).ok_or("the mode is missing")?;
    b.type_()?;
    let (to, valid) = match b.operand(0)? {
        Operand::Pair(value, valid) => (b.destination_of(value)?, Some(b.predicate(valid)?)),
        one => (b.destination_of(one)?, None),
    };
    let (from, by, clamp, members) = (b.source(1, 32)?, b.source(2, 32)?, b.source(3, 32)?, b.source(4, 32)?);
    Ok(Action::Together(
        Some(members),
        Box::new(move |warp, _, lanes| {
            let registers = &mut warp.registers;
            let values = registers.get::<u32>(from);
            let (by, clamp) = (registers.get::<u32>(by), registers.get::<u32>(clamp));
            let written = registers.written(from);
            let (mut result, mut is_valid) = ([0; WARP], 0);
            for lane in each(lanes) {
                let own = lane as u32;
                let (by, limit, segment) = (by[lane] & 31, clamp[lane] & 31, clamp[lane] >> 8 & 31);
                let (first, last) = (own & segment, own & segment | limit & !segment);
                let (source, inside) = match mode {
                    "up" => (own.wrapping_sub(by), own as i32 - by as i32 >= last as i32),
                    "down" => (own + by, own + by <= last),
                    "bfly" => (own ^ by, own ^ by <= last),
                    _ => {
                        let source = first | by & !segment;
                        (source, source <= last)
                    }
                };
                let source = if inside { source as usize } else { lane };
                if lanes >> source & 1 == 0 {
                    let fact = format!("reads lane {source}, which does not take part");
                    return of_lane(lane, Err(Misuse::Invalid(fact)));
                }
                if written >> source & 1 == 0 {
                    let what = format!("the register of lane {source}");
                    return of_lane(lane, Err(Misuse::Uninitialised { what }));
                }
                result[lane] = values[source];
                is_valid |= Lanes::from(inside) << lane;
            }
            registers.set(to, &result, lanes);
            if let Some(valid) = valid {
                registers.set_predicate(valid, is_valid, lanes);
            }
            Ok(())
        }),
    ))
}

fn vote(b: &mut Builder<'_>) -> Result<Action, String> {
    let mode = b.one_of(&["ballot", "all", "any", "uni"]).ok_or("the mode is missing")?;
    b.type_()?;
    let operands = b.operands();
    let number = if mode == "ballot" { Some(b.destination(0)?) } else { None };
    let predicate = if mode == "ballot" { None } else { Some(b.predicate(&operands[0])?) };
    let condition = b.condition(1)?;
    let members = b.source(2, 32)?;
    Ok(Action::Together(
        Some(members),
        Box::new(move |warp, _, lanes| {
            let votes = warp.registers.condition(condition) & lanes;
            let holds = match mode {
                "all" => votes == lanes,
                "any" => votes != 0,
                _ => votes == lanes || votes == 0,
            };
            if let Some(to) = number {
                warp.registers.set(to, &[votes; WARP], lanes);
            }
            if let Some(to) = predicate {
                warp.registers.set_predicate(to, if holds { ALL } else { 0 }, lanes);
            }
            Ok(())
        }),
    ))
}

fn reduce(b: &mut Builder<'_>) -> Result<Action, String> {
    let operation = b.one_of(&["add", "min", "max", "and", "or", "xor"]).ok_or("the operation is missing")?;
    let is_signed = b.type_()?.is_signed();
    let (to, from, members) = (b.destination(0)?, b.source(1, 32)?, b.source(2, 32)?);
    let join: fn(u32, u32) -> u32 = match (operation, is_signed) {
        ("add", _) => u32::wrapping_add,
        ("and", _) => |a, b| a & b,
        ("or", _) => |a, b| a | b,
        ("xor", _) => |a, b| a ^ b,
        ("min", false) => u32::min,
        ("max", false) => u32::max,
        ("min", true) => |a, b| signed(a.into(), 32).min(signed(b.into(), 32)) as u32,
        _ => |a, b| signed(a.into(), 32).max(signed(b.into(), 32)) as u32,
    };
    Ok(Action::Together(
        Some(members),
        Box::new(move |warp, _, lanes| {
            let values = warp.registers.get::<u32>(from);
            let result = each(lanes).map(|lane| values[lane]).reduce(join).unwrap_or(0);
            warp.registers.set(to, &[result; WARP], lanes);
            Ok(())
        }),
    ))
}

/// `elect`: one lane, here the first.
fn elect(b: &mut Builder<'_>) -> Result<Action, String> {
    let Operand::Pair(number, predicate) = b.operand(0)? else { return Err("a pair is missing".into()) };
    let (to, chosen, members) = (b.destination_of(number)?, b.predicate(predicate)?, b.source(1, 32)?);
    Ok(Action::Together(
        Some(members),
        Box::new(move |warp, _, lanes| {
            let first = lanes.trailing_zeros();
            let Some(bit) = 1u32.checked_shl(first) else {
                return Err(Box::new(Trap { misuse: Misuse::Invalid("no lane is left to elect".into()), lane: None }));
            };
            warp.registers.set(to, &[first; WARP], lanes);
            warp.registers.set_predicate(chosen, bit, lanes);
            Ok(())
        }),
    ))
}
