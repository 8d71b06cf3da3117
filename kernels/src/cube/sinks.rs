//! Attention sinks on the device: a score for each query head that joins the sum of a query's weights, and has no value
//! (<https://arxiv.org/abs/2309.17453>).
//!
//! A kernel adds it once, where it divides by the sum: the splits of a decoding step do not, since [`combine`](super::decode) does.

use cubecl::prelude::*;

use super::contract::Checked;
use super::exponential::{exponent, exponential};
use super::tensors::array;

/// How far a sink may be above or below the maximum of the scores. From there on it leaves nothing to them, or nothing to itself, and its
/// exponential, and that times a sum, are finite and not 0.
const FARTHEST: f32 = 80.0;

/// The sinks of the query heads.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct Sinks {
    by_head: ComptimeOption<Array<f32>>,
    /// See [`presence`](super::tensors::presence).
    #[cube(comptime)]
    pub present: bool,
}

/// The argument of a kernel.
pub(crate) fn launch<R: Runtime>(sinks: Option<Checked<'_, R>>) -> SinksLaunch<R> {
    SinksLaunch::new(sinks.map(array).into(), sinks.is_some())
}

#[cube]
impl Sinks {
    /// The sum of the weights of a query, with that of the sink of its head. Weights are [`exponential`] of a score times
    /// [`exponent`] less `reference`, with the same `fast`.
    pub fn join(&self, sum: f32, head: u32, reference: f32, #[comptime] fast: bool) -> f32 {
        #[comptime]
        match &self.by_head {
            ComptimeOption::Some(sinks) => {
                let farthest = comptime!(FARTHEST * exponent(fast));
                let above = sinks[head as usize] * comptime!(exponent(fast)) - reference;
                // By comparison, not by clamping: a NaN stays one.
                let above = select(above > farthest, farthest, above);
                let above = select(above < -farthest, -farthest, above);
                sum + exponential(above, fast)
            }
            // Not a copy: a kernel without sinks stays as it is.
            ComptimeOption::None => sum,
        }
    }
}
