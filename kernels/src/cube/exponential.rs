//! `exp` with one instruction for `2^x`, where a device has it.

use cubecl::ir::FastMath;
use cubecl::prelude::*;

/// What a number is multiplied by before [`exponential`], with the same `fast`.
pub(crate) fn exponent(fast: bool) -> f32 {
    if fast { std::f32::consts::LOG2_E } else { 1.0 }
}

/// `exp(x / exponent)`. If `fast`, in one instruction, which keeps a NaN and makes 0 of `-inf`
/// ([`Machine::power_of_two`](super::machine::Machine::power_of_two)).
#[cube]
pub(crate) fn exponential(x: f32, #[comptime] fast: bool) -> f32 {
    if comptime!(fast) { power_of_two(x) } else { x.exp() }
}

#[cube(fast_math = FastMath::ReducedPrecision | FastMath::NotNaN | FastMath::NotInf)]
fn power_of_two(x: f32) -> f32 {
    f32::powf(2.0f32, x)
}
