//! Floats, each a block of its own.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};

/// Elements that are converted at a time.
const SOME: usize = 64;

pub(super) fn f32s(bytes: &[u8], into: &mut [f32]) {
    into.iter_mut().zip(bytes.as_chunks().0).for_each(|(place, &raw)| *place = f32::from_le_bytes(raw));
}

/// Half floats through their bits, since their bytes need not be aligned.
fn halves(bytes: &[u8], into: &mut [f32], convert: impl Fn(&[u16], &mut [f32])) {
    let mut bits = [0; SOME];
    for (bytes, into) in bytes.as_chunks().0.chunks(SOME).zip(into.chunks_mut(SOME)) {
        let bits = &mut bits[..into.len()];
        bits.iter_mut().zip(bytes).for_each(|(bits, &raw)| *bits = u16::from_le_bytes(raw));
        convert(bits, into);
    }
}

pub(super) fn f16s(bytes: &[u8], into: &mut [f32]) {
    halves(bytes, into, |bits, into| bits.reinterpret_cast::<f16>().convert_to_f32_slice(into));
}

pub(super) fn bf16s(bytes: &[u8], into: &mut [f32]) {
    halves(bytes, into, |bits, into| bits.reinterpret_cast::<bf16>().convert_to_f32_slice(into));
}

/// The bytes of floats.
pub(super) fn of_f32<const N: usize>(values: &[f32], bytes: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| bytes(value)).collect()
}
