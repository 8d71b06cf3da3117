//! The products on NEON, which multiplies signed bytes.

use std::arch::aarch64::{
    float32x4_t, int8x16_t, vcvtq_f32_s32, vdupq_n_f32, vdupq_n_s32, vfmaq_n_f32, vld1q_s8, vmulq_n_f32, vpaddq_f32,
    vst1q_f32,
};

use super::queries::{BYTES, FACTORS, Queries};
use crate::cpu::neon::{add_fours, has_dot};
use crate::cpu::slots::InSlots;

/// Keys whose sums are in registers: as many as a vector has lanes.
const FOUR: usize = 4;

/// Bytes of a vector.
const VECTOR: usize = size_of::<int8x16_t>();

/// Bytes of the registers that are multiplied, if the processor has the instructions.
pub fn width() -> Option<usize> {
    has_dot().then_some(VECTOR)
}

pub fn products<const INTERVAL: bool>(
    queries: &Queries<'_>,
    keys: InSlots<'_, i8, INTERVAL>,
    scores: &mut [f32],
    stride: usize,
) {
    assert!(has_dot(), "the processor has no products of bytes");
    // SAFETY: the processor has the instructions.
    unsafe { dot(queries, keys, scores, stride) }
}

/// Multiplies queries with keys.
#[cfg(test)]
type Engine<const INTERVAL: bool> = fn(&Queries<'_>, InSlots<'_, i8, INTERVAL>, &mut [f32], usize);

/// What multiplies, by each way that this processor has.
#[cfg(test)]
pub fn every<const INTERVAL: bool>() -> Vec<(&'static str, Engine<INTERVAL>)> {
    if has_dot() { vec![("NEON", products)] } else { Vec::new() }
}

#[target_feature(enable = "neon,dotprod")]
fn dot<const INTERVAL: bool>(
    queries: &Queries<'_>,
    keys: InSlots<'_, i8, INTERVAL>,
    scores: &mut [f32],
    stride: usize,
) {
    let (count, rows) = (keys.count(), queries.scales.len());
    let (whole, rest) = (queries.features / VECTOR, queries.features % VECTOR);
    for at in (0..count).step_by(FOUR) {
        let mut turns = keys.turns(at..count.min(at + FOUR), rows);
        // The last key is repeated up to a whole vector.
        let mut runs = [&[][..]; FOUR];
        let mut ends = [[0; VECTOR]; FOUR];
        for (n, run) in runs.iter_mut().enumerate() {
            *run = &keys.get((at + n).min(count - 1))[..queries.features];
            ends[n][..rest].copy_from_slice(&run[whole * VECTOR..]);
        }
        for (row, scores) in scores.chunks_exact_mut(stride).enumerate() {
            turns.prefetch(&keys);
            let bytes = queries.of_row(row);
            let mut totals = [[vdupq_n_s32(0); BYTES]; FOUR];
            for step in 0..whole + usize::from(rest > 0) {
                for n in 0..FOUR {
                    let run = if step < whole { &runs[n][step * VECTOR..] } else { &ends[n] };
                    let run = &run[..VECTOR];
                    // SAFETY: the run has 16 bytes.
                    let key = unsafe { vld1q_s8(run.as_ptr()) };
                    for b in 0..BYTES {
                        let own = &bytes[b][step * VECTOR..][..VECTOR];
                        // SAFETY: there are 16 bytes.
                        let own = unsafe { vld1q_s8(own.as_ptr()) };
                        totals[n][b] = add_fours(totals[n][b], key, own);
                    }
                }
            }
            let mut sums: [float32x4_t; FOUR] = [vdupq_n_f32(0.0); FOUR];
            for n in 0..FOUR {
                for b in 0..BYTES {
                    sums[n] = vfmaq_n_f32(sums[n], vcvtq_f32_s32(totals[n][b]), FACTORS[b]);
                }
            }
            let [a, b, c, d] = sums;
            let products = vmulq_n_f32(vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)), queries.scales[row]);
            let places = &mut scores[at..at + FOUR];
            // SAFETY: there are as many places.
            unsafe { vst1q_f32(places.as_mut_ptr(), products) };
        }
    }
}
