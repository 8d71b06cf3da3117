//! Atomic updates. PTX ISA, "Parallel Synchronization and Communication Instructions: atom, red".

use super::builder::Builder;
use super::instruction::Action;
use super::memory::{Transfer, tally};
use crate::block::{Access, of_lane};
use crate::numbers::{bf16_of, f16_of, f32_of, low, signed, to_bf16, to_f16};
use crate::ptx::{Kind, Space, Type};
use crate::registers::{WARP, each};

pub fn compile(b: &mut Builder<'_>) -> Result<Action, String> {
    let returns = b.opcode() == "atom";
    for hint in ["relaxed", "acquire", "release", "acq_rel", "gpu", "cta", "sys", "noftz"] {
        b.flag(hint);
    }
    let space = b.space();
    let operation = b.one_of(&["add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"]);
    let operation = operation.ok_or("the operation is not supported")?;
    let of = b.type_()?;
    let first = usize::from(returns);
    let to = if returns { Some(b.destination(0)?) } else { None };
    let (base, named) = b.address(first)?;
    let space = if space == Space::Generic { named.unwrap_or(space) } else { space };
    let value = b.source(first + 1, of.width())?;
    let replacement = if operation == "cas" { Some(b.source(first + 2, of.width())?) } else { None };
    let change = change(operation, of)?;
    let size = of.bytes() as u64;
    Ok(Action::Execute(Box::new(move |warp, block, lanes| {
        let addresses = base.addresses(&warp.registers);
        let values = warp.registers.get::<u64>(value);
        let replacements = replacement.map_or([0; WARP], |register| warp.registers.get::<u64>(register));
        let mut before = [0u64; WARP];
        for lane in each(lanes) {
            let access = Access { address: addresses[lane], each: size, count: 1 };
            let result = block.update(warp, space, access, lane, |old| change(old, values[lane], replacements[lane]));
            before[lane] = of_lane(lane, result)?;
        }
        if let Some(to) = to {
            warp.registers.set(to, &before, lanes);
        }
        tally(block, warp.at, space, &addresses, lanes, Transfer { bytes: size, writes: true });
        Ok(())
    })))
}

/// The new value from the old one, the operand, and the replacement of `cas`.
fn change(operation: &str, of: Type) -> Result<fn(u64, u64, u64) -> u64, String> {
    Ok(match (operation, of.kind, of.bits) {
        ("add", Kind::Float, 32) => |old, by, _| (f32_of(old as u32) + f32_of(by as u32)).to_bits().into(),
        ("add", Kind::Float, _) => |old, by, _| (f64::from_bits(old) + f64::from_bits(by)).to_bits(),
        ("add", Kind::Half, _) if !of.packed => {
            |old, by, _| to_f16(f64::from(f16_of(old as u32)) + f64::from(f16_of(by as u32))).into()
        }
        ("add", Kind::Brain, _) if !of.packed => {
            |old, by, _| to_bf16(f64::from(bf16_of(old as u32)) + f64::from(bf16_of(by as u32))).into()
        }
        ("add", Kind::Bits | Kind::Unsigned | Kind::Signed, _) => |old, by, _| old.wrapping_add(by),
        ("and", ..) => |old, by, _| old & by,
        ("or", ..) => |old, by, _| old | by,
        ("xor", ..) => |old, by, _| old ^ by,
        ("exch", ..) => |_, by, _| by,
        ("cas", _, 32) => |old, expected, new| if old == low(expected, 32) { new } else { old },
        ("cas", _, 16) => |old, expected, new| if old == low(expected, 16) { new } else { old },
        ("cas", _, 64) => |old, expected, new| if old == expected { new } else { old },
        ("min", Kind::Signed, 32) => |old, by, _| low(signed(old, 32).min(signed(by, 32)) as u64, 32),
        ("max", Kind::Signed, 32) => |old, by, _| low(signed(old, 32).max(signed(by, 32)) as u64, 32),
        ("min", Kind::Signed, 64) => |old, by, _| (old as i64).min(by as i64) as u64,
        ("max", Kind::Signed, 64) => |old, by, _| (old as i64).max(by as i64) as u64,
        ("min", Kind::Unsigned, _) => |old, by, _| old.min(by),
        ("max", Kind::Unsigned, _) => |old, by, _| old.max(by),
        // To 0 after the limit, and from 0 back to it.
        ("inc", Kind::Unsigned, 32) => |old, limit, _| if old >= limit { 0 } else { old + 1 },
        ("dec", Kind::Unsigned, 32) => |old, limit, _| if old == 0 || old > limit { limit } else { old - 1 },
        _ => return Err(format!("`{operation}` of {:?} of {} bits", of.kind, of.bits)),
    })
}
