//! Other processors multiply keys as floats.

use super::queries::Queries;
use crate::cpu::slots::InSlots;

/// Bytes of the registers that are multiplied.
pub fn width() -> Option<usize> {
    None
}

pub fn products<const INTERVAL: bool>(
    _queries: &Queries<'_>,
    _keys: InSlots<'_, i8, INTERVAL>,
    _scores: &mut [f32],
    _stride: usize,
) {
    unreachable!("there are no queries as integers")
}
