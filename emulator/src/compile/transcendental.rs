//! Roots, exponentials and other functions. PTX ISA, "Floating Point Instructions" and "Half Precision Floating Point Instructions".
//!
//! `.approx` may be off by some units in the last place on a GPU, differently on each. Here results are rounded from f64.

use super::builder::Builder;
use super::instruction::Action;
use super::lanewise::{float1, map1};
use crate::numbers::{bf16_of, f16_of, to_bf16, to_f16};
use crate::ptx::Kind;

pub fn compile(b: &mut Builder<'_>) -> Result<Action, String> {
    let ftz = b.flag("ftz");
    b.one_of(&["approx", "rn"]);
    let of = b.type_()?;
    let (to, from) = (b.destination(0)?, b.source(1, of.width())?);
    let f: fn(f64) -> f64 = match b.opcode() {
        "ex2" => f64::exp2,
        "lg2" => f64::log2,
        "rcp" => |x| 1.0 / x,
        "sqrt" => f64::sqrt,
        "rsqrt" => |x| 1.0 / x.sqrt(),
        "sin" => f64::sin,
        "cos" => f64::cos,
        _ => f64::tanh,
    };
    let half = |up: fn(u32) -> f32, down: fn(f64) -> u32| move |bits: u32| down(f(up(bits).into()));
    Ok(match (of.kind, of.packed) {
        (Kind::Float, _) if of.bits == 64 => {
            Action::Compute(map1(to, from, move |bits: u64| f(f64::from_bits(bits)).to_bits()))
        }
        // `exp2` in f32 is within one unit in the last place, and twice as fast.
        (Kind::Float, _) if b.opcode() == "ex2" => float1(to, from, ftz, f32::exp2),
        (Kind::Float, _) => float1(to, from, ftz, move |x| f(x.into()) as f32),
        (Kind::Half | Kind::Brain, packed) => {
            let half = if of.kind == Kind::Half { half(f16_of, to_f16) } else { half(bf16_of, to_bf16) };
            Action::Compute(map1(to, from, move |bits: u32| match packed {
                true => half(bits) | half(bits >> 16) << 16,
                false => half(bits),
            }))
        }
        (kind, _) => return Err(format!("`{}` of {kind:?}", b.opcode())),
    })
}
