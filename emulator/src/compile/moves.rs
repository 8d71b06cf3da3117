//! Moves, and conversions of addresses. PTX ISA, "Data Movement and Conversion Instructions: mov, cvta".

use super::builder::Builder;
use super::instruction::Action;
use super::lanewise::map1;
use crate::memory::{INSIDE, LOCAL_WINDOW, PARAMETER_WINDOW, SHARED_WINDOW};
use crate::numbers::low;
use crate::ptx::{Kind, Operand, Space};
use crate::registers::{Bank, WARP};

pub fn compile(b: &mut Builder<'_>) -> Result<Action, String> {
    if b.opcode() == "cvta" {
        return convert_address(b);
    }
    let of = b.type_()?;
    if of.kind == Kind::Predicate {
        let operands = b.operands();
        let to = b.predicate(&operands[0])?;
        if let Operand::Number(value) = b.operand(1)? {
            let value = if *value != 0 { u32::MAX } else { 0 };
            return Ok(Action::Compute(Box::new(move |registers, lanes| registers.set_predicate(to, value, lanes))));
        }
        let from = b.condition(1)?;
        return Ok(Action::Compute(Box::new(move |registers, lanes| {
            let value = registers.condition(from);
            registers.set_predicate(to, value, lanes);
        })));
    }
    let bits = of.width();
    match (b.operand(0)?, b.operand(1)?) {
        (Operand::Vector(parts), _) => {
            let each = bits / parts.len() as u32;
            let (to, from) = (b.vector(0, each, true)?, b.source(1, bits)?);
            Ok(Action::Compute(Box::new(move |registers, lanes| {
                let whole = registers.get::<u64>(from);
                for (index, to) in to.iter().enumerate() {
                    let values = whole.map(|value| low(value >> (index as u32 * each), each));
                    registers.set(*to, &values, lanes);
                }
            })))
        }
        (_, Operand::Vector(parts)) => {
            let each = bits / parts.len() as u32;
            let (to, from) = (b.destination(0)?, b.vector(1, each, false)?);
            Ok(Action::Compute(Box::new(move |registers, lanes| {
                let mut values = [0u64; WARP];
                for (index, from) in from.iter().enumerate() {
                    let part = registers.get::<u64>(*from);
                    for lane in 0..WARP {
                        values[lane] |= low(part[lane], each) << (index as u32 * each);
                    }
                }
                registers.set(to, &values, lanes);
            })))
        }
        _ => {
            let (to, from) = (b.destination(0)?, b.source(1, bits)?);
            Ok(Action::Compute(match to.bank {
                Bank::Double => map1(to, from, |value: u64| value),
                _ => map1(to, from, |value: u32| value),
            }))
        }
    }
}

/// `cvta.space`: an address of a space becomes generic; `cvta.to.space`: the other way.
fn convert_address(b: &mut Builder<'_>) -> Result<Action, String> {
    let back = b.flag("to");
    let window = match b.space() {
        Space::Shared => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        Space::Parameter => PARAMETER_WINDOW,
        _ => 0,
    };
    b.type_()?;
    let (to, from) = (b.destination(0)?, b.source(1, 64)?);
    Ok(Action::Compute(match (window, back) {
        (0, _) => map1(to, from, |address: u64| address),
        (_, true) => map1(to, from, |address: u64| address & INSIDE),
        (window, false) => map1(to, from, move |address: u64| address | window),
    }))
}
