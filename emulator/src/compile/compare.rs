//! Comparisons and selection. PTX ISA, "Comparison and Selection Instructions".

use std::cmp::Ordering;

use super::builder::Builder;
use super::instruction::Action;
use crate::numbers::{bf16_of, f16_of, f32_of, low, signed};
use crate::ptx::{Kind, Operand, Type};
use crate::registers::{Lanes, Register, Registers, WARP};

pub fn compile(b: &mut Builder<'_>) -> Result<Action, String> {
    match b.opcode() {
        "setp" => set_predicate(b),
        "set" => set_halves(b),
        _ => select(b),
    }
}

/// Whether a comparison holds for an order; without one, a number was a NaN.
type Holds = fn(Option<Ordering>) -> bool;

/// The order of two values.
type Order = fn(u64, u64) -> Option<Ordering>;

/// The comparisons.
const COMPARISONS: &[(&str, Holds)] = &[
    ("eq", |order| order == Some(Ordering::Equal)),
    ("ne", |order| matches!(order, Some(Ordering::Less | Ordering::Greater))),
    ("lt", |order| order == Some(Ordering::Less)),
    ("le", |order| matches!(order, Some(Ordering::Less | Ordering::Equal))),
    ("gt", |order| order == Some(Ordering::Greater)),
    ("ge", |order| matches!(order, Some(Ordering::Greater | Ordering::Equal))),
    ("lo", |order| order == Some(Ordering::Less)),
    ("ls", |order| matches!(order, Some(Ordering::Less | Ordering::Equal))),
    ("hi", |order| order == Some(Ordering::Greater)),
    ("hs", |order| matches!(order, Some(Ordering::Greater | Ordering::Equal))),
    ("equ", |order| matches!(order, None | Some(Ordering::Equal))),
    ("neu", |order| order != Some(Ordering::Equal)),
    ("ltu", |order| matches!(order, None | Some(Ordering::Less))),
    ("leu", |order| order != Some(Ordering::Greater)),
    ("gtu", |order| matches!(order, None | Some(Ordering::Greater))),
    ("geu", |order| order != Some(Ordering::Less)),
    ("num", |order| order.is_some()),
    ("nan", |order| order.is_none()),
];

fn comparison(b: &mut Builder<'_>) -> Result<Holds, String> {
    let found = COMPARISONS.iter().find(|(name, _)| b.flag(name));
    found.map(|(_, holds)| *holds).ok_or_else(|| "the comparison is not supported".into())
}

/// The order of two values of a type.
fn order(of: Type) -> Result<Order, String> {
    Ok(match (of.kind, of.bits) {
        (Kind::Float, 32) => |a, b| f32_of(a as u32).partial_cmp(&f32_of(b as u32)),
        (Kind::Float, _) => |a, b| f64::from_bits(a).partial_cmp(&f64::from_bits(b)),
        (Kind::Half, _) => |a, b| f16_of(a as u32).partial_cmp(&f16_of(b as u32)),
        (Kind::Brain, _) => |a, b| bf16_of(a as u32).partial_cmp(&bf16_of(b as u32)),
        (Kind::Signed, 16) => |a, b| Some(signed(a, 16).cmp(&signed(b, 16))),
        (Kind::Signed, 32) => |a, b| Some(signed(a, 32).cmp(&signed(b, 32))),
        (Kind::Signed, _) => |a, b| Some((a as i64).cmp(&(b as i64))),
        (Kind::Bits | Kind::Unsigned, 16) => |a, b| Some(low(a, 16).cmp(&low(b, 16))),
        (Kind::Bits | Kind::Unsigned, 32) => |a, b| Some(low(a, 32).cmp(&low(b, 32))),
        (Kind::Bits | Kind::Unsigned, _) => |a, b| Some(a.cmp(&b)),
        (kind, bits) => return Err(format!("a comparison of {kind:?} of {bits} bits")),
    })
}

type Compared = Box<dyn Fn(&Registers) -> Lanes + Send + Sync>;

/// The lanes for which a comparison holds.
fn compared(of: Type, holds: Holds, [a, b]: [Register; 2]) -> Result<Compared, String> {
    let lanes = |bits: [bool; WARP]| bits.into_iter().rev().fold(0, |lanes, bit| lanes << 1 | Lanes::from(bit));
    // The three kinds of which loops are made have loops of their own, which need no call for each lane.
    let table: [bool; 3] = [Ordering::Less, Ordering::Equal, Ordering::Greater].map(|order| holds(Some(order)));
    let unordered = holds(None);
    let pick = move |order: Ordering| table[(order as i8 + 1) as usize];
    Ok(match (of.kind, of.bits) {
        (Kind::Float, 32) => Box::new(move |registers| {
            let (a, b) = (registers.get::<u32>(a), registers.get::<u32>(b));
            lanes(std::array::from_fn(|lane| f32_of(a[lane]).partial_cmp(&f32_of(b[lane])).map_or(unordered, pick)))
        }),
        (Kind::Signed, 32) => Box::new(move |registers| {
            let (a, b) = (registers.get::<u32>(a), registers.get::<u32>(b));
            lanes(std::array::from_fn(|lane| pick((a[lane] as i32).cmp(&(b[lane] as i32)))))
        }),
        (Kind::Unsigned | Kind::Bits, 32) => Box::new(move |registers| {
            let (a, b) = (registers.get::<u32>(a), registers.get::<u32>(b));
            lanes(std::array::from_fn(|lane| pick(a[lane].cmp(&b[lane]))))
        }),
        _ => {
            let order = order(of)?;
            Box::new(move |registers| {
                let (a, b) = (registers.get::<u64>(a), registers.get::<u64>(b));
                lanes(std::array::from_fn(|lane| order(a[lane], b[lane]).map_or(unordered, pick)))
            })
        }
    })
}

fn set_predicate(b: &mut Builder<'_>) -> Result<Action, String> {
    let holds = comparison(b)?;
    let join = b.one_of(&["and", "or", "xor"]);
    b.flag("ftz");
    let of = b.type_()?;
    let (to, complement) = match b.operand(0)? {
        Operand::Pair(first, second) => (b.predicate(first)?, Some(b.predicate(second)?)),
        one => (b.predicate(one)?, None),
    };
    let from = [b.source(1, of.bits)?, b.source(2, of.bits)?];
    let other = join.map(|_| b.condition(3)).transpose()?;
    let join: fn(Lanes, Lanes) -> Lanes = match join {
        Some("and") => |a, b| a & b,
        Some("or") => |a, b| a | b,
        Some(_) => |a, b| a ^ b,
        None => |a, _| a,
    };
    let compared = compared(of, holds, from)?;
    Ok(Action::Compute(Box::new(move |registers, lanes| {
        let found = compared(registers);
        let other = other.map_or(0, |condition| registers.condition(condition));
        registers.set_predicate(to, join(found, other), lanes);
        if let Some(complement) = complement {
            registers.set_predicate(complement, join(!found, other), lanes);
        }
    })))
}

/// `set.f16x2`, `set.bf16x2`: 1 or 0 in each half.
fn set_halves(b: &mut Builder<'_>) -> Result<Action, String> {
    let holds = comparison(b)?;
    b.flag("ftz");
    let (to_type, of) = (b.type_()?, b.type_()?);
    if !(to_type.packed && of.packed) {
        return Err("`set` is supported for pairs of halves only".into());
    }
    let one = if to_type.kind == Kind::Half { 0x3c00u32 } else { 0x3f80 };
    let order = order(Type { packed: false, ..of })?;
    let (to, from) = (b.destination(0)?, [b.source(1, 32)?, b.source(2, 32)?]);
    let half = move |a: u32, b: u32| if holds(order(a.into(), b.into())) { one } else { 0 };
    Ok(Action::Compute(super::lanewise::map2(to, from, move |a: u32, b: u32| {
        half(a, b) | half(a >> 16, b >> 16) << 16
    })))
}

fn select(b: &mut Builder<'_>) -> Result<Action, String> {
    let bits = b.type_()?.width();
    let (to, from) = (b.destination(0)?, [b.source(1, bits)?, b.source(2, bits)?]);
    let condition = b.condition(3)?;
    Ok(Action::Compute(Box::new(move |registers, lanes| {
        let chosen = registers.condition(condition);
        let [a, b] = from.map(|register| registers.get::<u64>(register));
        let values: [u64; WARP] = std::array::from_fn(|lane| if chosen >> lane & 1 == 1 { a[lane] } else { b[lane] });
        registers.set(to, &values, lanes);
    })))
}
